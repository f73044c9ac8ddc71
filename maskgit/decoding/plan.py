"""What a `DecodeConfig` comes to for images of N tokens: how many stay masked after each step, and in which order."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from maskgit.decoding.config import DecodeConfig
from maskgit.decoding.schedules import floor_count, halton_order, mask_counts


class DecodePlan(NamedTuple):
    """What a config comes to for images of N tokens: the tables that the loop needs, on the images' device."""

    counts: Tensor
    """int64 [S, N + 1]: how many of 0 ... N tokens masked at first are still masked after each of the S steps."""

    order: Tensor | None
    """int64 [N]: the positions in the order in which they are kept; None where the confidence decides."""

    places: Tensor | None
    """int64 [N]: each position's place in `order`."""

    remasked: Tensor | None
    """int64 [S, N + 1]: how many of the tokens that `counts` leaves masked were decided before the step; None where
    none are."""


def remask_counts(counts: Tensor, eta: float) -> Tensor:
    """How many decided tokens each step masks again: ReMDM with its rescaled schedule, in numbers of tokens.

    Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling", NeurIPS 2025, section 4. There a
    step from time t to s, with shares alpha_t and alpha_s of the tokens decided, masks each decided token again with
    probability

        sigma_t = eta * min(1, (1 - alpha_s) / alpha_t)        ("ReMDM-rescale")

    and decides each masked one with probability (alpha_s - (1 - sigma_t) * alpha_t) / (1 - alpha_t), so that the
    expected share decided is alpha_s as without. Here the numbers are exact instead of expected. With n_t and n_s of N0
    tokens masked before and after the step,

        R = floor(eta * min(N0 - n_t, n_s)),

    which is sigma_t times the N0 - n_t decided ones, rounded down: R of them, drawn evenly, are masked again, and so
    many more of the masked ones are decided that n_s are masked after the step. Those are chosen as the decoder chooses
    (by confidence or place), where the paper draws them evenly too. At the last step n_s = 0 and R = 0.

    Args:
        counts: n_s, int64 [S, N + 1] as in `DecodePlan`.
        eta: in [0, 1].

    Returns:
        R, int64 [S, N + 1].
    """
    before = _before(counts)
    return floor_count(eta, torch.minimum(before[0] - before, counts).to(torch.float64))


def decode_plan(
    config: DecodeConfig,
    num_tokens: int,
    device: torch.device | str = "cpu",
    *,
    grid: tuple[int, int] | None = None,
) -> DecodePlan:
    """Make the tables for `decode_steps`, which makes its own if it isn't given any.

    A CUDA graph needs them beforehand, because making them copies from the host.

    Args:
        num_tokens: N.
        device: where the images are.
        grid: (rows, columns) of the tokens, for order="halton"; square by default.

    Raises ValueError: a grid that doesn't have N cells, or none given where N isn't a square.
    """
    # One column for every possible number of masked tokens, looked up on the device: the host need not know the
    # numbers, and the device need not know float64.
    counts = mask_counts(
        torch.arange(num_tokens + 1), config.steps, config.schedule, rule=config.counts, progress=config.progress
    )[: config.stop_after]
    counts[-1] = 0
    remasked = remask_counts(counts, config.remask).to(device) if config.remask else None
    if config.order == "confidence":
        return DecodePlan(counts.to(device), None, None, remasked)
    rows, columns = grid or (math.isqrt(num_tokens),) * 2
    if rows * columns != num_tokens:
        raise ValueError(f"the grid must have {num_tokens} tokens for order='halton', got {rows} x {columns}")
    order = torch.tensor(halton_order(rows, columns))
    return DecodePlan(counts.to(device), order.to(device), order.argsort().to(device), remasked)


def masked_counts(config: DecodeConfig, num_tokens: int, most_masked: int) -> list[int]:
    """How many of N tokens at most are masked in an image before each of the S steps: numbers in [0, N].

    `most_masked` is at least the number of tokens masked at first in any image: the less, the less work. Raises
    ValueError: it isn't in [0, N].
    """
    return _up_to(config, num_tokens, most_masked)[0].amax(1).tolist()


def changed_counts(config: DecodeConfig, num_tokens: int, most_masked: int) -> list[int]:
    """As `masked_counts`, for what is masked at a step or was so at the step before it: numbers in [1, N].

    The first step has nothing before it and gets N.
    """
    before, remasked = _up_to(config, num_tokens, most_masked)
    return [num_tokens, *(before + remasked)[:-1].amax(1).clamp(min=1).tolist()]


def _up_to(config: DecodeConfig, num_tokens: int, most_masked: int) -> tuple[Tensor, Tensor]:
    """int64 [S, most_masked + 1] both: how many are masked before each step, and how many it masks again."""
    if not 0 <= most_masked <= num_tokens:
        raise ValueError(f"most_masked must be in [0, {num_tokens}], got {most_masked}")
    # The order has no say in numbers.
    plan = decode_plan(dataclasses.replace(config, order="confidence"), num_tokens)
    remasked = torch.zeros_like(plan.counts) if plan.remasked is None else plan.remasked
    return _before(plan.counts)[:, : most_masked + 1], remasked[:, : most_masked + 1]


def _before(counts: Tensor) -> Tensor:
    """How many are masked before each step, from how many are after it: int64 [S, N + 1] both."""
    return torch.cat([torch.arange(counts.shape[1], device=counts.device)[None], counts[:-1]])
