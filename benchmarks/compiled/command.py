"""Compiles the kernels for GPUs that need not be there, and reads from the machine code what they will cost.

    python -m benchmarks.compiled                                 # every shipped kernel on every architecture
    python -m benchmarks.compiled --kernel forward dq --capability 80 90
    python -m benchmarks.compiled --json > report.json

A kernel module says what it ships in a function `builds(capability) -> list[Build]`. `benchmarks.compiled.report`
compiles and analyses each.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from benchmarks.compiled.architectures import ARCHITECTURES, why_not_analysed
from benchmarks.compiled.report import Failure, Report, report, require_compiler
from maskgit_kernels.build import Build

MODULES = (
    "maskgit_kernels.attention.triton_forward",
    "maskgit_kernels.attention.triton_backward",
    "maskgit_kernels.attention.triton_one_pass",
    "maskgit_kernels.decode_step.launch",
    "maskgit_kernels.head_sample.launch",
    "maskgit_kernels.head_loss.plan",
)

# A build can't be sent to another process, so it goes by its module, architecture and name.
_Task = tuple[str, int, str]


@functools.cache
def _builds(module: str, capability: int) -> list[Build]:
    return importlib.import_module(module).builds(capability)


def _tasks(modules: Iterable[str], capabilities: Iterable[int], parts_of_names: Iterable[str] = ("",)) -> list[_Task]:
    return [
        (module, capability, build.name)
        for capability in capabilities
        for module in modules
        for build in _builds(module, capability)
        if any(part in build.name for part in parts_of_names)
    ]


def _run(task: _Task) -> Report | Failure:
    module, capability, name = task
    build = next(build for build in _builds(module, capability) if build.name == name)
    try:
        return report(build, capability)
    except Exception as error:  # whatever it was, the other builds still want their rows
        cause: BaseException = error
        while cause.__cause__ is not None:  # Triton's says of each call that it failed, and of the innermost why
            cause = cause.__cause__
        return Failure(name, capability, [f"{type(cause).__name__}: {cause}"])


def _run_all(tasks: list[_Task], jobs: int) -> Iterator[Report | Failure]:
    """The reports, in the order of `tasks`, each as soon as it is there."""
    if jobs == 1:
        yield from map(_run, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_run, tasks)


_COLUMNS = (
    "kernel",
    "sm",
    "warps",
    "registers",
    "shared KiB",
    "blocks/SM, limited by",
    "instr./el.",
    "epilogue",
    "bytes/el.",
    "limit/el.",
    "matrix instructions",
    "MACs/ideal",
    "atomics",
)


def _largest_first(limits: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(limits.items(), key=lambda item: -item[1])


def table(rows: Iterable[Report | Failure]) -> str:
    """The reports as a Markdown table, and under it the faults."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    faults = []
    for row in rows:
        faults += [f"- **{row.name}, sm_{row.capability}**: {fault}" for fault in row.faults]
        if isinstance(row, Report):
            cells = (
                row.name,
                row.capability,
                row.num_warps,
                row.registers,
                f"{row.shared / 1024:.1f}",
                f"{row.blocks}, {row.blocks_limit}",
                f"{row.per_element:.1f}" if row.per_element else "",
                f"{row.epilogue_per_element:.1f}" if row.epilogue_per_element else "",
                f"{row.bytes_per_element:.2g}" if row.bytes_per_element else "",
                ", ".join(f"{name} {time:.1f}" for name, time in _largest_first(row.limits)),
                ", ".join(f"{count} {kind}" for kind, count in sorted(row.matrix_instructions.items())),
                f"{row.padding:.2f}" if row.padding is not None else "",
                row.atomics or "",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines + ([""] + faults if faults else []))


_LEGEND = """\
columns of the table:
  registers             per thread; kernels that spill are faulty
  shared KiB            shared memory per thread block
  blocks/SM             thread blocks that fit on one multiprocessor, and what keeps more of them out
  instr./el.            instructions of all threads in one pass of the main loop, per score, logit, ... that it handles
  epilogue              likewise for what follows the main loop, or what the loop around it has besides
  bytes/el.             read from global memory in the main loop, padding included
  limit/el.             how long the main loop must take by what it issues, by special functions (exp2, log2), by bytes
                        from the L2 cache and by tensor cores, the longest first, in instructions that could have been
                        issued in that time: see benchmarks.compiled.architectures.bounds
  matrix instructions   tensor-core instructions in one pass of the main loop
  MACs/ideal            multiply-adds that they do, against those that would do if no tile were padded
  atomics               in the PTX

exit status: 0 if every build is fit to be shipped, 1 if one has a fault (listed under the table, and in the JSON),
2 if nothing can be compiled here.
"""


def _architecture(text: str) -> int:
    """A key of ARCHITECTURES, or the reason why it is none."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no ten times a compute capability, such as 90")
    if reason := why_not_analysed(int(text)):
        raise argparse.ArgumentTypeError(f"{reason}; analysed are {', '.join(map(str, ARCHITECTURES))}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled",
        description="Compile the Triton kernels for GPUs that need not be there, and report what they will cost.",
        epilog=_LEGEND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--capability",
        type=_architecture,
        nargs="+",
        metavar="NUMBER",
        default=list(ARCHITECTURES),
        help="architectures: " + ", ".join(f"{number} ({sm.gpus})" for number, sm in ARCHITECTURES.items()),
    )
    parser.add_argument(
        "--kernel", nargs="+", default=[""], metavar="TEXT", help="only builds with one of these in their name"
    )
    parser.add_argument(
        "--module",
        nargs="+",
        default=MODULES,
        metavar="NAME",
        help="modules whose builds(capability) to compile; by default those of maskgit_kernels",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list in place of the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes; default: %(default)s")
    options = parser.parse_args(argv)
    try:
        require_compiler()
    except RuntimeError as error:
        parser.error(str(error))
    tasks = _tasks(options.module, options.capability, options.kernel)
    if not tasks:
        parser.error(f"no build has {' or '.join(map(repr, options.kernel))} in its name")

    rows = []
    for row in _run_all(tasks, options.jobs):
        rows.append(row)
        print(f"[{len(rows)}/{len(tasks)}] sm_{row.capability} {row.name}", file=sys.stderr)
    if options.json:
        print(json.dumps([asdict(row) | {"faults": row.faults} for row in rows], indent=2))
    else:
        print(table(rows))
    return int(any(row.faults for row in rows))
