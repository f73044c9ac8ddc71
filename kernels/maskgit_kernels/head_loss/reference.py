"""The loss behind the LM head as it is meant: the specification that every implementation is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def head_loss_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counted: Tensor,
    *,
    label_smoothing: float = 0.0,
    hits_among: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `head_loss` for the arguments and results."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden[counted].to(dtype) @ weight.to(dtype).T  # [counted positions, V]
    if bias is not None:
        positions = counted.nonzero()[:, 1]
        logits = logits + (bias[positions] if bias.dim() == 2 else bias).to(dtype)
    loss = F.cross_entropy(logits, targets[counted], reduction="sum", label_smoothing=label_smoothing)
    right = logits.argmax(-1) == targets[counted]  # of equals the lowest code
    return loss, (right if hits_among is None else right & hits_among[counted]).sum()
