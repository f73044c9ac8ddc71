"""What a decoding step is told besides logits: the state of the images and how to draw, for both operators that do one.

Every implementation takes the two as they are. Only the public functions and the operators' schemas spell them out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = ("categorical", "greedy", "perturbed")
CONFIDENCES = ("log_prob", "prob")


class State(NamedTuple):
    """The images in the middle of decoding; see `decode_step`."""

    tokens: Tensor
    """int64 [B, N]."""
    masked: Tensor
    """bool [B, N]."""
    n_keep_masked: Tensor
    """int64 [B]."""
    seeds: Tensor
    """int64 [B]."""


class Settings(NamedTuple):
    """How a step draws; see `decode_step`."""

    step: int
    softmax_temperature: float = 1.0
    choice_temperature: float = 0.0
    draw: str = "categorical"
    confidence: str = "log_prob"
    guidance_scale: float = 0.0

    def check(self) -> None:
        """Raise a ValueError for a setting that makes no sense."""
        if not 0 <= self.step < 2**32:
            raise ValueError(f"step must be in [0, 2**32), got {self.step}")
        temperature = self.softmax_temperature
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(
                f"softmax_temperature must be positive and finite, got {temperature} (its limit 0 is draw='greedy')"
            )
        if not (self.choice_temperature >= 0 and math.isfinite(self.choice_temperature)):
            raise ValueError(f"choice_temperature must be at least 0 and finite, got {self.choice_temperature}")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be finite, got {self.guidance_scale}")
        check_draw(self.draw, self.confidence)


def check_draw(draw: str, confidence: str) -> None:
    """Raise a ValueError unless the two name a way to draw tokens and a confidence that goes with it."""
    if draw not in DRAWS:
        raise ValueError(f"draw must be one of {', '.join(DRAWS)}, got {draw!r}")
    if confidence not in CONFIDENCES:
        raise ValueError(f"confidence must be one of {', '.join(CONFIDENCES)}, got {confidence!r}")
    if draw == "perturbed" and confidence != "prob":
        raise ValueError("draw='perturbed' has the perturbed probability as its confidence: pass confidence='prob'")


def check_tensors(
    state: State, what: str, given: Tensor, **others: tuple[Tensor | None, torch.dtype, list[int]]
) -> None:
    """Raise a ValueError for a tensor that does not fit `given`, which is [B, N, ...].

    Args:
        what: "logits are", say: begins the sentence that names the device of `given`.
        others: tensors besides the state, each with its dtype and shape; None fits.
    """
    size = list(given.shape[:2])
    expected = {
        "tokens": (state.tokens, torch.int64, size),
        "masked": (state.masked, torch.bool, size),
        "n_keep_masked": (state.n_keep_masked, torch.int64, size[:1]),
        "seeds": (state.seeds, torch.int64, size[:1]),
        **others,
    }
    for name, (tensor, dtype, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.dtype != dtype or list(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {dtype} of shape {shape}, got {tensor.dtype} of shape {list(tensor.shape)}"
            )
        if tensor.device != given.device:
            raise ValueError(f"{name} is on {tensor.device}, but {what} on {given.device}")


def new_state(tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Room for a step's results, contiguous: tokens int64 [B, N] and masked bool [B, N]."""
    contiguous = torch.contiguous_format
    return torch.empty_like(tokens, memory_format=contiguous), torch.empty_like(masked, memory_format=contiguous)
