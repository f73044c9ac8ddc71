"""One decoding step as MaskGIT code writes it in eager PyTorch: a chain of two dozen small operations.

What the decoding kernels are compared with. It is the chain that the public systems have in common, with noise from
torch's global generator: a Gumbel sample per position, the log-probability of what was drawn plus annealed Gumbel
noise as its confidence, known positions pinned at infinity, and a threshold found by sorting.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def eager_decode_step(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    *,
    softmax_temperature: float = 1.0,
    choice_temperature: float = 4.5,
    guidance_logits: Tensor | None = None,
    guidance_scale: float = 0.0,
    multinomial: bool = False,
) -> tuple[Tensor, Tensor]:
    """The whole chain; arguments and results are those of `maskgit_kernels.decode_step`, n_keep_masked below N.

    With `multinomial`, tokens are drawn by torch.multinomial instead of Gumbel samples.
    """
    if guidance_logits is not None:
        logits = (1 + guidance_scale) * logits - guidance_scale * guidance_logits
    scaled = logits.float() / softmax_temperature  # [B, N, V]
    probabilities = torch.softmax(scaled, dim=-1)
    if multinomial:
        drawn = torch.multinomial(probabilities.flatten(0, 1), 1).view_as(tokens)
    else:
        drawn = (scaled + _gumbel_like(scaled)).argmax(-1)
    drawn = torch.where(masked, drawn, tokens)
    chosen = probabilities.gather(-1, drawn[..., None])[..., 0]  # [B, N]
    confidence = torch.log(chosen) + choice_temperature * _gumbel_like(chosen)
    confidence = torch.where(masked, confidence, torch.inf)
    threshold = confidence.sort(dim=-1).values.gather(-1, n_keep_masked[:, None])  # [B, 1]
    return drawn, confidence < threshold


multinomial_decode_step = functools.partial(eager_decode_step, multinomial=True)


def _gumbel_like(x: Tensor) -> Tensor:
    return -torch.log(-torch.log(torch.rand_like(x)))
