"""Mask schedules: which share of the tokens is masked, how many that is at each step, and in which order they go.

A schedule is a function gamma of the progress r, from gamma(0) = 1 to gamma(1) = 0 without ever rising. They are those
of the paper (Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.3) and `arccos` of its
PyTorch reproduction (Besnier & Chen, 2023). Everything is computed in float64, so that exact cases come out exact:
256 cos(pi/3) is 128.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

# In the official code `exponential` and `logarithmic` depend on the number of tokens K, 1 - K ** (r - 1) and
# -log(r) / log(K), and are clipped to [1e-6, 1]: the one starts at 1 - 1/K, the other is infinite at 0. With K fixed
# (the tokens of its 256-pixel model), the first is divided by 1 - 1/K here, and the second takes r from 1/K to 1
# instead of from 0; both then hit the two ends and stay within 1/K of the originals' shape.
_K = 256

# Functions of (m, r), where m is `math` for a number r and `torch` for a tensor: they name their functions alike.
SCHEDULES: dict[str, Callable[[Any, Any], Any]] = {
    "cosine": lambda m, r: m.cos(r * (math.pi / 2)),
    "linear": lambda m, r: 1 - r,
    "square": lambda m, r: 1 - r**2,
    "cubic": lambda m, r: 1 - r**3,
    "exponential": lambda m, r: (1 - m.exp(math.log(_K) * (r - 1))) / (1 - 1 / _K),
    "sqrt": lambda m, r: 1 - m.sqrt(r),
    "logarithmic": lambda m, r: -m.log(r + (1 - r) / _K) / math.log(_K),
    "arccos": lambda m, r: m.acos(r) / (math.pi / 2),
}

# The progress r that step t of T steps has made.
PROGRESSES: dict[str, Callable[[int, int], float]] = {
    "after": lambda t, steps: (t + 1) / steps,
    "before": lambda t, steps: t / steps,
    "inclusive": lambda t, steps: t / (steps - 1) if steps > 1 else 1.0,
}

# What rounding may take from, or add to, a count that is a whole number in exact arithmetic.
_ROUNDING = 1e-9


@overload
def gamma(r: Tensor, schedule: str) -> Tensor: ...
@overload
def gamma(r: float, schedule: str) -> float: ...
def gamma(r: Tensor | float, schedule: str) -> Tensor | float:
    """The share of tokens masked at progress r.

    Args:
        r: progress in [0, 1], a float or a tensor of any shape.
        schedule: a key of SCHEDULES.

    Returns:
        float, or float64 tensor of r's shape and device, with gamma(0) = 1 and gamma(1) = 0 exactly.

    Raises:
        ValueError: an unknown schedule, or a float outside [0, 1] (a tensor is not looked at: that would stop a GPU's
            host).
    """
    check_schedule(schedule)
    # In float64 cos(pi / 2) is 6e-17; the ends are stated rather than computed.
    if isinstance(r, Tensor):
        r = r.to(torch.float64)
        return SCHEDULES[schedule](torch, r).masked_fill(r == 0, 1.0).masked_fill(r == 1, 0.0)
    if not 0 <= r <= 1:
        raise ValueError(f"r must be in [0, 1], got {r}")
    return 1.0 - r if r in (0, 1) else SCHEDULES[schedule](math, r)


def require_one_of(choices: Iterable[str], name: str, value: str) -> None:
    """Raise a ValueError, with the choices, unless the value called `name` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_schedule(schedule: str) -> None:
    """Raise a ValueError unless `schedule` names one."""
    require_one_of(SCHEDULES, "schedule", schedule)


def floor_count(share: Tensor | float, total: Tensor | int) -> Tensor:
    """floor(share * total) as int64, where a product that should be whole is not missed by rounding.

    Tensors of shares are float64, and so are the totals if the share is a number.
    """
    return torch.floor(torch.as_tensor(share * total) + _ROUNDING).to(torch.int64)


