"""What a run's results say: a table of ratios, the promises that hold, and what has become slower.

Results are pytest-benchmark's JSON, with what `measuring` notes in extra_info.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from maskgit.console import UsageError, markdown_table

Row = Mapping[str, Any]
"""A benchmark, its statistics beside its name and extra_info."""
SLOWER = 1.1
NEVER_SLOWER = 0.97  # 1 but for what the clock can't tell apart


@dataclass(frozen=True)
class Promise:
    """A figure that the project claims; of the machine, not of a baseline whose speed is another on every CPU."""

    job: str
    """Group and name of the comparisons, as fnmatch has it."""
    implementation: str
    figure: str
    """Of extra_info."""
    at_least: float
    anywhere: bool = False
    """Else on CPUs with bfloat16 instructions only, where it was measured."""


PROMISES = (
    Promise("ceiling/*", "ours", "of_ceiling", 0.6),
    Promise("lab/b1", "ours_bf16", "of_ceiling", 0.4),
    Promise("lab/b8", "ours_bf16", "of_ceiling", 0.45),
    Promise("lab/b1", "ours_float32", "of_ceiling", 0.45),
    Promise("lab/b8", "ours_float32", "of_ceiling", 0.5),
    Promise("tokens/*", "ours_bf16", "of_ceiling", 0.6),
    Promise("training/lab-*", "bf16_compiled", "of_ceiling", 0.5),
    Promise("training/lab-*", "bf16_compiled", "memory_saved", 1.0),
    Promise("forward/*", "ours", "speedup", NEVER_SLOWER, anywhere=True),
)
IN_WORDS = {
    "of_ceiling": "share of the matrix products' speed",
    "speedup": "times as fast as the baseline",
    "memory_saved": "memory of the baseline over ours",
}


@dataclass(frozen=True)
class Judged:
    """A promise, and what was measured for it."""

    name: str
    at_least: float
    measured: float | None
    """None: the implementation has no figures, because its result was wrong or it was not asked for."""

    @property
    def holds(self) -> bool:
        return self.measured is not None and self.measured >= self.at_least

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}"
        return f"{self.name}: {measured}, promised {self.at_least:g}"


def load(path: Path) -> dict[str, Any]:
    """A run's results.

    Raises:
        UsageError: the file holds something else.
    """
    try:
        results = json.loads(path.read_text())
        results["machine_info"]["quick"], results["peaks"]  # noqa: B018
        rows(results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not the results of a benchmark run ({error})") from error
    return results


def rows(results: Mapping[str, Any]) -> list[Row]:
    """All benchmarks of a run."""
    return [{**benchmark, **benchmark["stats"]} for benchmark in results["benchmarks"]]


def judge(results: Mapping[str, Any]) -> list[Judged]:
    """The promises of the comparisons that were made; those of a quick run are not judged."""
    machine = results["machine_info"]
    if machine["quick"]:
        return []
    promised = "capability" not in machine and any(name in machine["cpu"] for name in ("avx512_bf16", "amx_bf16"))
    jobs: dict[str, dict[str, Any]] = {}
    for row in rows(results):
        jobs.setdefault(row["group"], {})[row["params"]["implementation"]] = row["extra_info"]
    return [
        Judged(
            f"{job}, {promise.implementation}: {IN_WORDS[promise.figure]}",
            promise.at_least,
            made.get(promise.implementation, {}).get(promise.figure),
        )
        for promise in PROMISES
        for job, made in jobs.items()
        if fnmatch(job, promise.job) and (promise.anywhere or promised)
    ]


def regressions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What has become slower, in words: by its median, and its faster rounds are slower than the older slower ones.

    --benchmark-compare-fail knows the first condition only, and would flag what merely varies.
    """
    before, found = {row["name"]: row for row in rows(old)}, []
    for row in rows(new):
        was = before.get(row["name"])
        if was and row["median"] > SLOWER * was["median"]:
            if np.percentile(row["data"], 20) > np.percentile(was["data"], 80):
                times = f"{duration(row['median'])}, was {duration(was['median'])}"
                found.append(f"{row['name']}: {row['median'] / was['median']:.2f} times as long ({times})")
    return found


def rates(peaks: Mapping[str, Mapping[str, float]]) -> str:
    """The machine's rates in a line, and how much faster its bfloat16 is."""
    fastest: dict[str, float] = {}
    for name, rate in peaks["products"].items():
        dtype = name.split()[0]
        fastest[dtype] = max(rate, fastest.get(dtype, 0.0))
    parts = [f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in fastest.items()]
    if {"float32", "bfloat16"} <= fastest.keys():
        parts.append(f"bfloat16 {fastest['bfloat16'] / fastest['float32']:.2f} times as fast as float32")
    return f"Matrix products here: {', '.join(parts)}."


_COLUMNS = ("", "median", "per second", "speed-up", "20 to 80 %", "of the floor", "of the ceiling", "host", "memory")


def table(measured: Iterable[Row]) -> list[str]:
    """Lines of Markdown: a table of ratios, without empty columns."""
    cells = [_cells(row) for row in measured]
    used = [number for number in range(len(_COLUMNS)) if any(line[number] for line in cells)]
    return markdown_table([_COLUMNS[number] for number in used], [[line[number] for number in used] for line in cells])


def _cells(row: Row) -> list[str]:
    info, median = row["extra_info"], row["median"]
    spread = f"{info['speedup_p20']:.2f} to {info['speedup_p80']:.2f}" if info.get("speedup_p20") else ""
    return [
        row["name"],
        duration(median),
        f"{info['items'] / median:.4g} {info['item']}s",
        f"{info['speedup']:.2f}" if "speedup" in info else "",
        spread if info["implementation"] != info["baseline"] else "",
        f"{info['of_floor']:.2f} x" if "of_floor" in info else "",
        f"{info['of_ceiling']:.1%}" if "of_ceiling" in info else "",
        duration(info["host_seconds"]) if info["host_seconds"] is not None else "",
        f"{info['peak_bytes'] / 2**20:.1f} MiB" if info["peak_bytes"] is not None else "",
    ]


def duration(seconds: float) -> str:
    """With three digits, in s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
