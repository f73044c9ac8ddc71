"""Comparisons: implementations of one job, each verified first and then timed in turn.

The order A, B, A, B, ... makes a change in the machine's speed (another process, a clock that drops) hit all alike, and
a ratio is taken within each round before the median over the rounds. What fails its check is refused, never timed.
"""

from __future__ import annotations

import gc
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.clock import Clock
from benchmarks.hardware import Peaks

FEWEST_ROUNDS, MOST_ROUNDS = 5, 50


class WrongResultError(Exception):
    """An implementation that does not compute what it is compared for; the message says by how much."""


@dataclass(frozen=True)
class Case:
    """One implementation of a comparison's job."""

    implementation: str
    run: Callable[[], object]
    """One call, all of it: what is timed."""
    verify: Callable[[], None]
    """Raises WrongResultError; called once before anything is timed."""
    optional: bool = False
    """Somebody else's, which may not exist for these inputs: an error when it is first called is reported, no more."""
    flops: float | None = None
    """Floating-point operations of a call, where they differ from the comparison's."""


@dataclass(frozen=True)
class Target:
    """A figure that the project promises."""

    name: str
    at_least: float
    measure: Callable[[Mapping[str, Timing]], float]
    """From each implementation's timing; KeyError where one of them was not timed."""


@dataclass
class Comparison:
    """One job and its implementations."""

    suite: str
    name: str
    cases: list[Case]
    baseline: str
    """The implementation that speed-ups are measured from."""
    item: str = "call"
    items: int = 1
    """What a call makes: 8 images, 1 step."""
    bytes: float = 0
    """That have to move between memory and processor in a call, each once; 0: not counted."""
    flops: float = 0
    """Floating-point operations of a call's matrix products; 0: not counted."""
    dtype: torch.dtype = torch.float32
    """In which the products are computed."""
    rounds: int | None = None
    """Fixed number of rounds of one call each, for long jobs; None: as many as fit in the time."""
    weighed: bool = False
    """Measure a call's memory on a CPU too, which takes one more call of each, and a slow one."""
    targets: list[Target] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Implementations that were not tried, and why."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one implementation, one for each round, in order."""

    seconds: list[float]
    calls: int
    """Calls in each round."""
    peak_bytes: int | None = None
    """Memory that a call allocates on top of its inputs, at its peak; on a CPU what PyTorch's allocator hands out."""
    flops: float = 0

    def percentile(self, percent: int) -> float:
        """Between the two nearest rounds, in proportion."""
        return float(np.percentile(self.seconds, percent))

    @property
    def median(self) -> float:
        return self.percentile(50)


def speedup(timings: Mapping[str, Timing], ours: str, over: str) -> float:
    """How many times as fast `ours` is, per operation if they don't do the same work: the median of the rounds."""
    pairs = zip(timings[over].seconds, timings[ours].seconds, strict=True)
    work = timings[ours].flops / timings[over].flops if timings[over].flops else 1.0
    return work * statistics.median(theirs / mine for theirs, mine in pairs)


@dataclass
class Outcome:
    """What became of a comparison."""

    comparison: Comparison
    timings: dict[str, Timing]
    refused: dict[str, str]
    """Implementations whose results are wrong, and how."""
    skipped: dict[str, str]
    """Implementations that do not exist here, and why."""
    floor: float | None
    """Seconds that the hardware needs at least; None where nothing was counted."""


def compare(comparison: Comparison, clock: Clock, peaks: Peaks, seconds: float, fewest: int = FEWEST_ROUNDS) -> Outcome:
    """Verify, then time, in `seconds` or in `fewest` rounds if those take longer."""
    outcome = Outcome(comparison, {}, {}, dict(comparison.left_out), None)
    if comparison.bytes or comparison.flops:
        outcome.floor = peaks.floor(comparison.bytes, comparison.flops, comparison.dtype)
    good = list(_verified(comparison, outcome))
    calls = {case.implementation: 1 for case in good}
    rounds = comparison.rounds
    if rounds is None:
        once = {case.implementation: clock.time(case.run) for case in good}
        calls = {name: clock.calls(each) for name, each in once.items()}
        round_seconds = sum(calls[name] * each for name, each in once.items())
        rounds = max(fewest, min(MOST_ROUNDS, round(seconds / max(round_seconds, 1e-9))))
    memory = {case.implementation: _peak_bytes(case, clock.device, comparison.weighed) for case in good}
    samples: dict[str, list[float]] = {case.implementation: [] for case in good}
    gc.collect()
    for _ in range(rounds):
        for case in good:
            name = case.implementation
            samples[name].append(clock.time(case.run, calls[name]))
    for case in good:
        name = case.implementation
        flops = comparison.flops if case.flops is None else case.flops
        outcome.timings[name] = Timing(samples[name], calls[name], memory[name], flops)
    return outcome


def _verified(comparison: Comparison, outcome: Outcome) -> Iterator[Case]:
    for case in comparison.cases:
        try:
            case.verify()
        except WrongResultError as error:
            outcome.refused[case.implementation] = str(error)
        except Exception as error:  # whatever a foreign implementation raises where it can't run
            # An error of our own is a wrong result too, and must not cost the figures of everything else.
            (outcome.skipped if case.optional else outcome.refused)[case.implementation] = _first_line(error)
        else:
            yield case


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _peak_bytes(case: Case, device: torch.device, weighed: bool) -> int | None:
    if device.type != "cuda":
        return _peak_bytes_on_cpu(case) if weighed else None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    case.run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_bytes_on_cpu(case: Case) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        case.run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))
