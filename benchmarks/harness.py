"""What is compared: implementations of one job, and the time that each takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch


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
    start: Callable[[], None] | None = None
    """What its program does to its process when it is started."""


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
    apart: bool = False
    """On a CPU, give each implementation a process of its own, as programs have: for long jobs."""
    warm_up: int = 0
    """Calls before the first that is timed, besides the check."""
    weighed: bool = False
    """Measure a call's memory on a CPU too, which takes one more call of each, and a slow one."""
    targets: list[Target] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Implementations that were not tried, and why."""


Maker = Callable[[], Comparison]
"""Makes a comparison with its inputs and models, in the process that is to time it; so it has to be picklable."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one implementation, one for each round, in order."""

    seconds: list[float]
    calls: int
    """Calls in each round."""
    peak_bytes: int | None = None
    """Memory that a call allocates on top of its inputs, at its peak; on a CPU what PyTorch's allocator hands out."""
    flops: float = 0
    host_seconds: float | None = None
    """That the host takes to start a call, on a GPU."""

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
