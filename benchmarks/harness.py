"""How a comparison is declared: implementations of one job, the first of which is the baseline of all ratios.

What is known of a comparison is plain data, so that it can be collected, named and sent to another process; its inputs
and models are made by `make`, in the process that times them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch


class WrongResultError(Exception):
    """An implementation that does not compute what it is compared for; the message says by how much."""


@dataclass(frozen=True)
class Case:
    """One implementation, ready to be called."""

    run: Callable[[], object]
    """One call, all of it: what is timed."""
    verify: Callable[[], None]
    """Raises WrongResultError; called once before anything is timed."""
    optional: bool = False
    """Somebody else's, which may not exist for these inputs: an error when it is first called is reported, no more."""
    flops: float | None = None
    """Floating-point operations of a call, where they differ from the comparison's."""
    dtype: torch.dtype | None = None
    """In which its products are computed, where that is not the comparison's."""
    start: Callable[[], None] | None = None
    """What its program does to its process when it is started."""
    kernel: str = ""
    """Which one it chooses for these inputs, where that is of interest."""


@dataclass(frozen=True)
class Comparison:
    """One job and its implementations."""

    group: str
    """What is compared: "attention-forward"."""
    name: str
    """For which inputs: "lab-b8-bf16"."""
    implementations: Mapping[str, str]
    """Each with the reason why it can't be timed here, "" where it can; the baseline first."""
    make: Callable[[], dict[str, Case]]
    """Makes inputs, models and the implementations that can be timed here; it has to be picklable."""
    shape: Mapping[str, object] = field(default_factory=dict)
    """Of the inputs, to be read beside the figures."""
    dtype: torch.dtype = torch.float32
    """In which the products are computed."""
    item: str = "call"
    items: int = 1
    """What a call makes: 8 images, 1 step."""
    bytes: float = 0
    """That have to move between memory and processor in a call, each once; 0: not counted."""
    flops: float = 0
    """Floating-point operations of a call's matrix products; 0: not counted."""
    rounds: int | None = None
    """Fixed number of rounds of one call each, for long jobs; None: as many as fit in the time."""
    apart: bool = False
    """On a CPU, give each implementation a process of its own, as programs have: for long jobs."""
    warm_up: int = 0
    """Calls before the first that is timed, besides the check."""
    weighed: bool = False
    """Measure a call's memory on a CPU too, which takes one more call of each, and a slow one."""

    @property
    def job(self) -> str:
        """Under which its implementations stand together."""
        return f"{self.group}/{self.name}"

    @cached_property
    def baseline(self) -> str:
        """The implementation that speed-ups are measured from."""
        return next(iter(self.implementations))
