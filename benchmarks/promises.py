"""What a run's results say: a table of ratios, the promises that hold, and what has become slower.

Results are pytest-benchmark's JSON, with what `measuring` notes in extra_info.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskgit.console import UsageError, markdown_table
from maskgit.machine import is_faster_in_bfloat16

Row = Mapping[str, Any]
"""A benchmark, its statistics beside its name and extra_info."""
SLOWER = 1.1
NEVER_SLOWER = 0.97  # 1 but for what the clock can't tell apart


class Promise(NamedTuple):
    """A figure that the project claims; of the machine, not of a baseline whose speed is another on every CPU."""

    job: str
    """Group and name of the comparisons, as fnmatch has it."""
    implementation: str
    figure: str
    """Of extra_info."""
    at_least: float
    anywhere: bool = False
    """Else on CPUs that are faster in bfloat16 only, where it was measured."""


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


class Judged(NamedTuple):
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
    promised = "capability" not in machine and is_faster_in_bfloat16(machine["cpu"])
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


def rates(products: Mapping[str, float]) -> str:
    """The machine's fastest matrix products in a line, and how much faster they are in bfloat16."""
    fastest = {name.split()[0]: 0.0 for name in products}
    for name, rate in products.items():
        fastest[name.split()[0]] = max(rate, fastest[name.split()[0]])
    each = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in fastest.items())
    times = fastest["bfloat16"] / fastest["float32"]
    return f"Matrix products here: {each}; bfloat16 {times:.2f} times as fast as float32."


def table(measured: Iterable[Row]) -> list[str]:
    """Lines of Markdown: the ratios, for which pytest-benchmark's table has no columns, without empty columns."""
    cells = [_cells(row) for row in measured]
    used = [column for column in cells[0] if any(line[column] for line in cells)] if cells else []
    return markdown_table(used, [[line[column] for column in used] for line in cells])


def _cells(row: Row) -> dict[str, str]:
    info, median = row["extra_info"], row["median"]
    ratios = [f"{info[name]:.2f}" for name in ("speedup", "speedup_p20", "speedup_p80") if name in info]
    return {
        "benchmark": row["name"],
        "median": duration(median),
        "per second": f"{info['items'] / median:.4g} {info['item']}s",
        "speed-up": ratios[0] if ratios else "",
        "20 to 80 %": " to ".join(ratios[1:]) if info["implementation"] != info["baseline"] else "",
        "of the floor": f"{info['of_floor']:.2f} x" if "of_floor" in info else "",
        "of the ceiling": f"{info['of_ceiling']:.1%}" if "of_ceiling" in info else "",
        "host": "" if info["host_seconds"] is None else duration(info["host_seconds"]),
        "memory": "" if info["peak_bytes"] is None else f"{info['peak_bytes'] / 2**20:.1f} MiB",
    }


def duration(seconds: float) -> str:
    """With three digits, in s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
