"""Times the attention kernels' tilings on the GPU at hand, and writes the fastest into a table.

    python -m benchmarks.tune --output tuned.json --seconds 60

The table is the package's own, maskgit_kernels/attention/tuned.json, with the rows of this GPU renewed: copied over it,
GPUs of the same name use what was found without timing anything. A tiling must first give what the reference gives.
That is seen to in several processes, since most of the time goes into compiling; then one alone has the GPU. The
file is written anew after each kernel and size, so what is there when the time is up, or the process killed, is usable.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskgit.files import write_atomically
from maskgit_kernels.attention import tuned
from maskgit_kernels.attention.reference import attention_reference
from maskgit_kernels.attention.tiling import Tiling, candidates
from maskgit_kernels.attention.triton_op import heads_merged
from maskgit_kernels.backend import capability_of, interpreting, why_not_triton


@dataclass(frozen=True)
class Case:
    """A kernel and what it is given: bfloat16 [batch, heads, length, head_dim]."""

    kernel: str  # one of tiling.KERNELS
    batch: int
    heads: int
    length: int
    head_dim: int
    dropout: bool = False

    def __str__(self) -> str:
        size = f"B={self.batch} H={self.heads} N={self.length} D={self.head_dim}"
        return f"{self.kernel}, {size}{', dropout' if self.dropout else ''}"

    @property
    def key(self) -> dict[str, Any]:
        return tuned.key(self.kernel, self.head_dim, "half", self.dropout, self.length)

    def candidates(self, capability: int) -> list[Tiling]:
        return candidates(self.kernel, capability, self.head_dim, "half", self.dropout, self.length)


_SIZES = ((64, 16, 256, 48), (64, 8, 257, 96), (16, 8, 1025, 96))  # "lab", "maskgit-256" and "maskgit-512"
# What decoding needs comes first, then what training does.
CASES = (
    *(Case("forward", *size) for size in _SIZES),
    *(Case(kernel, *_SIZES[0], dropout=True) for kernel in ("forward", "dq", "dk_dv")),
    *(Case(kernel, *size) for size in _SIZES for kernel in ("dq", "dk_dv")),
)

_DROPOUT_P = 26 / 256
_LARGEST_ERROR = 2e-2  # of the largest number in a result: several roundings to bfloat16, and far from any mistake
_CALLS, _ROUNDS = 10, 15


class Run:
    """Runs a case on a device, with whatever tiling."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        packed = torch.randn(case.batch, case.length, 4, case.heads, case.head_dim, device=device)
        self.q, self.k, self.v, self.grad = packed.to(torch.bfloat16).permute(2, 0, 3, 1, 4)  # [B, H, N, D] each
        self.seed = torch.ones(1, dtype=torch.int64, device=device) if case.dropout else None
        self.dropout_p = _DROPOUT_P if case.dropout else 0.0
        self.out, self.dq, self.dk, self.dv = (heads_merged(x) for x in (self.q, self.q, self.k, self.v))
        self.lse = torch.empty(self.q.shape[:3], dtype=torch.float32, device=device)
        self.results = {"forward": [self.out], "dq": [self.dq], "dk_dv": [self.dk, self.dv]}[case.kernel]
        if case.kernel != "forward":
            self._forward()

    def __call__(self, tiling: Tiling) -> None:
        """Write the results. Both backward kernels run, one with this tiling, the other with its usual one."""
        from maskgit_kernels.attention import launch, triton_backward

        with launch.impose(self.case.kernel, tiling):
            if self.case.kernel == "forward":
                self._forward()
            else:
                given = self.grad, self.q, self.k, self.v, self.out, self.lse, self.seed, self.dropout_p
                triton_backward.backward(*given, self.case.head_dim**-0.5, self.dq, self.dk, self.dv)

    def _forward(self) -> None:
        from maskgit_kernels.attention import triton_forward

        scale = self.case.head_dim**-0.5
        triton_forward.forward(self.q, self.k, self.v, self.seed, self.dropout_p, scale, self.out, self.lse)

    def reference(self) -> list[Tensor]:
        """What the results must be, in float32."""
        q, k, v = (x.float().requires_grad_() for x in (self.q, self.k, self.v))
        out = attention_reference(q, k, v, dropout_p=self.dropout_p, seed=self.seed)
        out.backward(self.grad.float())
        found = {"forward": [out.detach()], "dq": [q.grad], "dk_dv": [k.grad, v.grad]}[self.case.kernel]
        return [x for x in found if x is not None]


