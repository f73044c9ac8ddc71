"""Runs hostile inputs and prints what came of them; see the package."""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # what is tested is what lies beside the tests
os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}

from . import (  # noqa: E402
    archives,
    arrays,
    checkpoints,
    configurations,
    kills,
    masks,
    pictures,
    settings,
    shards,
    statistics,
    weights,
    words,
)
from .cases import Group  # noqa: E402
from .sandbox import OUTCOMES, Limits, Outcome, run_all  # noqa: E402
from .seeds import make_seeds, plant_programs, preload  # noqa: E402

GROUPS: list[Group] = [
    module.GROUP
    for module in (
        *(pictures, masks, arrays, configurations, weights, checkpoints, archives, shards, settings, words),
        *(statistics, kills),
    )
]
TITLES = ("fine or refused", "uncaught", "hang", "memory", "wrong success", "code run", "files left")


def inputs(groups: list[Group], count: int, only: str | None) -> Iterator[tuple[Group, str]]:
    """The known inputs of every group, and then `count` random ones of each."""
    for group in groups:
        for name in itertools.chain(group.known, map(str, range(count))) if only is None else [only]:
            yield group, name


class Report:
    """Counts outcomes, and keeps the smallest input of each kind of failure."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.kinds: dict[tuple[str, str, str], list[Outcome]] = collections.defaultdict(list)
        self.kept: dict[tuple[str, str, str], Path] = {}
        self.slowest = Outcome("", "", "")

    def add(self, outcome: Outcome, folder: Path) -> None:
        self.counts[outcome.group][outcome.what] += 1
        self.slowest = max(self.slowest, outcome, key=lambda one: one.seconds)
        if outcome.what == "well":
            return
        key = outcome.group, outcome.what, outcome.kind
        same = self.kinds[key]
        same.append(outcome)
        if len(same) > 1 and outcome.size >= min(one.size for one in same[:-1]):
            return
        target = self.kept.setdefault(key, self.folder / f"failure-{len(self.kept)}")
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder / "work", target)
        again = f"python -m tests.hostile --seed {self.seed} --group {outcome.group!r} --only {outcome.name!r}"
        text = f"{again}\n\n{outcome.what}: {outcome.kind}\n\n{outcome.detail}\n--- output\n{outcome.output}"
        target.with_suffix(".txt").write_text(text, errors="backslashreplace")

    def lines(self) -> Iterator[str]:
        """The table, and a line for each kind of failure."""
        rows = [
            [name, sum(counts.values()), *(counts[what] for what in OUTCOMES)] for name, counts in self.counts.items()
        ]
        rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, 2 + len(OUTCOMES)))])
        yield "| " + " | ".join(("group", "inputs", *TITLES)) + " |"
        yield "|---" * (2 + len(TITLES)) + "|"
        for row in rows:
            yield "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |"
        for key, same in sorted(self.kinds.items()):
            smallest = min(same, key=lambda one: one.size)
            yield f"{' | '.join(key)} | {len(same)} times, such as {smallest.name!r} | {self.kept[key]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("--inputs", type=int, default=100, help="random inputs of each group, after the known ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group", choices=[group.name for group in GROUPS], action="append", help="only this one")
    parser.add_argument("--only", help="one input, by its number or name")
    parser.add_argument("--seconds", type=float, default=75, help="that an input may take")
    parser.add_argument("--jobs", type=int, default=2, help="inputs that are used at the same time")
    options = parser.parse_args()
    started = time.monotonic()
    tqdm.monitor_interval = 0  # no threads here: a forked process would wait for the locks that they held
    base = Path(tempfile.mkdtemp(prefix="hostile-"))
    (base / "seeds").mkdir()
    seeds = make_seeds(base / "seeds")
    plant_programs(base / "programs")
    preload()
    report = Report(base, options.seed)
    groups = [group for group in GROUPS if not options.group or group.name in options.group]
    todo = iter(tqdm(list(inputs(groups, options.inputs, options.only)), unit="input", disable=None))
    with contextlib.suppress(KeyboardInterrupt):
        run_all(todo, options.seed, seeds, base, Limits(options.seconds), options.jobs, report.add)
    print("\n".join(report.lines()))
    slowest = report.slowest
    print(f"{time.monotonic() - started:.0f} s; slowest: {slowest.group} {slowest.name!r}, {slowest.seconds:.1f} s")
    for part in base.glob("[!f]*"):  # all but the failures
        shutil.rmtree(part)
    if not report.kinds:
        base.rmdir()
    return 1 if report.kinds else 0


if __name__ == "__main__":
    sys.exit(main())
