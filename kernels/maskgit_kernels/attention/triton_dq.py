"""Attention backward: the gradient of the queries. `triton_backward` says what is computed."""

from __future__ import annotations

import triton
import triton.language as tl

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


@triton.jit
def _add_to_dq(
    dq,
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
    """dq [BLOCK_M, D_i] with the share of BLOCK_N more keys, the first rows of the matrices.

    `own` is what the program has of its own queries. Scores count in powers of two.
    """
    q, grad, lse, delta, queries = own
    offsets = keys_as_columns(BLOCK_N) if noise is not None else tl.arange(0, BLOCK_N)  # [BLOCK_N]
    left = num_keys - first_key
    k = factors(load_rows(k_matrix, offsets, left, PARTS, D, MASK), PRECISION)  # [BLOCK_N, D_i]
    v = factors(load_rows(v_matrix, offsets, left, PARTS, D, MASK), PRECISION)  # [BLOCK_N, D_i]
    weights = tl.exp2(product(q, k, PRECISION) * scale - lse[:, None])  # [BLOCK_M, BLOCK_N]
    if MASK:
        weights = tl.where(offsets[None, :] < left, weights, 0.0)
    dweights = product(grad, v, PRECISION)  # [BLOCK_M, BLOCK_N]
    if noise is not None:
        kept = tl.where(keep_by_columns(noise, queries, first_key, BLOCK_N), weights, 0.0)
        dscores = kept * dweights - weights * delta[:, None]  # [BLOCK_M, BLOCK_N]
    else:
        dscores = weights * (dweights - delta[:, None])  # [BLOCK_M, BLOCK_N]
    return add_products(dq, dscores, k, PRECISION)


@triton.jit
def _dq_rows(
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
    """dq, and delta / c, of BLOCK_M queries, from `first_query` on; see `triton_forward._forward_rows`."""
    q_matrix, k_matrix, v_matrix, out_matrix, grad_matrix, lse_ptr, delta_ptr, dq_matrix = given
    num_queries, num_keys, scale, keep_scale = numbers
    offsets = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    queries = first_query + offsets  # [BLOCK_M]
    q_matrix, grad_matrix = skip_rows(q_matrix, first_query), skip_rows(grad_matrix, first_query)
    out_matrix, dq_matrix = skip_rows(out_matrix, first_query), skip_rows(dq_matrix, first_query)

    q = load_rows(q_matrix, offsets, num_queries - first_query, PARTS, D, True)  # [BLOCK_M, D_i]
    grad = load_rows(grad_matrix, offsets, num_queries - first_query, PARTS, D, True)  # [BLOCK_M, D_i]
    out = load_rows(out_matrix, offsets, num_queries - first_query, PARTS, D, True)  # [BLOCK_M, D_i]
    delta = tl.zeros([BLOCK_M], tl.float32)
    for i in tl.static_range(len(PARTS)):
        delta += tl.sum(out[i].to(tl.float32) * grad[i].to(tl.float32), 1)
    delta = delta / keep_scale
    tl.store(delta_ptr + queries, delta, mask=queries < num_queries)
    lse = tl.load(lse_ptr + queries, mask=queries < num_queries, other=float("inf"))  # [BLOCK_M]

    own = (factors(q, PRECISION), factors(grad, PRECISION), lse, delta, queries)
    scale2 = scale * LOG2_E  # of scores that count in powers of two
    dq = zeros(BLOCK_M, PARTS)
    whole = 0 if FEW else num_keys // BLOCK_N * BLOCK_N
    for first_key in range(0, whole, BLOCK_N):
        dq = _add_to_dq(
            dq, own, k_matrix, v_matrix, first_key, num_keys, scale2, noise, PARTS, D, BLOCK_N, False, PRECISION
        )
        k_matrix, v_matrix = skip_rows(k_matrix, BLOCK_N), skip_rows(v_matrix, BLOCK_N)
    STEP: tl.constexpr = FEW_COLUMNS if FEW else TAIL
    for first_key in tl.range(whole, num_keys, STEP, num_stages=1):
        dq = _add_to_dq(
            dq, own, k_matrix, v_matrix, first_key, num_keys, scale2, noise, PARTS, D, STEP, True, PRECISION
        )
        k_matrix, v_matrix = skip_rows(k_matrix, STEP), skip_rows(v_matrix, STEP)
    dq = [x * (scale * keep_scale) for x in dq]
    store_rows(dq_matrix, offsets, num_queries - first_query, dq, PARTS, D)


@triton.jit(do_not_specialize=["heads", "num_queries", "num_keys", "last_dropped"])
def attention_dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
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
    grad_image,
    grad_head,
    grad_row,
    grad_column,
    dq_row,
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
    """dq, and delta / c for the other kernel. Programs as of `attention_forward_kernel`.

    Args: as of `attention_forward_kernel`, and
        grad_ptr: [B, H, Nq, D], the gradient of out, with the four strides of its name.
        delta_ptr: float32 [B, H, Nq], contiguous.
        dq_ptr: [B, Nq, H, D], tokens dq_row apart, the rest contiguous.
    """
    pair, first_query, first_left, few = own_rows(num_queries, BLOCK_M, FEW_LEFT)
    image, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    q_matrix = (q_ptr + image * q_image + head * q_head, q_row, q_column)
    k_matrix = (k_ptr + image * k_image + head * k_head, k_row, k_column)
    v_matrix = (v_ptr + image * v_image + head * v_head, v_row, v_column)
    grad_matrix = (grad_ptr + image * grad_image + head * grad_head, grad_row, grad_column)
    out_matrix = (out_ptr + (image * num_queries * heads + head) * D, heads * D, 1)
    dq_matrix = (dq_ptr + image * num_queries * dq_row + head * D, dq_row, 1)
    lse_ptr += pair.to(tl.int64) * num_queries
    delta_ptr += pair.to(tl.int64) * num_queries
    noise = noise_of(seed_ptr, pair, last_dropped) if DROPOUT else None
    given = (q_matrix, k_matrix, v_matrix, out_matrix, grad_matrix, lse_ptr, delta_ptr, dq_matrix)
    numbers = (num_queries, num_keys, scale, keep_scale)
    if FEW_LEFT is not None and few:
        _dq_rows(given, numbers, first_left, noise, FEW_LEFT, D, TAIL, BLOCK_N, True, PRECISION)
    else:
        _dq_rows(given, numbers, first_query, noise, PARTS, D, BLOCK_M, BLOCK_N, False, PRECISION)
