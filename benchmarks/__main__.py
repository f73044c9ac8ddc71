"""Measure the kernels, the models and the baselines; from a checkout of the repository.

    python -m benchmarks                                 # everything: about half an hour on a 2-core CPU
    python -m benchmarks --quick                         # shows that it runs: tiny shapes, under a minute
    python -m benchmarks --only decode-step lab          # some suites
    python -m benchmarks --compare outputs/benchmarks/OLD/results.json

An implementation is timed only if its result is right. Results go to OUTPUT/DEVICE-VERSION-DATE: results.json,
results.md, and plots where matplotlib is installed. docs/benchmarks.md explains the suites and the figures.

Exit status: 0; 1 if a result was wrong, a promised figure was missed or something has become slower; 2 for impossible
options.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.clock import Clock
from benchmarks.hardware import describe, measure_peaks
from benchmarks.report import Report, load_rows, regressions, slug
from benchmarks.setting import Setting
from benchmarks.suites import STATIC, SUITES, Suite, measure
from maskgit.console import printable_lines
from maskgit.pipeline import resolve_device


@dataclass(frozen=True)
class Options:
    """What to measure."""

    only: tuple[Suite, ...] = ()
    """Suites to run; by default all. attention, decode-step, head-sample: the kernels. forward, ceiling: the
    transformer against plain eager code, and against bare matrix products. lab, tokens: against the loops of other
    people's programs. decoding, inpaint, training: what a user waits for. static: what is known without running, by
    counting and by compiling."""
    quick: bool = False
    """Tiny shapes and two rounds."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one."""
    output: Path = Path("outputs/benchmarks")
    """Folder in which each run gets one of its own."""
    compare: Path | None = None
    """results.json of an older run on the same machine: report what has become slower."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks", description=__doc__)
    try:
        device = resolve_device(None if options.device == "auto" else options.device)
        key = describe(device)
        old = load_rows(options.compare, key, options.quick) if options.compare else {}
    except ValueError as error:
        print(printable_lines(f"error: {error}"), file=sys.stderr)
        return 2
    setting = Setting(device, options.quick)
    report = Report(key, options.quick, measure_peaks(device, Clock(device), options.quick))
    folder = options.output / slug(f"{key['device']} torch {key['torch']} {key['date']}")
    print("\n".join(f"{name:>10}: {value}" for name, value in key.items()))
    if device.type != "cuda":
        print("No GPU here: the PyTorch path is timed on the CPU, and no GPU figure exists.")

    for suite in options.only or (*SUITES, STATIC):
        started = time.monotonic()
        print(f"\n{suite}", flush=True)
        measure(suite, setting, report)
        report.save(folder)  # after each suite, so that a run that is broken off leaves something
        print(f"({time.monotonic() - started:.0f} s)")
    return _conclude(report, folder, regressions(old, report.rows))


def _conclude(report: Report, folder: Path, slower: list[str]) -> int:
    try:
        from benchmarks.plots import draw

        draw(report, folder)
    except ImportError:
        print("\nNo plots: matplotlib is not installed (pip install 'maskgit-inpaint[bench]').")
    print(f"\nResults: {folder}")
    for promise in report.promises:
        measured = "not measured" if promise.measured is None else f"{promise.measured:.2f}"
        verdict = "holds" if promise.holds else "DOES NOT HOLD"
        print(f"  {verdict:>13}  {promise.name}: {measured} (promised {promise.at_least:g})")
    for line in report.failures:
        print(f"FAILED  {line}", file=sys.stderr)
    for line in slower:
        print(f"SLOWER  {line}", file=sys.stderr)
    return int(bool(report.failures or slower))


if __name__ == "__main__":
    sys.exit(main())
