"""Seconds per call, on a CPU by perf_counter, on a GPU by CUDA events behind a flushed L2 cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

SAMPLE_SECONDS = 0.02  # a sample lasts at least this long, so that the clock's own steps and a stray interrupt drown
MOST_CALLS = 1000
FLUSH_BYTES = 2**28  # more than any L2


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None

    def time(self, run: Callable[[], object], calls: int = 1) -> float:
        """Seconds per call: the mean on a CPU, the median on a GPU, where every call is timed by itself."""
        if self.flush is None:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start_event, end_event in events:
            # Besides emptying the cache this keeps the GPU busy while the host queues what is timed, so that a short
            # kernel is not charged for its launch; a chain of many launches still is, as in real use.
            self.flush.zero_()
            start_event.record()
            run()
            end_event.record()
        torch.cuda.synchronize(self.device)
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1000

    @staticmethod
    def calls(seconds: float) -> int:
        """How many calls of this length make one sample."""
        return max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / max(seconds, 1e-9))))