def ceil_count(share: Tensor | float, total: Tensor | int) -> Tensor:
    """ceil(share * total), likewise."""
    return torch.ceil(torch.as_tensor(share * total) - _ROUNDING).to(torch.int64)


# How many tokens stay masked, from (share, N0, remaining): gamma of the step's progress, the number masked at the
# start, float64 [B], and the number still masked before the step, int64 [B].
COUNTS: dict[str, Callable[[float, Tensor, Tensor], Tensor]] = {
    "official": lambda share, start, remaining: torch.minimum(floor_count(share, start).clamp(min=1), remaining - 1),
    "floor": lambda share, start, remaining: floor_count(share, start),
    "decisive": lambda share, start, remaining: torch.minimum(ceil_count(share, start), remaining - 1),
    "compound": lambda share, start, remaining: ceil_count(share, remaining.to(torch.float64)),
}


def mask_counts(
    num_masked: Tensor, steps: int, schedule: str, *, rule: str = "official", progress: str = "after"
) -> Tensor:
    """How many tokens stay masked after each decoding step: 0 after the last, whatever the rule.

    With r the step's progress, N0 the number masked at the start and `remaining` that before the step:

        official  clamp(floor(N0 * gamma(r)), 1, remaining - 1): the paper's official code. At least one token is
                  decided at each step, and at least one is left for the last.
        floor     floor(N0 * gamma(r)).
        decisive  min(ceil(N0 * gamma(r)), remaining - 1): N0 * (1 - gamma(r)) are decided, rounded down, but at least
                  one more at each step.
        compound  ceil(remaining * gamma(r)): the shares multiply up, so the tokens run out faster than gamma says.

    All scale the schedule to N0, so a small hole takes its steps too. Where the first and third would decide less than
    a token per step (fewer tokens than steps, above all), the tokens run out early, and the counts stay at 0.

    Args:
        num_masked: N0, int64 [B], the number masked at the start in each image.
        steps: T, at least 1.
        schedule, rule, progress: keys of SCHEDULES, COUNTS and PROGRESSES. r of step t is "after" the step,
            (t + 1) / T; "before" it, t / T; or "inclusive" of both ends, t / (T - 1).

    Returns:
        int64 [T, B] on the device of `num_masked`, which must have float64.

    Raises:
        ValueError: an unknown schedule, rule or progress, or steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    check_schedule(schedule)
    require_one_of(COUNTS, "counts", rule)
    require_one_of(PROGRESSES, "progress", progress)
    start, remaining, counts = num_masked.to(torch.float64), num_masked, []
    for step in range(steps - 1):
        share = gamma(PROGRESSES[progress](step, steps), schedule)
        remaining = COUNTS[rule](share, start, remaining).clamp(min=0)
        counts.append(remaining)
    counts.append(torch.zeros_like(num_masked))
    return torch.stack(counts)


@functools.cache
def halton_order(height: int, width: int) -> tuple[int, ...]:
    """The tokens of a grid in the order of the two-dimensional Halton sequence, which spreads early ones evenly.

    Point i = 1, 2, ... of the sequence is (i written in base 2, i written in base 3) mirrored at the radix point; the
    cell of the grid that it falls into is next, unless it has been before (Besnier et al., "Halton Scheduler for
    Masked Generative Image Transformer", ICLR 2025, section 4).

    Returns the height * width row-major positions, first to last. Raises ValueError: a side below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"the grid must have at least one row and one column, got {height} x {width}")
    order: dict[int, None] = {}  # keys in the order of their first visit
    index = 0
    while len(order) < height * width:
        index += 1
        order.setdefault(_halton_cell(index, 2, height) * width + _halton_cell(index, 3, width))
    return tuple(order)


def _halton_cell(index: int, base: int, cells: int) -> int:
    """Which of the equal cells of [0, 1) the radical inverse of `index` falls into, in exact arithmetic."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator * cells // denominator
