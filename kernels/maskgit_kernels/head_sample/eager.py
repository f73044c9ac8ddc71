"""The LM head and a decoding step in PyTorch: logits for a few masked rows at a time, and at once drawn from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit_kernels.decode_step.eager import decode_rows
from maskgit_kernels.decode_step.settings import Settings, State


def head_sample_eager(
    hidden: Tensor,
    guidance_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: State,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """See `head_sample`; the arguments are validated there."""

    def logits(images: Tensor, positions: Tensor) -> Tensor:
        rows = hidden[images, positions]  # [rows, D]
        if guidance_hidden is not None:
            rows = rows.float()
            rows = rows + settings.guidance_scale * (rows - guidance_hidden[images, positions].float())
        products = F.linear(rows.to(weight.dtype), weight).to(torch.float32)  # [rows, V]
        if bias is not None:
            products += bias[positions] if bias.dim() == 2 else bias
        return products

    return decode_rows(logits, len(weight), state, settings)
