"""A comparison, carried out under pytest-benchmark: checked first, then each implementation in turn with the baseline.

Each round of an implementation begins with one of the baseline: a change in the machine's speed (another process, a
clock that drops) hits both alike, and a ratio is taken within each round before the median over the rounds. The
baseline's own figures are those of all its rounds beside the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.bench import Apart, Bench
from benchmarks.clock import SHORT, Clock, Pace, Stopwatch, pause_for
from benchmarks.hardware import Peaks, short
from benchmarks.harness import Comparison
from maskgit.machine import device_name

MOST_ROUNDS = 50


class Measurement:
    """Of one comparison, whose implementations are checked and ready when it is made; the others are let go.

    Args:
        names: of the implementations; the baseline among them.
        stopwatch: what the benchmark fixture reads the time from.
        seconds, fewest: for the rounds of each implementation of short calls, and how many there are at least.
        place: makes benches, in this process or in fresh ones.
    """

    def __init__(
        self,
        comparison: Comparison,
        names: Sequence[str],
        clock: Clock,
        stopwatch: Stopwatch,
        seconds: float,
        fewest: int,
        place: type[Bench] | type[Apart],
    ) -> None:
        self.comparison, self._clock, self._stopwatch = comparison, clock, stopwatch
        self._seconds, self._fewest = seconds, fewest
        apart, on_gpu = comparison.apart and place is Apart, clock.device.type == "cuda"
        self._benches = [place(comparison, clock, some) for some in ([[name] for name in names] if apart else [names])]
        self.verdicts = {name: verdict for bench in self._benches for name, verdict in bench.verdicts.items()}
        good = {name for name, verdict in self.verdicts.items() if verdict.status == "good"}
        self._bench_of = {name: bench for bench in self._benches for name in bench.verdicts if name in good}
        self._paces = dict.fromkeys(self._bench_of, Pace(calls=1, pause=0.0, seconds=0.0))
        if comparison.rounds is None:
            pauses = dict.fromkeys(self._bench_of, 0.0)
            if on_gpu:
                pauses = {name: pause_for(self.verdicts[name].host_seconds) for name in self._bench_of}
            # Behind a pause: a kernel whose host is slow would pass for a long one.
            once = {name: bench.time(name, Pace(1, pauses[name], 0.0)) for name, bench in self._bench_of.items()}
            is_short = min(once.values(), default=SHORT) < SHORT
            self._paces = {name: clock.pace(once[name], pauses[name] if is_short else 0.0) for name in once}
        self.baseline_seconds: list[float] = []
        """Of all rounds beside the others."""

    def close(self) -> None:
        """End its processes."""
        for bench in self._benches:
            bench.close()

    def run(self, name: str, benchmark: Any, peaks: Peaks) -> None:
        """Time an implementation with pytest-benchmark's fixture, and note what belongs to its figures.

        A wrong result fails, and what does not exist here is skipped.
        """
        verdict, baseline = self.verdicts[name], self.comparison.baseline
        if verdict.status == "refused":
            pytest.fail(verdict.reason, pytrace=False)
        if verdict.status == "skipped":
            pytest.skip(verdict.reason)
        seconds: list[float] = []
        theirs: list[float] = []
        beside = baseline in self._bench_of and name != baseline
        again = list(self.baseline_seconds) if name == baseline else []

        def setup() -> None:
            self._stopwatch.seconds = 0.0  # so that no digit of a short call is lost
            if beside:
                theirs.append(self._time(baseline))

        def target() -> None:
            seconds.append(again[len(seconds)] if again else self._time(name))
            self._stopwatch.seconds = seconds[-1]

        both = (name, baseline) if beside else (name,)
        benchmark.pedantic(target, setup=setup, rounds=len(again) or self._rounds(both), iterations=1)
        self.baseline_seconds += theirs
        work = verdict.flops / self.verdicts[baseline].flops if beside and self.verdicts[baseline].flops else 1.0
        ratios = [work * a / b for a, b in zip(theirs, seconds, strict=True)] if beside else [1.0]
        benchmark.extra_info.update(self._facts(name, float(np.median(seconds)), peaks))
        if beside or name == baseline:
            low, middle, high = (float(x) for x in np.percentile(ratios, (20, 50, 80)))
            benchmark.extra_info.update(speedup=middle, speedup_p20=low, speedup_p80=high)

    def _time(self, name: str) -> float:
        return self._bench_of[name].time(name, self._paces[name])

    def _rounds(self, names: Sequence[str]) -> int:
        if self.comparison.rounds is not None:
            return self.comparison.rounds
        round_seconds = sum(self._paces[name].seconds for name in names)
        return max(self._fewest, min(MOST_ROUNDS, round(self._seconds / max(round_seconds, 1e-9))))

    def _facts(self, name: str, median: float, peaks: Peaks) -> dict[str, Any]:
        comparison, verdict = self.comparison, self.verdicts[name]
        facts: dict[str, Any] = {
            "check": "passed",
            "device": device_name(self._clock.device),
            "torch": torch.__version__,
            "implementation": name,
            "baseline": comparison.baseline,
            "dtype": short(verdict.dtype),
            "shape": dict(comparison.shape),
            "item": comparison.item,
            "items": comparison.items,
            "calls": self._paces[name].calls,
            "bytes": comparison.bytes,
            "flops": verdict.flops,
            "peak_bytes": verdict.peak_bytes,
            "host_seconds": verdict.host_seconds,
            "kernel": verdict.kernel,
        }
        theirs = self.verdicts.get(comparison.baseline)
        if verdict.peak_bytes and theirs and theirs.peak_bytes:
            facts["memory_saved"] = theirs.peak_bytes / verdict.peak_bytes
        if verdict.flops:
            facts["of_ceiling"] = verdict.flops / median / peaks.product(verdict.dtype)
        if verdict.flops == comparison.flops and (comparison.flops or comparison.bytes):
            facts["of_floor"] = median / peaks.floor(comparison.bytes, comparison.flops, verdict.dtype)
        return facts
