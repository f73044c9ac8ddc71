"""The LM head and a decoding step in PyTorch: logits for a few masked rows at a time, and at once drawn from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit_kernels.decode_step.eager import decode_rows


def head_sample_eager(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    seeds: Tensor,
    step: int,
    softmax_temperature: float,
    choice_temperature: float,
    draw: str,
    confidence: str,
    guidance_hidden: Tensor | None,
    guidance_scale: float,
) -> tuple[Tensor, Tensor]:
    """See `head_sample`; the arguments are validated there."""

    def logits(images: Tensor, positions: Tensor) -> Tensor:
        rows = hidden[images, positions]  # [rows, D]
        if guidance_hidden is not None and guidance_scale != 0:
            rows = rows.float()
            rows = rows + guidance_scale * (rows - guidance_hidden[images, positions].float())
        products = F.linear(rows.to(weight.dtype), weight).to(torch.float32)  # [rows, V]
        if bias is not None:
            products += bias[positions] if bias.dim() == 2 else bias
        return products

    return decode_rows(
        logits,
        tokens,
        masked,
        n_keep_masked,
        seeds,
        step,
        len(weight),
        softmax_temperature,
        choice_temperature,
        draw,
        confidence,
    )
