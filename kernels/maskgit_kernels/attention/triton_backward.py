"""Attention backward: gradients of the queries, then of keys and values, each a sum in one program's fixed order.

Weights are recomputed from the log-sum-exp that the forward pass left (Dao et al., "FlashAttention", 2022). Two kernels
instead of one compute the scores twice, and do without the atomic additions that would make the result depend on the
order in which programs happen to run.

With P the weights, M what dropout keeps of them, and c = 1 / (1 - dropout_p):

    out = c (M * P) v        delta = row sums of out * grad
    dv  = c (M * P)^T grad   dscores = P * (c M * (grad v^T) - delta) = c (M * P * (grad v^T) - P * delta / c)

so c stays out of the loops: the first kernel leaves delta / c, and the sums are multiplied by c at the end.
"""

from __future__ import annotations

import torch
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
    few_left,
    keep_by_columns,
    keep_by_rows,
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


@triton.heuristics({"FEW_LEFT": lambda given: few_left(given["num_queries"], given["BLOCK_M"], given["PARTS"])})
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


@triton.heuristics({"FEW_LEFT": lambda given: few_left(given["num_keys"], given["BLOCK_N"], given["PARTS"])})
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


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Write the gradients.

    Args:
        grad: that of out, [B, H, Nq, D], any strides.
        q, k, v, out, lse, seed, dropout_p, scale: what `triton_forward.forward` was given and has written.
        dq: [B, H, Nq, D]; dk, dv: [B, H, Nk, D]; strides (N * row, D, row, 1) with a `row` of at least H * D, which dk
            and dv share: a transposed contiguous [B, N, H, D], or a part of a packed [B, N, 3, H, D].
    """
    delta = torch.empty_like(lse)
    strides = (*q.stride(), *k.stride(), *v.stride(), *grad.stride())
    common = (q, k, dropout_p, scale)
    launch("dq", attention_dq_kernel, *common, q, k, v, out, grad, lse, delta, dq, seed, *strides, dq.stride(2))
    launch("dk_dv", attention_dk_dv_kernel, *common, q, k, v, grad, lse, delta, dk, dv, seed, *strides, dk.stride(2))


def builds(capability: int) -> list[Build]:
    """What is compiled for GPUs of some capability: every tiling, where it takes the most registers."""
    shipped = [(48, "half", False), (48, "half", True), (96, "half", True), (128, "half", True)]
    shipped += [(64, "half", False), (48, "tf32", True), (80, "tf32", True), (128, "ieee", True)]
    kernels = {"dq": attention_dq_kernel, "dk_dv": attention_dk_dv_kernel}
    return [build for name, kernel in kernels.items() for build in builds_of(name, kernel, capability, shipped)]
