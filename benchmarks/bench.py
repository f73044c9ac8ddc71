"""Where implementations are made, checked and called: in this process, or in one of its own."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.clock import Clock, Pace
from benchmarks.harness import Case, Comparison, WrongResultError
from maskgit.memory import keep_freed_memory
from maskgit_kernels import backend


@dataclass(frozen=True)
class Verdict:
    """What became of an implementation before it is timed."""

    status: Literal["good", "refused", "skipped"]
    reason: str = ""
    flops: float = 0
    """Floating-point operations of a call's matrix products."""
    dtype: torch.dtype = torch.float32
    """In which these are computed."""
    kernel: str = ""
    """See `Case`."""
    peak_bytes: int | None = None
    """Memory that a call allocates on top of its inputs, at its peak; on a CPU what PyTorch's allocator hands out."""
    host_seconds: float | None = None
    """That the host takes to start a call, on a GPU."""


class Bench:
    """Some of a comparison's implementations, in this process: checked, and warm."""

    def __init__(self, comparison: Comparison, clock: Clock, names: Sequence[str]) -> None:
        backend.use("auto")  # whatever MASKGIT_KERNELS says: the suites choose
        torch.manual_seed(0)
        self._clock, self._comparison = clock, comparison
        made = comparison.make()
        cases = {name: made[name] for name in names}
        del made  # and with it what only others need
        for case in cases.values():
            if case.start is not None:
                case.start()
        self.verdicts = {name: self._verify(case) for name, case in cases.items()}
        self._runs = {name: case.run for name, case in cases.items()}  # without what the checks compared with
        del cases
        gc.collect()
        for name, verdict in self.verdicts.items():
            if verdict.status == "good":
                self.verdicts[name] = self._warm_up(self._runs[name], verdict)
        gc.collect()

    def time(self, name: str, pace: Pace) -> float:
        """Seconds per call."""
        return self._clock.time(self._runs[name], pace.calls, pace.pause)

    def close(self) -> None:
        """Let go of the models and inputs, before others are made."""
        self._runs.clear()
        gc.collect()

    def _verify(self, case: Case) -> Verdict:
        flops = self._comparison.flops if case.flops is None else case.flops
        try:
            case.verify()
        except WrongResultError as error:
            return Verdict("refused", str(error))
        except Exception as error:  # whatever a foreign implementation raises where it can't run
            # An error of our own is a wrong result too, and must not cost the figures of everything else.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            return Verdict("skipped" if case.optional else "refused", reason)
        return Verdict("good", flops=flops, dtype=case.dtype or self._comparison.dtype, kernel=case.kernel)

    def _warm_up(self, run: Callable[[], object], verdict: Verdict) -> Verdict:
        device = self._clock.device
        peak_bytes = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            torch.cuda.synchronize(device)
            peak_bytes = torch.cuda.max_memory_allocated(device) - before
        elif self._comparison.weighed:
            peak_bytes = _peak_bytes_on_cpu(run)
        for _ in range(self._comparison.warm_up):
            run()
        return dataclasses.replace(verdict, peak_bytes=peak_bytes, host_seconds=self._clock.host_time(run))


def _peak_bytes_on_cpu(run: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of each start, and that there is no GPU
    for _ in range(2):  # the profiler knows the size of what is freed only if it has seen it allocated
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


class Apart:
    """The same in a fresh process, which nothing that ran before has left a mark on."""

    def __init__(self, comparison: Comparison, clock: Clock, names: Sequence[str]) -> None:
        # Forked from a process that has imported everything and done nothing, or a start would take seconds.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload(["benchmarks.suites"])
        self._pool = ProcessPoolExecutor(1, context)
        try:
            self.verdicts = self._pool.submit(_open, comparison, clock, names).result()
        except BrokenProcessPool:
            dead = Verdict("refused", "its process died; was there too little memory?")
            self.verdicts = dict.fromkeys(names, dead)

    def time(self, name: str, pace: Pace) -> float:
        """Seconds per call."""
        return self._pool.submit(_time, name, pace).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


# In the process that was started:
_bench: Bench


def _open(comparison: Comparison, clock: Clock, names: Sequence[str]) -> dict[str, Verdict]:
    global _bench
    if not comparison.apart:
        # Where implementations share a process, chance decides which of them finds its memory given back to the system:
        # written-out attention took 11 or 25 ms by that alone.
        keep_freed_memory()
    _bench = Bench(comparison, clock, names)
    return _bench.verdicts


def _time(name: str, pace: Pace) -> float:
    return _bench.time(name, pace)
