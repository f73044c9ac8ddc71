"""Results as JSON and Markdown, and what has become slower since an older run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hardware import Peaks
from benchmarks.harness import speedup
from benchmarks.static_report import Static
from benchmarks.turns import Outcome

# A row is slower if its median is by this much, and its faster rounds are slower than the older run's slower ones.
SLOWER = 1.1
SAME_MACHINE = ("device", "cpu", "threads")  # of the key: without these in common, times can't be compared


@dataclass
class Row:
    """One implementation in one comparison. Times are in seconds per call."""

    suite: str
    comparison: str
    implementation: str
    status: str
    """timed, refused (its result is wrong) or skipped (it does not exist here)."""
    reason: str = ""
    """Why it was refused or skipped."""
    p20: float = 0.0
    p50: float = 0.0
    p80: float = 0.0
    rounds: int = 0
    calls: int = 0
    """In each round."""
    items: int = 1
    """What a call makes: so many of `item`."""
    item: str = "call"
    speedup: float = 0.0
    """Against the comparison's baseline; the median over the rounds."""
    of_floor: float | None = None
    """Time against what the hardware needs at least; None where nothing was counted."""
    flops: float = 0.0
    """Floating-point operations of a call's matrix products; 0 where they were not counted."""
    peak_bytes: int | None = None
    """Memory that a call allocates at its peak; None where it was not measured."""
    host_seconds: float | None = None
    """That the host takes to start a call, on a GPU."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.suite, self.comparison, self.implementation


@dataclass
class Promise:
    """A target, and what was measured."""

    name: str
    at_least: float
    measured: float | None
    """None: one of the implementations was refused."""

    @property
    def holds(self) -> bool:
        return self.measured is not None and self.measured >= self.at_least


@dataclass
class Report:
    """All of a run."""

    key: dict[str, str | int]
    """Device, versions, date, revision, threads: see `hardware.describe`."""
    quick: bool
    peaks: Peaks
    rows: list[Row] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    static: Static | None = None

    def add(self, outcome: Outcome) -> list[Row]:
        """Take in a comparison's outcome; returns its rows. The promises of a quick run are not judged."""
        rows = list(_rows(outcome))
        self.rows += rows
        for target in [] if self.quick else outcome.comparison.targets:
            try:
                measured = target.measure(outcome.timings)
            except KeyError:
                measured = None
            self.promises.append(Promise(target.name, target.at_least, measured))
        return rows

    @property
    def failures(self) -> list[str]:
        """Wrong results, broken promises and unfit kernels, in words."""
        wrong = [f"{' / '.join(row.key)}: {row.reason}" for row in self.rows if row.status == "refused"]
        broken = [
            f"{promise.name}: {'not measured' if promise.measured is None else f'{promise.measured:.2f}'}, "
            f"promised {promise.at_least:g}"
            for promise in self.promises
            if not promise.holds
        ]
        return wrong + broken + (self.static.failures if self.static else [])

    def save(self, folder: Path) -> None:
        """Write results.json and results.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / "results.md").write_text(self.to_markdown())

    def to_markdown(self) -> str:
        """Everything that is in the JSON, to be read."""
        gpu = "capability" in self.key
        lines = [f"# Benchmarks on {self.key['device']}", ""]
        if self.quick:
            lines += [
                "**A quick run: tiny shapes, two rounds. It shows that everything runs; its times mean nothing.**",
                "",
            ]
        if not gpu:
            lines += [
                "This machine has no GPU, so **no GPU figure exists here**: the times are those of the PyTorch path on "
                "its CPU. All that is known of the Triton kernels is how they compile (at the end).",
                "",
            ]
        lines += [f"- {name}: {value}" for name, value in self.key.items()]
        lines += [f"- {name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in self.peaks.products.items()]
        lines += [f"- copy of {size / 2**20:g} MiB: {rate / 1e9:.0f} GB/s" for size, rate in self.peaks.copies.items()]
        if self.promises:
            lines += ["", "## Promises", "", "| | promised | measured | |", "|---|---|---|---|"]
            for promise in self.promises:
                measured = "not measured" if promise.measured is None else f"{promise.measured:.2f}"
                verdict = "holds" if promise.holds else "**does not hold**"
                lines.append(f"| {promise.name} | {promise.at_least:g} | {measured} | {verdict} |")
        for suite in dict.fromkeys(row.suite for row in self.rows):
            lines += ["", f"## {suite}", "", *table([row for row in self.rows if row.suite == suite])]
        if self.static:
            lines += ["", "## static", "", self.static.to_markdown()]
        return "\n".join(lines) + "\n"


def _rows(outcome: Outcome) -> Iterator[Row]:
    comparison = outcome.comparison
    for name, timing in outcome.timings.items():
        p20, p50, p80 = (timing.percentile(percent) for percent in (20, 50, 80))
        over = comparison.baseline if comparison.baseline in outcome.timings else name
        yield Row(
            comparison.suite,
            comparison.name,
            name,
            "timed",
            p20=p20,
            p50=p50,
            p80=p80,
            rounds=len(timing.seconds),
            calls=timing.calls,
            items=comparison.items,
            item=comparison.item,
            speedup=speedup(outcome.timings, name, over),
            of_floor=p50 / outcome.floor if outcome.floor and timing.flops == comparison.flops else None,
            flops=timing.flops,
            peak_bytes=timing.peak_bytes,
            host_seconds=timing.host_seconds,
        )
    for status, reasons in (("refused", outcome.refused), ("skipped", outcome.skipped)):
        for name, reason in reasons.items():
            yield Row(comparison.suite, comparison.name, name, status, reason)


def table(rows: list[Row]) -> Iterator[str]:
    """A Markdown table of the rows that were timed or refused, without empty columns, and what was skipped."""
    table = [_cells(row) for row in rows if row.status != "skipped"]
    filled = [name for name in _COLUMNS if any(name in cells for cells in table)]
    yield f"| {' | '.join(filled)} |"
    yield "|---" * len(filled) + "|"
    for cells in table:
        yield f"| {' | '.join(cells.get(name, '') for name in filled)} |"
    yield from ["", *(f"- {line}" for line in skipped(rows))]


_COLUMNS = (
    "comparison",
    "implementation",
    "median",
    "20 to 80 %",
    "per second",
    "speed-up",
    "times the floor",
    "GFLOP/s",
    "host",
    "peak memory",
)


def _cells(row: Row) -> dict[str, str]:
    cells = {"comparison": row.comparison, "implementation": row.implementation}
    if row.status == "refused":
        return cells | {"median": f"**refused**: {row.reason}"}
    cells["median"] = duration(row.p50)
    cells["20 to 80 %"] = f"{duration(row.p20)} to {duration(row.p80)}"
    cells["per second"] = f"{row.items / row.p50:.4g} {row.item}s"
    cells["speed-up"] = f"{row.speedup:.2f}"
    if row.of_floor is not None:
        cells["times the floor"] = f"{row.of_floor:.2f}"
    if row.flops:
        cells["GFLOP/s"] = f"{row.flops / row.p50 / 1e9:.3g}"
    if row.host_seconds is not None:
        cells["host"] = duration(row.host_seconds)
    if row.peak_bytes is not None:
        cells["peak memory"] = f"{row.peak_bytes / 2**20:.1f} MiB"
    return cells


def skipped(rows: list[Row]) -> list[str]:
    """What was not timed and why, each reason once."""
    reasons = Counter((row.implementation, row.reason) for row in rows if row.status == "skipped")
    return [f"not timed in {times} of the comparisons: {name}: {why}" for (name, why), times in reasons.items()]


def duration(seconds: float) -> str:
    """With three digits, in s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def load_rows(path: Path, key: dict[str, str | int], quick: bool) -> dict[tuple[str, str, str], Row]:
    """The timed rows of an older run's results.json.

    Raises:
        ValueError: the file isn't a result, or is one of another machine or kind of run.
    """
    try:
        old: dict[str, Any] = json.loads(path.read_text())
        rows = [Row(**row) for row in old["rows"]]
        their_key, their_quick = old["key"], old["quick"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the results of a benchmark run ({error})") from error
    differing = [f"{name} {their_key.get(name)!r}" for name in SAME_MACHINE if their_key.get(name) != key[name]]
    if quick != their_quick:
        differing.append("a quick run" if their_quick else "a full run")
    if differing:
        raise ValueError(f"{path}: can't be compared with this run, it is of {', '.join(differing)}")
    return {row.key: row for row in rows if row.status == "timed"}


def regressions(old: dict[tuple[str, str, str], Row], rows: list[Row]) -> list[str]:
    """What has become slower, in words."""
    found = []
    for row in rows:
        before = old.get(row.key)
        if before and row.status == "timed" and row.p50 > SLOWER * before.p50 and row.p20 > before.p80:
            times = f"{duration(row.p50)}, was {duration(before.p50)}"
            found.append(f"{' / '.join(row.key)}: {row.p50 / before.p50:.2f} times as long ({times})")
    return found


def slug(text: str) -> str:
    """For file names."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
