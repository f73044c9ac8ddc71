"""Iterative parallel decoding: pure functions over a `tokens_to_logits` callable.

Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.2. At each step every masked token
is predicted at once; some predictions are kept, the rest are masked again, by a schedule that ends with nothing
masked.

A step's tokens are drawn by `decode_step` from logits, or by `head_sample` from what the model's head multiplies:

    what it computes    kernels/maskgit_kernels/decode_step/reference.py, and its kernel in triton_draw.py beside it
    its test            tests/kernels/test_decode_step.py, of the kernel tests/kernels/test_decode_step_triton.py
    its benchmark       python -m benchmarks --only decode-step

and likewise for head_sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskgit.decoding.config import DecodeConfig
from maskgit.decoding.plan import DecodePlan, decode_plan
from maskgit_kernels.decode_step import decode_step
from maskgit_kernels.head_sample import head_sample
from maskgit_kernels.philox import STREAM_REMASK, random_words


def decode_steps(
    tokens_to_logits: Callable[[Tensor], Tensor],
    tokens: Tensor,
    masked: Tensor,
    config: DecodeConfig,
    seeds: Tensor,
    *,
    mask_token_id: int,
    tokens_to_guided: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    head: tuple[Tensor, Tensor | None] | None = None,
    plan: DecodePlan | None = None,
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
        tokens_to_guided: maps the same to a pair of logits, with the condition and without it, as one pass through
            the model can give them. It is asked instead of `tokens_to_logits` at the steps whose guidance isn't 0.
        head: weight [V, D] and bias, [V] or [N, V], of the model's last product, or None. With it the two callables
            give what it multiplies, [B, N, D], and `head_sample` makes the logits as it sees fit, or none.
        plan: `decode_plan(config, N, device)`, made here if it is missing.

    Yields:
        (step, tokens, masked) after each of the config's steps: tokens int64 [B, N] hold a prediction wherever they
        were masked before the step, masked bool [B, N] says which are open after it. None are after the last. A token
        that is masked again is still there until it is replaced.

    Raises:
        ValueError: arguments that do not fit each other; NaN logits on a CPU (see `decode_step`).
    """
    if tokens.dim() != 2 or masked.shape != tokens.shape:
        raise ValueError(f"tokens and masked must both be [B, N], got {tuple(tokens.shape)} and {tuple(masked.shape)}")
    if config.guidance_scale != 0 and tokens_to_guided is None:
        raise ValueError(f"guidance_scale is {config.guidance_scale}, but tokens_to_guided is missing")
    if plan is None:
        plan = decode_plan(config, tokens.shape[1], tokens.device)
    holes, num_holes = masked, masked.sum(1)  # [B, N], [B]
    counts = plan.counts[:, num_holes]  # [S, B]
    remasked = None if plan.remasked is None else plan.remasked[:, num_holes]  # [S, B]

    for step in range(len(counts)):
        with torch.no_grad():  # not as a decorator, which PyTorch 2.11 can't compile around a generator
            before = masked
            keep = counts[step] if remasked is None else counts[step] - remasked[step]
            held, guidance = tokens.masked_fill(masked, mask_token_id), config.guidance_at(step)
            if guidance != 0 and tokens_to_guided is not None:
                predicted, unguided = tokens_to_guided(held)
            else:
                predicted, unguided = tokens_to_logits(held), None
            if head is None:
                draw = partial(decode_step, predicted, num_codes=mask_token_id, guidance_logits=unguided)
            else:
                draw = partial(head_sample, predicted, *head, guidance_hidden=unguided)
            tokens, masked = draw(
                tokens,
                masked,
                keep,
                seeds=seeds,
                step=step,
                softmax_temperature=config.softmax_temperature,
                choice_temperature=config.temperature_at(step),
                draw=config.draw,
                confidence=config.confidence,
                guidance_scale=guidance,
            )
            if plan.order is not None:
                number = before[:, plan.order].cumsum(1)[:, plan.places]  # [B, N]; 1 for the first masked in the order
                masked = before & (number > (before.sum(1) - keep)[:, None])
            if remasked is not None:
                masked = masked | _draw(holes & ~before, remasked[step], seeds, step)
        yield step, tokens, masked


def _draw(candidates: Tensor, count: Tensor, seeds: Tensor, step: int) -> Tensor:
    """Choose count[b] of each image's candidates, bool [B, N], every choice being as likely as any other."""
    positions = torch.arange(candidates.shape[1], device=candidates.device)
    lots = random_words(seeds[:, None], positions, step, STREAM_REMASK, 1)[..., 0]  # [B, N], below 2**32
    order = lots.masked_fill(~candidates, 2**32).sort(dim=1, stable=True).indices
    return torch.zeros_like(candidates).scatter_(1, order, positions < count[:, None])


def decode(*args: Any, **options: Any) -> Tensor:
    """Fill the masked tokens: the last tokens, int64 [B, N], that `decode_steps` yields for these arguments."""
    for _, tokens, _ in decode_steps(*args, **options):
        result = tokens
    return result
