"""Checks the Triton kernels on the machine at hand: each operator against its reference, beside plain PyTorch.

    python -m benchmarks.verify                              # on an NVIDIA GPU
    TRITON_INTERPRET=1 python -m benchmarks.verify --quick   # without one, in Triton's interpreter
    python -m benchmarks.verify --only attention --json report.json --junit report.xml

A line for each check: our error against the exact result (root mean square), PyTorch's own in the same precision, their
ratio, and the most that ours may be: twice PyTorch's. For samplers an error is the share of positions that differ from
the reference although no near tie excuses them, or a chi-square statistic. Memory is filled with NaN before a kernel
runs, so what it leaves unwritten shows.

Exit status: 0 if all is well, 1 if something failed, 2 if nothing can run here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import time
from pathlib import Path

import torch

from maskgit.files import write_atomically
from maskgit_kernels.backend import interpreting, why_not_triton

_PATIENCE = {"cuda": 60.0, "cpu": 600.0}  # seconds for one task: minutes are usual where kernels are interpreted


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
    if reason := why_not_triton(device):
        print(f"The kernels can't run here: {reason}", file=sys.stderr)
        return 2

    # Not before: these import Triton.
    from benchmarks.verify.catalogue import OPERATORS, tasks
    from benchmarks.verify.report import HEADING, Report
    from benchmarks.verify.workers import run

    unknown = set(options.only) - set(OPERATORS)
    if unknown:
        print(f"--only knows {', '.join(OPERATORS)}, not {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    for path in filter(None, (options.json, options.junit)):
        if not path.parent.is_dir():
            print(f"{path}: there is no folder {path.parent}", file=sys.stderr)
            return 2
    on_gpu = device.type == "cuda"
    todo = tasks(on_gpu, options.quick, tuple(options.only or OPERATORS))
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU, in Triton's interpreter"
    report = Report(name, torch.__version__, importlib.metadata.version("triton"), len(todo))
    print(f"{name}, PyTorch {report.torch}, Triton {report.triton}: {len(todo)} tasks, {options.jobs} at a time")
    print(HEADING, flush=True)

    start = time.perf_counter()
    for outcome in run(todo, options.jobs, device, _PATIENCE[device.type]):
        for check in report.add(outcome):
            print(check, flush=True)
        if options.json:
            write_atomically({options.json: report.as_json().encode()})
        if options.junit:
            write_atomically({options.junit: report.as_junit().encode()})
    seconds = time.perf_counter() - start
    print(
        f"{report.passed} passed, {report.failed} failed in {seconds:.0f} s, "
        f"with {report.compilations} compilations of kernels"
    )
    return 1 if report.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="OPERATOR", help="these operators only")
    parser.add_argument("--quick", action="store_true", help="a few checks of each operator")
    parser.add_argument("--jobs", type=int, default=_cpus(), help="processes; 1 is this one alone [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here, after each task")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="likewise, as JUnit's XML")
    return parser


def _cpus() -> int:
    """Those that this process may use, up to 12: each process takes a second to start CUDA, and memory for it."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 12)


if __name__ == "__main__":
    sys.exit(main())
