"""Attention as one plain Triton kernel, to be read from top to bottom before the shipped ones.

softmax(q k^T * scale) v for every image and head, without ever storing the [N, N] scores: each program takes a tile of
queries through all keys, a tile at a time, with a softmax that is corrected as it goes (Milakov and Gimelshein, "Online
normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022).

The kernels of `maskgit_kernels.attention` are this and: dropout, head_dims that are no power of two, any strides,
ragged lengths at little cost, the log-sum-exp for a backward pass, and tiles for each GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs have an instruction for 2 ** x, not for e ** x


@triton.jit
def plain_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, length, scale, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The program (i, j) of the grid: for image and head i, the queries from j * BLOCK_M on.

    Args:
        q_ptr, k_ptr, v_ptr, out_ptr: [B * H, length, D], contiguous.
        scale: of the scores.
        D, BLOCK_M, BLOCK_N: powers of two, at least 16 for the tensor cores. Constants, so that the compiler can lay
            out the tiles in registers.
    """
    pair = tl.program_id(0).to(tl.int64)  # 64 bits, because whole tensors may have more than 2 ** 31 elements
    matrix = pair * length * D
    columns = tl.arange(0, D)  # [D]
    queries = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    own = matrix + queries[:, None] * D + columns[None, :]  # [BLOCK_M, D]
    there = queries[:, None] < length  # the last tile reaches beyond the last query
    q = tl.load(q_ptr + own, mask=there, other=0.0)  # [BLOCK_M, D]

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)  # the largest score so far
    total = tl.zeros([BLOCK_M], tl.float32)  # the sum of weights so far, where a score of `top` weighs 1
    sums = tl.zeros([BLOCK_M, D], tl.float32)  # the sum of values, so weighted
    for first in range(0, length, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        theirs = matrix + keys[:, None] * D + columns[None, :]  # [BLOCK_N, D]
        k = tl.load(k_ptr + theirs, mask=keys[:, None] < length, other=0.0)
        v = tl.load(v_ptr + theirs, mask=keys[:, None] < length, other=0.0)

        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)  # [BLOCK_M, BLOCK_N]
        scores = tl.where(keys[None, :] < length, scores, -float("inf"))  # keys that are not there weigh nothing
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])  # [BLOCK_M, BLOCK_N], at most 1: nothing overflows
        shrink = tl.exp2(top - new_top)  # what was summed up under the old `top` weighs that much less
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")
        top = new_top

    tl.store(out_ptr + own, (sums / total[:, None]).to(out_ptr.dtype.element_ty), mask=there)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q, k, v: [B, H, N, D], float16, bfloat16 or float32, on an NVIDIA GPU; D is 16, 32, 64 or 128.

    Returns:
        [B, H, N, D] of their dtype.

    Raises:
        ValueError: another D, or tensors of different shapes.
    """
    batch, heads, length, head_dim = q.shape
    if head_dim not in (16, 32, 64, 128) or not q.shape == k.shape == v.shape:
        raise ValueError(
            "q, k and v must have the same shape [B, H, N, D] with a D of 16, 32, 64 or 128, "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    block = 64 if q.element_size() == 2 else 32  # without tensor cores, float32 takes twice the registers and more
    grid = (batch * heads, triton.cdiv(length, block))
    with torch.cuda.device_of(q):  # Triton starts kernels on the current GPU, wherever the tensors are
        plain_attention_kernel[grid](q, k, v, out, length, head_dim**-0.5, head_dim, block, block, num_stages=3)
    return out
