"""Seconds per call, of the device that computes.

On a GPU a call is timed by events around it, behind a write to memory that empties the L2 cache. Where calls are short,
each has a pause before it, for which the GPU spins: meanwhile the host queues the call, so that what is timed is the
GPU alone, whoever's the call and however long its host takes. What that leaves out is the host's time, which is a
figure of its own. Long calls are charged for their launches, as in real use.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SAMPLE_SECONDS = 0.02  # a sample lasts at least this long, so that the clock's own steps and a stray interrupt drown
MOST_CALLS = 1000
MOST_GPU_CALLS = 100  # each of which is timed by itself
FLUSH_BYTES = 2**28  # more than any L2
SHORT = 5e-4  # where a call is shorter than this, all that it is compared with have a pause too
SHORTEST_PAUSE = 1e-3  # seconds
CYCLES_PER_SECOND = 2e9  # of a GPU, about
QUEUED_SECONDS = 4e-3  # of a host that starts calls without waiting: some 800 launches, for which there is room


class Stopwatch:
    """What pytest-benchmark reads in the place of a clock: the seconds per call that `Clock` has measured meanwhile."""

    seconds = 0.0

    def read(self) -> float:
        """As time.perf_counter is read."""
        return self.seconds


class Pace(NamedTuple):
    """How an implementation is timed."""

    calls: int
    """In each sample."""
    pause: float
    """Seconds for which the GPU pauses before each of them."""
    seconds: float
    """That a sample takes, with everything around the calls."""


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush: torch.Tensor | None = None
        self.flush_seconds = 0.0
        if device.type == "cuda":
            self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
            self.flush_seconds = self.time(self.flush.zero_, 3)

    def time(self, run: Callable[[], object], calls: int = 1, pause: float = 0.0) -> float:
        """Seconds per call: the mean on a CPU, the median on a GPU, where every call is timed by itself.

        Args:
            pause: seconds for which the GPU pauses before each call, while the host queues it.
        """
        if self.flush is None:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start_event, end_event in events:
            self.flush.zero_()
            if pause:
                torch.cuda._sleep(round(pause * CYCLES_PER_SECOND))
            start_event.record()
            run()
            end_event.record()
        torch.cuda.synchronize(self.device)
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1000

    def host_time(self, run: Callable[[], object]) -> float | None:
        """Seconds that the host takes to start a call, on a GPU; a call that waits for the GPU has its time in it."""
        if self.flush is None:
            return None

        def seconds(calls: int) -> float:
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls

        run()
        once = seconds(1)
        return seconds(max(1, min(MOST_GPU_CALLS, int(QUEUED_SECONDS / max(once, 1e-9)))))

    def pace(self, seconds: float, pause: float) -> Pace:
        """How to take a sample of calls that take so many seconds each."""
        on_gpu = self.device.type == "cuda"
        each = seconds + self.flush_seconds + pause
        calls = max(1, min(MOST_GPU_CALLS if on_gpu else MOST_CALLS, round(SAMPLE_SECONDS / max(each, 1e-9))))
        return Pace(calls, pause, calls * each)


def pause_for(host_seconds: float | None) -> float:
    """A pause, in seconds, in which the host has surely queued a call that takes it so long."""
    return max(SHORTEST_PAUSE, 2 * (host_seconds or 0.0))
