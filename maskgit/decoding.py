"""Iterative parallel decoding: pure functions over a `tokens_to_logits` callable.

Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.2. At each step every masked token
is predicted at once; the most confident predictions are kept, the rest are masked again, by a schedule that ends with
nothing masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgit.schedules import check_schedule, mask_counts
from maskgit_kernels import check_draw, decode_step


@dataclass(frozen=True)
class DecodeConfig:
    """How tokens are decoded. Raises a ValueError if a value makes no sense."""

    steps: int = 8
    """T, the number of steps; each is one pass through the transformer."""

    schedule: str = "cosine"
    """Share left masked as a function of progress: a key of `maskgit.schedules.SCHEDULES`."""

    draw: str = "categorical"
    """How a token is drawn from its distribution: categorical, greedy or perturbed (see `decode_step`)."""

    confidence: str = "log_prob"
    """What ranks the drawn tokens: log_prob or prob, plus the annealed Gumbel noise."""

    softmax_temperature: float = 1.0
    """Divides the logits. Below 1 the likely tokens become likelier."""

    choice_temperature: float = 4.5
    """tau0, the weight of the Gumbel noise on the confidence; annealed as tau0 * (1 - (t + 1) / T)."""

    stop_after: int | None = None
    """Stop after this many of the T steps and fill what is left from the last prediction ("sweet spot")."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        check_schedule(self.schedule)
        check_draw(self.draw, self.confidence)
        if not (self.softmax_temperature > 0 and math.isfinite(self.softmax_temperature)):
            raise ValueError(f"softmax_temperature must be positive and finite, got {self.softmax_temperature}")
        if not (self.choice_temperature >= 0 and math.isfinite(self.choice_temperature)):
            raise ValueError(f"choice_temperature must be at least 0 and finite, got {self.choice_temperature}")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.steps:
            raise ValueError(f"stop_after must be in [1, {self.steps}], the steps, got {self.stop_after}")


DECODERS: dict[str, DecodeConfig] = {
    # The paper's official code, google-research/maskgit, maskgit/libml/parallel_decode.py.
    "maskgit": DecodeConfig(),
}


@torch.no_grad()
def decode_steps(
    tokens_to_logits: Callable[[Tensor], Tensor],
    tokens: Tensor,
    masked: Tensor,
    config: DecodeConfig,
    seeds: Tensor,
    *,
    mask_token_id: int,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Fill the masked tokens step by step, without waiting for the device in between. No gradients are recorded.

    An image's tokens depend only on its own tokens, mask and seed, as far as that holds for `tokens_to_logits`.

    Args:
        tokens_to_logits: maps int64 [B, N], masked tokens set to `mask_token_id`, to float logits [B, N, at least V].
        tokens: int64 [B, N]; what they hold where masked does not matter. Not modified.
        masked: bool [B, N], True = to be filled; any number per image, none and all included. Not modified.
        config: see `DecodeConfig`.
        seeds: int64 [B], one per image.
        mask_token_id: V. Ids from V on are never drawn.

    Yields:
        (step, tokens, masked) after each of the config's steps: tokens int64 [B, N] hold a prediction wherever they
        were masked before the step, masked bool [B, N] says which of them are still open. None are after the last.

    Raises:
        ValueError: arguments that do not fit each other; NaN logits on a CPU (see `decode_step`).
    """
    if tokens.dim() != 2 or masked.shape != tokens.shape:
        raise ValueError(f"tokens and masked must both be [B, N], got {tuple(tokens.shape)} and {tuple(masked.shape)}")
    # A table for every possible number of masked tokens, looked up on the device: the host need not know the numbers,
    # and the device need not know float64.
    table = mask_counts(torch.arange(tokens.shape[1] + 1), config.steps, config.schedule)  # [T, N + 1]
    counts = table.to(tokens.device)[:, masked.sum(1)]  # [T, B]

    last = (config.stop_after or config.steps) - 1
    for step in range(last + 1):
        logits = tokens_to_logits(tokens.masked_fill(masked, mask_token_id))
        tokens, masked = decode_step(
            logits,
            tokens,
            masked,
            counts[step] if step < last else torch.zeros_like(counts[step]),
            seeds=seeds,
            step=step,
            num_codes=mask_token_id,
            softmax_temperature=config.softmax_temperature,
            choice_temperature=config.choice_temperature * (1 - (step + 1) / config.steps),
            draw=config.draw,
            confidence=config.confidence,
        )
        yield step, tokens, masked


def decode(
    tokens_to_logits: Callable[[Tensor], Tensor],
    tokens: Tensor,
    masked: Tensor,
    config: DecodeConfig,
    seeds: Tensor,
    *,
    mask_token_id: int,
) -> Tensor:
    """Fill the masked tokens: the last tokens, int64 [B, N], that `decode_steps` yields."""
    result = tokens
    for _, step_tokens, _ in decode_steps(tokens_to_logits, tokens, masked, config, seeds, mask_token_id=mask_token_id):
        result = step_tokens
    return result