def is_right(case: Case, tiling: Tiling, device: torch.device) -> bool:
    """Whether a tiling compiles, fits on the GPU and gives the reference's results, for one image."""
    run = Run(replace(case, batch=1), device)
    for x in run.results:
        x.fill_(torch.nan)
    try:
        run(tiling)
    except Exception as error:  # whatever it was, the other tilings are still to be tried
        print(f"{case}: {tiling}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    pairs = zip(run.results, run.reference(), strict=True)
    return all((x.float() - y).abs().max() <= _LARGEST_ERROR * y.abs().max() for x, y in pairs)


Job = tuple[Case, Tiling]


def right_ones(jobs: list[Job], device: torch.device, processes: int, deadline: float) -> Iterator[Job]:
    """Those that `is_right`, as far as that is known at the deadline (of time.monotonic)."""
    if processes == 1:
        for job in jobs:
            if time.monotonic() < deadline and is_right(*job, device):
                yield job
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        verdicts = pool.map(
            is_right, *zip(*jobs, strict=True), [device] * len(jobs), timeout=deadline - time.monotonic()
        )
        yield from (job for job, right in zip(jobs, verdicts, strict=True) if right)
    except TimeoutError:
        return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


Clock = Callable[[list[Callable[[], None]]], list[float]]


def clock(calls: list[Callable[[], None]]) -> list[float]:
    """Microseconds that each call takes on the GPU: the median of rounds in which they take turns, as CUDA graphs."""
    graphs = []
    for call in calls:
        call()  # compiles, which can't be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_CALLS):
                call()
        graphs.append(graph)
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(_ROUNDS):
        for graph, of_graph in zip(graphs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            of_graph.append(start.elapsed_time(end) * 1000 / _CALLS)
    return [statistics.median(of_graph) for of_graph in times]


def fastest(case: Case, tilings: list[Tiling], device: torch.device, time_calls: Clock) -> dict[str, Any]:
    """A row of the table for a case, of these tilings."""
    from triton import __version__ as triton_version

    run = Run(case, device)
    times = time_calls([functools.partial(run, tiling) for tiling in tilings])
    best = min(range(len(tilings)), key=times.__getitem__)
    microseconds = [round(time, 2) for time in times]
    return case.key | {
        "tiling": asdict(tilings[best]),
        "case": str(case),
        "microseconds": microseconds[best],
        "others": [[asdict(x), time] for x, time in zip(tilings, microseconds, strict=True)],
        "torch": torch.__version__,
        "triton": triton_version,
    }


def tune(
    cases: Iterable[Case],
    device: torch.device,
    output: Path,
    seconds: float,
    processes: int,
    time_calls: Clock = clock,
) -> None:
    """Write the table to `output`, row by row; see the module.

    Args:
        seconds: after which no case is begun. Two thirds of them at most are for telling which tilings are right.
        processes: that compile.
    """
    from maskgit_kernels.attention.launch import name_of

    start = time.monotonic()
    capability, gpu = capability_of(device), name_of(device)
    jobs = [(case, tiling) for case in cases for tiling in case.candidates(capability)]
    right: dict[Case, list[Tiling]] = {}
    for case, tiling in right_ones(jobs, device, processes, start + seconds * 2 / 3):
        right.setdefault(case, []).append(tiling)
    table = tuned.load(tuned.TABLE)
    for case, tilings in right.items():
        if time.monotonic() > start + seconds:
            print("the time is up", file=sys.stderr)
            return
        row = fastest(case, tilings, device, time_calls)
        others = [row for row in table.get(gpu, []) if not row.items() >= case.key.items()]
        table[gpu] = [*others, row]
        write_atomically({output: f"{json.dumps(table, indent=1)}\n".encode()})
        print(f"{case}: {row['microseconds']} us, {tilings[0]} takes {row['others'][0][1]}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune",
        description="Time the attention kernels' tilings on this GPU, and write a table with the fastest.",
        epilog="exit status: 0 if a table was written, 1 if the time was too short for that, 2 if there is no GPU",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the table")
    parser.add_argument("--seconds", type=float, default=300, metavar="N", help="time limit; default: %(default)s")
    options = parser.parse_args(argv)
    device = torch.device("cuda")
    if not torch.cuda.is_available():
        parser.error("nothing can be timed here: there is no NVIDIA GPU")
    if reason := "TRITON_INTERPRET is set" if interpreting() else why_not_triton(device):
        parser.error(f"nothing can be timed here: {reason}")
    options.output.unlink(missing_ok=True)
    tune(CASES, device, options.output, options.seconds, processes=min(12, os.cpu_count() or 1))
    return int(not options.output.exists())


if __name__ == "__main__":
    from benchmarks import tune as module

    sys.exit(module.main())  # not this module's own: under the name __main__ other processes would not know its classes
