"""What a GPU has to show, within minutes and without a network; from a checkout of the repository.

    python -m benchmarks.gpu OUT                 # 10 minutes
    python -m benchmarks.gpu OUT --minutes 6     # every step's limit shrinks in proportion
    python -m benchmarks.gpu OUT --minutes 3 --only environment comparisons
    python -m benchmarks.gpu OUT --quick         # a rehearsal on any machine: tiny sizes, no figure means anything
    python -m benchmarks.gpu OUT --dry-run       # the plan, on any machine: each step's limit and its command

Each step is a process with a time limit of its own; one that fails or runs out of time doesn't stop those after it.
OUT/summary.json holds all results and is written anew after each step, as is OUT/summary.md, which is to be read;
OUT/log.txt is what the steps printed. docs/gpu.md says what each step proves and where results are collected.

Exit status: 0 if every step passed, 1 otherwise, 2 for impossible options.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.process import run
from benchmarks.gpu.steps import LOG, MINUTES, STEPS, plan
from benchmarks.gpu.summary import Summary

LEAST_SECONDS = 5.0  # in which a step can still do something


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the results; made if missing")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all steps together (default: %(default)g)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on a CPU too: shows that everything runs")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes:g}")
    out, on_gpu = options.out.resolve(), torch.cuda.is_available()
    there = on_gpu or options.dry_run
    steps = plan(out, on_gpu=there, quick=options.quick, minutes=options.minutes, only=options.only)
    if options.dry_run:
        for step in steps:
            print(f"{step.name}: {step.proves} (at most {step.seconds:.0f} s)\n  python {' '.join(step.command)}")
        return 0
    if not (on_gpu or options.quick):
        parser.error("there is no NVIDIA GPU here; --quick rehearses on a CPU")

    # A process that is told to end takes its step along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).unlink(missing_ok=True)
    summary = Summary(out, options.quick, options.minutes)
    deadline = time.monotonic() + 60 * options.minutes
    for step in steps:
        limit = min(step.seconds, deadline - time.monotonic())
        print(f"{step.name}: {step.proves} (at most {max(limit, 0):.0f} s)", flush=True)
        if limit < LEAST_SECONDS:
            summary.not_started(step, "the time was up")
        elif missing := step.missing():
            summary.not_started(step, f"{' and '.join(missing)} can't be imported: see docs/gpu.md")
        else:
            if step.result is not None:
                step.result.unlink(missing_ok=True)  # of an earlier run
            summary.add(step, run(step, limit, out / LOG))
        print(f"  {summary.last_line()}", flush=True)
    print(f"\n{summary.to_markdown()}\nResults: {options.out}")
    return int(not summary.passed)


if __name__ == "__main__":
    sys.exit(main())
