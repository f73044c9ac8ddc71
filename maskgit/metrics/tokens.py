"""Statistics of tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def codebook_usage(tokens: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of the codes that occur in tokens int64 [...], and the perplexity of their distribution."""
    counts = torch.bincount(tokens.flatten(), minlength=codebook_size).double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
