"""Attention as it is meant: the readable specification that every implementation is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgit_kernels.philox import STREAM_DROPOUT, random_bytes


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale) v in float32 (float64 for float64 inputs); see `attention` for the arguments.

    Args:
        q: [B, H, Nq, D].
        k, v: [B, H, Nk, D].

    Returns:
        [B, H, Nq, D] in q's dtype.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dropout_p = drops_in_256(dropout_p) / 256
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * scale  # [B, H, Nq, Nk]
    weights = torch.softmax(scores, dim=-1)
    if dropout_p > 0:
        assert seed is not None
        weights = weights * keep_mask(q, k, dropout_p, seed) / (1 - dropout_p)
    return (weights @ v.to(dtype)).to(q.dtype)


def drops_in_256(dropout_p: float) -> int:
    """A byte decides on a weight: it is dropped if the byte is below this number, in [0, 255]."""
    return min(255, round(dropout_p * 256))


def keep_mask(q: Tensor, k: Tensor, dropout_p: float, seed: int | Tensor) -> Tensor:
    """Which attention weights dropout keeps.

    Args:
        q: [B, H, Nq, D], k: [B, H, Nk, D]; only their shapes and device are used.

    Returns:
        uint8 [B, H, Nq, Nk], 1 where a weight is kept and 0 where it is dropped.
    """
    batch, heads, queries, _ = q.shape
    # Filled, not copied from the host: a copy waits for a GPU, and a CUDA graph can't hold it.
    seeds = seed.to(q.device) if isinstance(seed, Tensor) else q.new_full((), seed, dtype=torch.int64)
    positions = torch.arange(queries, device=q.device)[None, :]
    pairs = torch.arange(batch * heads, device=q.device)[:, None]
    noise = random_bytes(seeds.view(1, 1), positions, pairs, STREAM_DROPOUT, k.shape[2])  # [B * H, Nq, Nk]
    # In place: on a CPU, making bools of bytes takes many times as long.
    return noise.ge_(drops_in_256(dropout_p)).view(batch, heads, queries, k.shape[2])
