"""What has been found so far: as JSON with all results in it, and as Markdown to be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.files import clean, read, write
from benchmarks.gpu.process import Ended
from benchmarks.gpu.steps import Step
from maskgit.console import markdown_table

FORMAT = 2  # of summary.json; see benchmarks/results/README.md
MOST_LINES = 20  # of things that went wrong, for each step


@dataclass(frozen=True)
class Entry:
    """What became of a step."""

    name: str
    proves: str
    status: Literal["passed", "failed", "out of time", "not started"]
    seconds: float = 0.0
    last_line: str = ""
    """Of what it printed."""
    compiled: int = 0
    """Kernels that came into Triton's cache meanwhile: compiled in this step, where nobody else uses that cache."""
    results: Any = None
    """What its file holds."""


class Summary:
    """Of a run."""

    def __init__(self, folder: Path, quick: bool, minutes: float) -> None:
        self.folder, self.quick, self.minutes = folder, quick, minutes
        self.entries: list[Entry] = []

    def add(self, step: Step, ended: Ended) -> None:
        """Take in a step that has ended, and write everything down."""
        status: Literal["passed", "failed", "out of time"] = "failed"
        if ended.code is None:
            status = "out of time"
        elif ended.code == 0 and (step.result is None or step.result.exists()):
            status = "passed"
        lines = ended.output.strip().splitlines()
        last_line = lines[-1][:300] if lines else f"exit status {ended.code}, and nothing was printed"
        results = None
        if step.result is not None:
            results = _tests(step.result) if step.result.suffix == ".xml" else read(step.result)
        self._add(Entry(step.name, step.proves, status, round(ended.seconds, 1), last_line, ended.compiled, results))
        if step.result is not None and results is not None and not step.kept:
            step.result.unlink()

    def not_started(self, step: Step, why: str) -> None:
        """The step was left out."""
        self._add(Entry(step.name, step.proves, "not started", last_line=why))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        about = {"format": FORMAT, "quick": self.quick, "minutes": self.minutes}
        write(self.folder / "summary.json", about | {"steps": [asdict(entry) for entry in self.entries]})
        (self.folder / "summary.md").write_text(clean(self.to_markdown()))

    @property
    def passed(self) -> bool:
        """Whether every step did."""
        return all(entry.status == "passed" for entry in self.entries)

    def last_line(self) -> str:
        """The outcome of the step that came last."""
        entry = self.entries[-1]
        return clean("; ".join([f"{entry.status} after {entry.seconds:.0f} s", *_headline(entry)]))

    def to_markdown(self) -> str:
        """Everything of interest in the JSON."""
        facts = next((entry.results for entry in self.entries if entry.name == "environment"), None) or {}
        lines = [f"# {facts.get('device', 'An unknown device')}", ""]
        if self.quick:
            lines += ["**A rehearsal with tiny sizes: it shows that everything runs; its times mean nothing.**", ""]
        if "capability" not in facts:
            lines += ["There is no GPU here, so **no GPU figure exists**.", ""]
        lines += [*(f"- {name}: {value}" for name, value in facts.items() if name != "nvidia-smi"), ""]
        lines += markdown_table(
            ["step", "", "seconds", "kernels compiled", ""],
            [
                [
                    entry.name,
                    entry.status,
                    f"{entry.seconds:.0f}",
                    str(entry.compiled),
                    _cell("; ".join(_headline(entry))),
                ]
                for entry in self.entries
            ],
        )
        for entry in self.entries:
            wrong = [f"- {_cell(line)}" for line in _wrong(entry)]
            if wrong:
                more = [f"- and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else []
                lines += [f"## {entry.name}: what went wrong", "", *wrong[:MOST_LINES], *more, ""]
        for entry in self.entries:
            if "benchmarks" in (entry.results or {}):
                lines += [f"## {entry.name}", "", *table(entry.results["benchmarks"]), *_not_timed(entry), ""]
        return "\n".join(lines)


def table(benchmarks: list[dict[str, Any]]) -> list[str]:
    """Of pytest-benchmark's results, in Markdown; times are medians."""
    rows = []
    for benchmark in benchmarks:
        facts, seconds = benchmark["extra_info"], benchmark["stats"]["median"]
        kernel, host, memory = (facts.get(name) for name in ("kernel", "host_seconds", "peak_bytes"))
        cells = [
            benchmark["params"]["job"],
            benchmark["params"]["implementation"] + (f" ({kernel})" if kernel else ""),
            duration(seconds),
            f"{facts['items'] / seconds:.4g} {facts['item']}s" if "items" in facts else "",
            *(f"{facts[name]:.2f}" if name in facts else "" for name in ("speedup", "of_floor")),
            duration(host) if host else "",
            f"{memory / 2**20:.1f} MiB" if memory else "",
        ]
        rows.append([_cell(cell) for cell in cells])
    head = ["job", "implementation", "time", "per second", "times as fast", "times the floor", "host", "peak memory"]
    return markdown_table(head, rows)


def duration(seconds: float) -> str:
    """With three digits, in s, ms or us."""
    unit, size = next((pair for pair in (("s", 1.0), ("ms", 1e-3)) if seconds >= pair[1]), ("us", 1e-6))
    return f"{seconds / size:.3g} {unit}"


def _headline(entry: Entry) -> Iterator[str]:
    """The step's figures in a few words."""
    results = entry.results or {}
    if entry.name == "environment" and results:
        yield f"{results['device']}, torch {results['torch']}, triton {results['triton']}"
    elif entry.name in ("verify", "tests") and results:
        yield ", ".join(f"{results[name]} {name}" for name in ("passed", "failed", "skipped") if name in results)
    elif entry.name == "smoke" and results:
        yield from (f"{check['check']}: {check['finding']}" for check in results.get("checks", []))
    elif "outcomes" in results:
        outcomes = [outcome for outcome, _ in results["outcomes"].values()]
        counts = ", ".join(f"{outcomes.count(name)} {name}" for name in ("passed", "failed", "skipped"))
        yield f"{len(outcomes)} of {results['planned']} benchmarks: {counts}"
    if entry.status != "passed" or not results:
        yield entry.last_line


def _wrong(entry: Entry) -> Iterator[str]:
    """What the step found wrong, in words."""
    results = entry.results or {}
    if entry.name == "verify":
        for check in results.get("checks", []):
            if check["status"] != "pass":
                yield f"{check['operator']}, {check['case']}: {check['reason']}"
    elif entry.name == "tests":
        yield from results.get("failures", [])
    elif "outcomes" in results:
        yield from (f"{name}: {why}" for name, (outcome, why) in results["outcomes"].items() if outcome == "failed")


def _not_timed(entry: Entry) -> list[str]:
    """Each reason once."""
    skipped = Counter(why for outcome, why in entry.results["outcomes"].values() if outcome == "skipped")
    return [f"- {number} not timed: {_cell(why)}" for why, number in skipped.items()]


def _tests(path: Path) -> dict[str, Any] | None:
    """What pytest's report holds: counts, and each failure's name and message."""
    try:
        text = path.read_text()
        root = ET.fromstring(text)
    except (OSError, ET.ParseError):
        return None
    path.write_text(re.sub(r' hostname="[^"]*"', "", text))
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in root.iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error")]
        counts["failed" if bad else "skipped" if case.find("skipped") is not None else "passed"] += 1
        for part in bad:
            message = (part.get("message") or "").splitlines()
            failures.append(f"{case.get('classname')}::{case.get('name')}: {message[0][:300] if message else ''}")
    return {**counts, "failures": failures}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
