"""How many tokens every preset leaves masked by every schedule, restated in mpmath from the sources."""

from __future__ import annotations

import functools
from collections.abc import Callable

import mpmath

K = 256
GAMMAS: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "cosine": lambda r: mpmath.cos(mpmath.pi * r / 2),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "exponential": lambda r: (1 - mpmath.mpf(K) ** (r - 1)) / (1 - mpmath.mpf(1) / K),
    "sqrt": lambda r: 1 - mpmath.sqrt(r),
    "logarithmic": lambda r: -mpmath.log(r + (1 - r) / K, K),
    "arccos": lambda r: 2 * mpmath.acos(r) / mpmath.pi,
}


@functools.cache
def gamma(schedule: str, numerator: int, denominator: int) -> mpmath.mpf:
    with mpmath.workdps(40):
        return GAMMAS[schedule](mpmath.mpf(numerator) / denominator)


def floor(x: mpmath.mpf) -> int:
    return int(mpmath.floor(x + mpmath.mpf(10) ** -30))


def ceil(x: mpmath.mpf) -> int:
    return -floor(-x)


def left(name: str, schedule: str, t: int, steps: int, start: int, remaining: int) -> int:
    """Tokens still masked after step t = 0, 1, ..."""
    if t == steps - 1 or remaining == 0:
        return 0
    with mpmath.workdps(40):
        if name == "maskgit":
            wanted = max(1, floor(start * gamma(schedule, t + 1, steps)))
            return min(wanted, remaining - 1)
        if name in ("lab-perturbed", "lab-sampled"):
            return floor(start * gamma(schedule, t, steps))
        if name == "lab-greedy":
            return ceil(remaining * gamma(schedule, t + 1, steps))
        # Decided so far: what the schedule says, but at least one more than before.
        share = gamma(schedule, t, steps - 1) if name == "valeo" else gamma(schedule, t + 1, steps)
        return start - max(floor(start * (1 - share)), start - remaining + 1)


def all_left(name: str, schedule: str, steps: int, start: int) -> list[int]:
    counts, remaining = [], start
    for t in range(steps):
        remaining = left(name, schedule, t, steps, start, remaining)
        counts.append(remaining)
    return counts
