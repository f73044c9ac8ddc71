"""Mask schedules: which share of the tokens is masked, as a function gamma of the progress r.

All go from gamma(0) = 1 to gamma(1) = 0 and never rise. They are those of the paper (Chang et al., "MaskGIT: Masked
Generative Image Transformer", CVPR 2022, section 3.3) and `arccos` of its PyTorch reproduction (Besnier & Chen, 2023).
Everything is computed in float64, so that exact cases come out exact: 256 cos(pi/3) is 128.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# In the official code `exponential` and `logarithmic` depend on the number of tokens K, 1 - K ** (r - 1) and
# -log(r) / log(K), and are clipped to [1e-6, 1]: the one starts at 1 - 1/K, the other is infinite at 0. With K fixed
# (the tokens of its 256-pixel model), the first is divided by 1 - 1/K here, and the second takes r from 1/K to 1
# instead of from 0; both then hit the two ends and stay within 1/K of the originals' shape.
_K = 256

SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda r: torch.cos(r * (math.pi / 2)),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "exponential": lambda r: (1 - torch.exp(math.log(_K) * (r - 1))) / (1 - 1 / _K),
    "sqrt": lambda r: 1 - torch.sqrt(r),
    "logarithmic": lambda r: -torch.log(r + (1 - r) / _K) / math.log(_K),
    "arccos": lambda r: torch.arccos(r) / (math.pi / 2),
}

# What rounding may take from, or add to, a count that is a whole number in exact arithmetic.
_ROUNDING = 1e-9


def gamma(r: Tensor | float, schedule: str) -> Tensor:
    """The share of tokens masked at progress r.

    Args:
        r: progress in [0, 1], a float or a tensor of any shape.
        schedule: a key of SCHEDULES.

    Returns:
        float64 tensor of r's shape and device, with gamma(0) = 1 and gamma(1) = 0 exactly.

    Raises:
        ValueError: an unknown schedule, or a float outside [0, 1] (a tensor is not looked at: that would stop a GPU's
            host).
    """
    check_schedule(schedule)
    if not isinstance(r, Tensor):
        if not 0 <= r <= 1:
            raise ValueError(f"r must be in [0, 1], got {r}")
        r = torch.tensor(r, dtype=torch.float64)
    r = r.to(torch.float64)
    # In float64 cos(pi / 2) is 6e-17; the ends are stated rather than computed.
    return SCHEDULES[schedule](r).masked_fill(r == 0, 1.0).masked_fill(r == 1, 0.0)


def check_schedule(schedule: str) -> None:
    """Raise a ValueError unless `schedule` names one."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")


def floor_count(share: Tensor, total: Tensor | int) -> Tensor:
    """floor(share * total) as int64, where a product that should be whole is not missed by rounding."""
    return torch.floor(share * total + _ROUNDING).to(torch.int64)


def ceil_count(share: Tensor, total: Tensor | int) -> Tensor:
    """ceil(share * total) as int64, where a product that should be whole is not missed by rounding."""
    return torch.ceil(share * total - _ROUNDING).to(torch.int64)


def mask_counts(num_masked: Tensor, steps: int, schedule: str) -> Tensor:
    """How many tokens stay masked after each decoding step.

    The rule of the paper's official code: clamp(floor(N0 * gamma((t + 1) / T)), 1, remaining - 1) after step t, so at
    least one token is decided at each step, and 0 after the last. The schedule is scaled to N0, so a small hole takes
    its steps too. Where it would decide less than a token per step (fewer tokens than steps, above all), the tokens
    run out early, and the counts stay at 0.

    Args:
        num_masked: N0, int64 [B], the number masked at the start in each image.
        steps: T, at least 1.
        schedule: a key of SCHEDULES.

    Returns:
        int64 [T, B] on the device of `num_masked`.

    Raises:
        ValueError: an unknown schedule, or steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    remaining, counts = num_masked, []
    for step in range(steps - 1):
        wanted = floor_count(gamma((step + 1) / steps, schedule).to(num_masked.device), num_masked).clamp(min=1)
        remaining = torch.minimum(wanted, remaining - 1).clamp(min=0)
        counts.append(remaining)
    counts.append(torch.zeros_like(num_masked))
    return torch.stack(counts)
