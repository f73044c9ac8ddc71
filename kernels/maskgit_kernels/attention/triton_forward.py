"""Attention forward: one pass over the keys with a running softmax (Dao et al., "FlashAttention", 2022).

Each program takes BLOCK_M queries of one (image, head) pair and goes through its keys BLOCK_N at a time, without masks;
the keys that do not fill a block come last, a few at a time, with masks. So 257 tokens cost little more than 256.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from maskgit_kernels.attention.launch import builds_of, launch
from maskgit_kernels.attention.triton_tiles import (
    FEW_COLUMNS,
    LOG2_E,
    TAIL,
    add_products,
    factors,
    keep_by_columns,
    keys_as_columns,
    load_rows,
    noise_of,
    own_rows,
    product,
    skip_rows,
    store_rows,
    zeros,
)
from maskgit_kernels.build import Build


@triton.jit
def _attend(
    state,
    own,
    k_matrix,
    v_matrix,
    first_key,
    num_keys,
    scale,
    noise,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The running softmax after BLOCK_N more keys, the first rows of the matrices: the largest score and the sum of
    weights, both [BLOCK_M], and the weighted sum of values, [BLOCK_M, D_i].

    `own` is what the program has of its own queries. Scores count in powers of two.
    """
    top, total, sums = state
    q, queries = own
    offsets = keys_as_columns(BLOCK_N) if noise is not None else tl.arange(0, BLOCK_N)  # [BLOCK_N]
    left = num_keys - first_key
    k = factors(load_rows(k_matrix, offsets, left, PARTS, D, MASK), PRECISION)  # [BLOCK_N, D_i]
    v = factors(load_rows(v_matrix, offsets, left, PARTS, D, MASK), PRECISION)  # [BLOCK_N, D_i]
    scores = product(q, k, PRECISION)  # [BLOCK_M, BLOCK_N], not yet scaled
    if MASK:
        scores = tl.where(offsets[None, :] < left, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)  # [BLOCK_M]
    weights = tl.exp2(scores * scale - new_top[:, None])  # [BLOCK_M, BLOCK_N]
    shrink = tl.exp2(top - new_top)  # [BLOCK_M]
    total = total * shrink + tl.sum(weights, 1)
    if noise is not None:  # after the sum: the softmax divides by that of all weights, dropped or not
        weights = tl.where(keep_by_columns(noise, queries, first_key, BLOCK_N), weights, 0.0)
    sums = [x * shrink[:, None] for x in sums]
    return new_top, total, add_products(sums, weights, v, PRECISION)


