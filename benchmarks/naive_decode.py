"""One decoding step as MaskGIT code writes it in eager PyTorch: a chain of two dozen small operations.

What the decoding kernels are compared with. It is the chain that the public systems have in common, with noise from
torch's global generator: a Gumbel sample per position, the log-probability of what was drawn plus annealed Gumbel
noise as its confidence, known positions pinned at infinity, and a threshold found by sorting.
"""

from __future__ import annotations

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
) -> tuple[Tensor, Tensor]:
    """The whole chain; arguments and results are those of `maskgit_kernels.decode_step`, n_keep_masked below N."""
    scaled = _scaled(logits, softmax_temperature, guidance_logits, guidance_scale)  # [B, N, V]
    probabilities = torch.softmax(scaled, dim=-1)
    drawn = (scaled + _gumbel_like(scaled)).argmax(-1)
    return _keep_confident(probabilities, drawn, tokens, masked, n_keep_masked, choice_temperature)


def multinomial_decode_step(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    *,
    softmax_temperature: float = 1.0,
    choice_temperature: float = 4.5,
    guidance_logits: Tensor | None = None,
    guidance_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The same with torch.multinomial in place of the Gumbel samples."""
    scaled = _scaled(logits, softmax_temperature, guidance_logits, guidance_scale)  # [B, N, V]
    probabilities = torch.softmax(scaled, dim=-1)
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1).view_as(tokens)
    return _keep_confident(probabilities, drawn, tokens, masked, n_keep_masked, choice_temperature)


def _scaled(logits: Tensor, temperature: float, unguided: Tensor | None, scale: float) -> Tensor:
    if unguided is not None:
        logits = (1 + scale) * logits - scale * unguided
    return logits.float() / temperature


def _gumbel_like(x: Tensor) -> Tensor:
    return -torch.log(-torch.log(torch.rand_like(x)))


def _keep_confident(
    probabilities: Tensor,
    drawn: Tensor,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    choice_temperature: float,
) -> tuple[Tensor, Tensor]:
    drawn = torch.where(masked, drawn, tokens)
    chosen = probabilities.gather(-1, drawn[..., None])[..., 0]  # [B, N]
    confidence = torch.log(chosen) + choice_temperature * _gumbel_like(chosen)
    confidence = torch.where(masked, confidence, torch.inf)
    threshold = confidence.sort(dim=-1).values.gather(-1, n_keep_masked[:, None])  # [B, 1]
    return drawn, confidence < threshold
