"""Carries out planned comparisons one after another in this process, and writes each result at once."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.bench import LocalBench
from benchmarks.clock import Clock
from benchmarks.gpu.files import write
from benchmarks.hardware import describe, measure_peaks
from benchmarks.harness import Comparison, Maker
from benchmarks.report import Report, Row, duration
from benchmarks.setting import Setting
from benchmarks.turns import compare

SECONDS, ROUNDS = 0.3, 3  # for timing one comparison, and its fewest rounds
QUICK_SECONDS, QUICK_ROUNDS = 0.0, 2


@dataclass(frozen=True)
class Planned:
    """A comparison, and what of it is left out for want of time."""

    make: Maker
    left_out: tuple[str, ...] = ()

    def __call__(self) -> Comparison:
        comparison = self.make()
        gone = {case.implementation for case in comparison.cases} & set(self.left_out)
        cases = [case for case in comparison.cases if case.implementation not in gone]
        reasons = dict.fromkeys(gone, "left out of the short run: slow to compile")
        return dataclasses.replace(comparison, cases=cases, left_out={**comparison.left_out, **reasons})


def measure(
    plan: Sequence[Planned],
    setting: Setting,
    file: Path,
    seconds: float,
    first: int = 0,
    restart: Callable[[int], None] = lambda _: None,
) -> Report:
    """Carry out a plan, write the report after each comparison, and stop when so many seconds are over.

    Args:
        file: JSON, as results.json of `python -m benchmarks`.
        first: where to begin; before it, the file's own results stay.
        restart: called with the number of the next comparison when an error has left the GPU unusable for this process.
    """
    device, started = setting.device, time.monotonic()
    report = Report(describe(device), setting.quick, measure_peaks(device, Clock(device), setting.quick))
    if first:
        report.rows = [Row(**row) for row in json.loads(file.read_text())["rows"]]
    each, fewest = (QUICK_SECONDS, QUICK_ROUNDS) if setting.quick else (SECONDS, ROUNDS)
    for number, make in enumerate(plan[first:], first):
        if time.monotonic() - started > seconds:
            print(f"the time is up: {len(plan) - number} of {len(plan)} comparisons were not made")
            break
        began = time.monotonic()
        try:
            bench = lambda: contextlib.nullcontext(LocalBench())  # noqa: E731
            rows = report.add(compare(make, device, report.peaks, each, fewest, bench=bench))
        except Exception as error:  # such as too little memory: it costs this comparison alone
            traceback.print_exc()
            rows = [Row("", f"comparison {number}", "", "refused", f"{type(error).__name__}: {error}"[:200])]
            report.rows += rows
        for row in rows:
            what = f"{duration(row.p50):>9} {row.speedup:7.2f} x" if row.status == "timed" else row.reason
            print(f"    {row.implementation:<28} {row.status:<8} {what}")
        write(file, asdict(report) | {"planned": len(plan), "done": number + 1})
        print(f"    ({time.monotonic() - began:.1f} s)", flush=True)
        if setting.on_gpu and not _usable():
            print("    the GPU is lost to this process; another one goes on", flush=True)
            restart(number + 1)
    return report


def _usable() -> bool:
    """Whether this process can still use the GPU: after an access to a wrong address nothing works."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def program(
    name: str,
    description: str,
    plan: Callable[[Setting], Sequence[Planned]],
    more: Callable[[Setting, Path], list[str]] = lambda *_: [],
) -> int:
    """A step that measures, as a command: its options, its plan, and what else it does when that is done.

    Args:
        more: returns what went wrong.

    Returns:
        The exit status: 1 if a result of ours was wrong.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.gpu.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("--seconds", type=float, default=160.0, help="start no comparison after so many")
    parser.add_argument("--first", type=int, default=0, help="go on from this comparison, counted from 0")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and two rounds")
    options = parser.parse_args()
    started = time.monotonic()
    setting = Setting(torch.device("cuda" if torch.cuda.is_available() else "cpu"), options.quick)

    def restart(first: int) -> None:
        left = options.seconds - (time.monotonic() - started)
        arguments = [str(options.result), "--seconds", f"{left:.0f}", "--first", str(first)]
        quick = ["--quick"] if options.quick else []
        os.execv(sys.executable, [sys.executable, "-m", f"benchmarks.gpu.{name}", *arguments, *quick])

    report = measure(plan(setting), setting, options.result, options.seconds, options.first, restart)
    failures = report.failures + more(setting, options.result)
    for line in failures:
        print(f"FAILED  {line}")
    return int(bool(failures))