@triton.jit
def _forward_rows(
    given,
    numbers,
    first_query,
    noise,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FEW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The output and the log-sum-exp of BLOCK_M queries, from `first_query` on.

    FEW: whether these are the few that fill no block. The other arguments are the kernel's.
    """
    q_matrix, k_matrix, v_matrix, out_matrix, lse_ptr = given
    num_queries, num_keys, scale, keep_scale = numbers
    offsets = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    queries = first_query + offsets  # [BLOCK_M]
    q_matrix, out_matrix = skip_rows(q_matrix, first_query), skip_rows(out_matrix, first_query)

    q = load_rows(q_matrix, offsets, num_queries - first_query, PARTS, D, True)  # [BLOCK_M, D_i]
    own = (factors(q, PRECISION), queries)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    state = (top, total, zeros(BLOCK_M, PARTS))
    whole = 0 if FEW else num_keys // BLOCK_N * BLOCK_N
    for first_key in range(0, whole, BLOCK_N):
        state = _attend(
            state, own, k_matrix, v_matrix, first_key, num_keys, scale, noise, PARTS, D, BLOCK_N, False, PRECISION
        )
        k_matrix, v_matrix = skip_rows(k_matrix, BLOCK_N), skip_rows(v_matrix, BLOCK_N)
    STEP: tl.constexpr = FEW_COLUMNS if FEW else TAIL
    for first_key in tl.range(whole, num_keys, STEP, num_stages=1):  # too few turns for a pipeline to be worth its cost
        state = _attend(
            state, own, k_matrix, v_matrix, first_key, num_keys, scale, noise, PARTS, D, STEP, True, PRECISION
        )
        k_matrix, v_matrix = skip_rows(k_matrix, STEP), skip_rows(v_matrix, STEP)
    top, total, sums = state
    out = [x * (keep_scale / total)[:, None] for x in sums]
    store_rows(out_matrix, offsets, num_queries - first_query, out, PARTS, D)
    tl.store(lse_ptr + queries, top + tl.log2(total), mask=queries < num_queries)


@triton.jit(do_not_specialize=["heads", "num_queries", "num_keys", "last_dropped"])
def attention_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    seed_ptr,
    q_image,
    q_head,
    q_row,
    q_column,
    k_image,
    k_head,
    k_row,
    k_column,
    v_image,
    v_head,
    v_row,
    v_column,
    heads,
    num_queries,
    num_keys,
    scale,
    keep_scale,
    last_dropped,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    FEW_LEFT: tl.constexpr,
):
    """Programs for each (image, head) pair and BLOCK_M queries, or the few queries that are left; see `own_rows`.

    Args:
        q_ptr: [B, H, Nq, D]; k_ptr, v_ptr: [B, H, Nk, D]; each with the four strides of its name.
        out_ptr: [B, Nq, H, D], contiguous.
        lse_ptr: float32 [B, H, Nq], contiguous: log2 of the sum over keys of 2 ** (score * log2(e)).
        seed_ptr: int64 [1]; None without dropout.
        scale: of the scores, at least 0.
        keep_scale: 1 / (1 - dropout_p).
        last_dropped: see `noise_of`.
    """
    pair, first_query, first_left, few = own_rows(num_queries, BLOCK_M, FEW_LEFT)
    image, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    q_matrix = (q_ptr + image * q_image + head * q_head, q_row, q_column)
    k_matrix = (k_ptr + image * k_image + head * k_head, k_row, k_column)
    v_matrix = (v_ptr + image * v_image + head * v_head, v_row, v_column)
    out_matrix = (out_ptr + (image * num_queries * heads + head) * D, heads * D, 1)
    lse_ptr += pair.to(tl.int64) * num_queries
    noise = noise_of(seed_ptr, pair, last_dropped) if DROPOUT else None
    given = (q_matrix, k_matrix, v_matrix, out_matrix, lse_ptr)
    numbers = (num_queries, num_keys, scale * LOG2_E, keep_scale)
    if FEW_LEFT is not None and few:
        _forward_rows(given, numbers, first_left, noise, FEW_LEFT, D, TAIL, BLOCK_N, True, PRECISION)
    else:
        _forward_rows(given, numbers, first_query, noise, PARTS, D, BLOCK_M, BLOCK_N, False, PRECISION)


def forward(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, dropout_p: float, scale: float, out: Tensor, lse: Tensor
) -> None:
    """Write the output and the log-sum-exp of the scores.

    Args:
        q: [B, H, Nq, D]; k, v: [B, H, Nk, D]; any strides.
        seed: int64, one element, on q's device; None if nothing is dropped.
        dropout_p: in [0, 1). scale: at least 0.
        out: [B, H, Nq, D], a transposed contiguous [B, Nq, H, D].
        lse: float32 [B, H, Nq], contiguous; see the kernel.
    """
    strides = (*q.stride(), *k.stride(), *v.stride())
    launch("forward", attention_forward_kernel, q, k, dropout_p, scale, (q, k, v, out, lse, seed), strides)


def builds(capability: int) -> list[Build]:
    """What is compiled for GPUs of some capability: every tiling, where it takes the most registers."""
    shipped = [(48, "half", False), (48, "half", True), (96, "half", False), (96, "half", True), (128, "half", True)]
    shipped += [(128, "half", False), (48, "tf32", True), (128, "tf32", True), (128, "ieee", True)]
    return builds_of("forward", attention_forward_kernel, capability, shipped)
