"""A bench: where implementations are made, checked and called; in this process, or in one of its own."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch

from benchmarks.clock import Clock, Pace
from benchmarks.harness import Case, Comparison, Maker, WrongResultError
from maskgit_kernels import backend

if TYPE_CHECKING:
    from typing_extensions import Self

Result = TypeVar("Result")


@dataclass(frozen=True)
class Verdict:
    """What became of an implementation before it is timed."""

    status: Literal["good", "refused", "skipped"]
    reason: str = ""
    peak_bytes: int | None = None
    """Memory of a call, where it was asked for."""
    host_seconds: float | None = None
    """That the host takes to start a call, on a GPU."""


class Bench(Protocol):
    """Where some of a comparison's implementations are."""

    def make(self, make: Maker, device: torch.device) -> tuple[Comparison, dict[str, float | None]]:
        """Make a comparison; returns it without its cases, and of these names and `flops`."""

    def prepare(self, names: list[str]) -> dict[str, Verdict]:
        """Check these implementations and let go of all others; call those that are good as often as is asked for."""

    def pace(self, seconds: float, pause: float) -> Pace:
        """How to time calls of that length."""

    def time(self, name: str, calls: int, pause: float) -> float:
        """Seconds per call."""


class LocalBench:
    """In this process."""

    def make(self, make: Maker, device: torch.device) -> tuple[Comparison, dict[str, float | None]]:
        backend.use("auto")  # whatever MASKGIT_KERNELS says: the suites choose
        torch.manual_seed(0)
        self._clock, self._comparison = Clock(device), make()
        flops = {case.implementation: case.flops for case in self._comparison.cases}
        return dataclasses.replace(self._comparison, cases=[]), flops

    def prepare(self, names: list[str]) -> dict[str, Verdict]:
        chosen = [case for case in self._comparison.cases if case.implementation in names]
        self._comparison.cases.clear()
        for case in chosen:
            if case.start is not None:
                case.start()
        verdicts = {case.implementation: self._verify(case) for case in chosen}
        self._runs = {case.implementation: case.run for case in chosen}  # without what the checks compared with
        del chosen
        gc.collect()
        for name, verdict in verdicts.items():
            if verdict.status == "good":
                peak_bytes = self._peak_bytes(name)
                for _ in range(self._comparison.warm_up):
                    self._runs[name]()
                host_seconds = self._clock.host_time(self._runs[name])
                verdicts[name] = dataclasses.replace(verdict, peak_bytes=peak_bytes, host_seconds=host_seconds)
        gc.collect()
        return verdicts

    def pace(self, seconds: float, pause: float) -> Pace:
        return self._clock.pace(seconds, pause)

    def time(self, name: str, calls: int, pause: float) -> float:
        return self._clock.time(self._runs[name], calls, pause)

    @staticmethod
    def _verify(case: Case) -> Verdict:
        try:
            case.verify()
        except WrongResultError as error:
            return Verdict("refused", str(error))
        except Exception as error:  # whatever a foreign implementation raises where it can't run
            # An error of our own is a wrong result too, and must not cost the figures of everything else.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            return Verdict("skipped" if case.optional else "refused", reason)
        return Verdict("good")

    def _peak_bytes(self, name: str) -> int | None:
        run, device = self._runs[name], self._clock.device
        if device.type != "cuda":
            return _peak_bytes_on_cpu(run) if self._comparison.weighed else None
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before


def _peak_bytes_on_cpu(run: Callable[[], object]) -> int:
    for _ in range(2):  # the profiler knows the size of what is freed only if it has seen it allocated
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


class Apart:
    """A fresh process, which nothing that ran before has left a mark on."""

    def __init__(self) -> None:
        # Forked from a process that has imported everything and done nothing, or a start would take seconds.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload(["benchmarks.suites"])
        self._pool = ProcessPoolExecutor(1, context)

    def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Call a function of a module there."""
        return self._pool.submit(work, *arguments).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


class ProcessBench(Apart):
    """In a process of its own."""

    def make(self, make: Maker, device: torch.device) -> tuple[Comparison, dict[str, float | None]]:
        return self.run(_call, "make", make, device)

    def prepare(self, names: list[str]) -> dict[str, Verdict]:
        try:
            return self.run(_call, "prepare", names)
        except BrokenProcessPool:
            return dict.fromkeys(names, Verdict("refused", "its process died; was there too little memory?"))

    def pace(self, seconds: float, pause: float) -> Pace:
        return self.run(_call, "pace", seconds, pause)

    def time(self, name: str, calls: int, pause: float) -> float:
        return self.run(_call, "time", name, calls, pause)


_bench = LocalBench()  # of a process that was started for one


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_bench, method)(*arguments)
