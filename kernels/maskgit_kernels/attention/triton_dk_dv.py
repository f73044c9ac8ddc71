"""Attention backward: the gradients of keys and values. `triton_backward` says what is computed."""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels.attention.triton_tiles import (
    FEW_COLUMNS,
    LOG2_E,
    TAIL,
    add_products,
    factors,
    keep_by_rows,
    load_rows,
    noise_of,
    own_rows,
    product,
    skip_rows,
    store_rows,
    zeros,
)


@triton.jit
def _skip_queries(theirs, count):
    q_matrix, grad_matrix, lse_ptr, delta_ptr = theirs
    return skip_rows(q_matrix, count), skip_rows(grad_matrix, count), lse_ptr + count, delta_ptr + count


@triton.jit
def _add_to_dk_dv(
    sums,
    k,
    v,
    theirs,
    first_query,
    num_queries,
    first_key,
    scale,
    noise,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv, both [BLOCK_N, D_i], with the share of BLOCK_M more queries.

    `theirs` is what there is of the queries, from the first of these on. Scores count in powers of two.
    """
    dk, dv = sums
    q_matrix, grad_matrix, lse_ptr, delta_ptr = theirs
    offsets = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    if noise is not None:  # first of all, when few registers are taken
        keep = keep_by_rows(noise, first_query + offsets, first_key, k[0].shape[0])  # [BLOCK_N, BLOCK_M]
    left = num_queries - first_query
    q = factors(load_rows(q_matrix, offsets, left, PARTS, D, MASK), PRECISION)  # [BLOCK_M, D_i]
    grad = factors(load_rows(grad_matrix, offsets, left, PARTS, D, MASK), PRECISION)  # [BLOCK_M, D_i]
    if MASK:  # an infinite log-sum-exp makes the weights of queries that are not there zero
        lse = tl.load(lse_ptr + offsets, mask=offsets < left, other=float("inf"))  # [BLOCK_M]
        delta = tl.load(delta_ptr + offsets, mask=offsets < left, other=0.0)  # [BLOCK_M]
    else:
        lse = tl.load(lse_ptr + offsets)  # [BLOCK_M]
        delta = tl.load(delta_ptr + offsets)  # [BLOCK_M]
    weights = tl.exp2(product(k, q, PRECISION) * scale - lse[None, :])  # [BLOCK_N, BLOCK_M]
    dweights = product(v, grad, PRECISION)  # [BLOCK_N, BLOCK_M]
    if noise is not None:
        kept = tl.where(keep, weights, 0.0)
        dscores = kept * dweights - weights * delta[None, :]  # [BLOCK_N, BLOCK_M]
    else:
        kept = weights
        dscores = weights * (dweights - delta[None, :])  # [BLOCK_N, BLOCK_M]
    return add_products(dk, dscores, q, PRECISION), add_products(dv, kept, grad, PRECISION)


@triton.jit
def _dk_dv_rows(
    given,
    numbers,
    first_key,
    noise,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FEW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv of BLOCK_N keys, from `first_key` on; see `triton_forward._forward_rows`."""
    k_matrix, v_matrix, theirs, dk_matrix, dv_matrix = given
    num_queries, num_keys, scale, keep_scale = numbers
    keys = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k_matrix, dk_matrix = skip_rows(k_matrix, first_key), skip_rows(dk_matrix, first_key)
    v_matrix, dv_matrix = skip_rows(v_matrix, first_key), skip_rows(dv_matrix, first_key)

    k = factors(load_rows(k_matrix, keys, num_keys - first_key, PARTS, D, True), PRECISION)  # [BLOCK_N, D_i]
    v = factors(load_rows(v_matrix, keys, num_keys - first_key, PARTS, D, True), PRECISION)  # [BLOCK_N, D_i]
    scale2 = scale * LOG2_E  # of scores that count in powers of two
    sums = (zeros(BLOCK_N, PARTS), zeros(BLOCK_N, PARTS))
    whole = 0 if FEW else num_queries // BLOCK_M * BLOCK_M
    for first_query in range(0, whole, BLOCK_M):
        sums = _add_to_dk_dv(
            sums, k, v, theirs, first_query, num_queries, first_key, scale2, noise, PARTS, D, BLOCK_M, False, PRECISION
        )
        theirs = _skip_queries(theirs, BLOCK_M)
    STEP: tl.constexpr = FEW_COLUMNS if FEW else TAIL
    for first_query in tl.range(whole, num_queries, STEP, num_stages=1):
        sums = _add_to_dk_dv(
            sums, k, v, theirs, first_query, num_queries, first_key, scale2, noise, PARTS, D, STEP, True, PRECISION
        )
        theirs = _skip_queries(theirs, STEP)
    dk, dv = sums
    dk = [x * (scale * keep_scale) for x in dk]
    dv = [x * keep_scale for x in dv]
    store_rows(dk_matrix, keys, num_keys - first_key, dk, PARTS, D)
    store_rows(dv_matrix, keys, num_keys - first_key, dv, PARTS, D)


@triton.jit(do_not_specialize=["heads", "num_queries", "num_keys", "last_dropped"])
def attention_dk_dv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
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
    dkv_row,
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
    """dk and dv, by programs for BLOCK_N keys or few; see `own_rows`. Runs after `attention_dq_kernel`.

    Args: as of `attention_dq_kernel`, and
        dk_ptr, dv_ptr: [B, Nk, H, D], tokens dkv_row apart, the rest contiguous.
    """
    pair, first_key, first_left, few = own_rows(num_keys, BLOCK_N, FEW_LEFT)
    image, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    q_matrix = (q_ptr + image * q_image + head * q_head, q_row, q_column)
    k_matrix = (k_ptr + image * k_image + head * k_head, k_row, k_column)
    v_matrix = (v_ptr + image * v_image + head * v_head, v_row, v_column)
    grad_matrix = (grad_ptr + image * grad_image + head * grad_head, grad_row, grad_column)
    own = image * num_keys * dkv_row + head * D
    dk_matrix = (dk_ptr + own, dkv_row, 1)
    dv_matrix = (dv_ptr + own, dkv_row, 1)
    lse_ptr += pair.to(tl.int64) * num_queries
    delta_ptr += pair.to(tl.int64) * num_queries
    noise = noise_of(seed_ptr, pair, last_dropped) if DROPOUT else None
    theirs = (q_matrix, grad_matrix, lse_ptr, delta_ptr)
    given = (k_matrix, v_matrix, theirs, dk_matrix, dv_matrix)
    numbers = (num_queries, num_keys, scale, keep_scale)
    if FEW_LEFT is not None and few:
        _dk_dv_rows(given, numbers, first_left, noise, FEW_LEFT, D, BLOCK_M, TAIL, True, PRECISION)
    else:
        _dk_dv_rows(given, numbers, first_key, noise, PARTS, D, BLOCK_M, BLOCK_N, False, PRECISION)
