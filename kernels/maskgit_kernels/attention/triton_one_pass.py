"""Attention backward of short sequences in one pass: a program for each (image, head) gives dq, dk and dv.

The program holds all queries and goes through the keys once. Each tile of scores is so computed once, and not once for
dq and once more for dk and dv, as by the two kernels of `triton_backward`: five matrix products in place of seven, one
exponential in place of two, dropout's noise once. Still every sum is made in one program's fixed order, without atomic
additions. The mathematics is that of `triton_backward`.

dq of all queries stays in registers, [BLOCK_M, D] for each block of queries. It is the only sum that lives through the
loop, which is why queries are held and not keys: of these there would be two, dk and dv.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskgit_kernels.attention.launch import key_of, numbers_of, restart, start
from maskgit_kernels.attention.tiling import Tiling
from maskgit_kernels.attention.triton_tiles import (
    LOG2_E,
    TAIL,
    add_products,
    keep_by_columns,
    keys_as_columns,
    load_rows,
    noise_of,
    product,
    skip_rows,
    store_rows,
    zeros,
)
from maskgit_kernels.backend import interpreting
from maskgit_kernels.build import Build

_BLOCK_M, _BLOCK_N = 128, 64  # queries of a block, keys at a time
_MOST_BLOCKS = 2  # of queries: for dq of more there are no registers
_NUM_WARPS = 8


@triton.jit
def _own(pair, heads):
    """The image and the head of a pair."""
    return (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)


@triton.jit
def _matrix(pointer, own, image_stride, head_stride, row_stride, column_stride):
    image, head = own
    return pointer + image * image_stride + head * head_stride, row_stride, column_stride


@triton.jit
def _scaled_products(sums, weights, blocks, factor):
    """sums + factor weights^T blocks, part by part: [N, D_i], [M, N] and [M, D_i]; transposed if N is TAIL.

    Scaled one by one, because Triton would make of a plain sum products that go on from each other's result, for which
    it sets all warps below each other. Eight of them have 128 rows, and these are 64: half would do the others' work.
    """
    results = ()
    for i in tl.static_range(len(blocks)):
        if weights.shape[1] == TAIL:  # too few rows for tensor cores
            share = tl.dot(tl.trans(blocks[i]), weights) * factor
        else:
            share = tl.dot(tl.trans(weights), blocks[i]) * factor
        if sums is not None:
            share += sums[i]
        results = results + (share,)
    return results


@triton.jit
def _shares(weights, dweights, delta, keep):
    """What the scores have part in: (M * P) for dv and dscores for dq and dk, both divided by c.

    Args: blocks, delta so that it broadcasts to them, and what dropout keeps of them or None.
    """
    if keep is not None:
        kept = tl.where(keep, weights, 0.0)
        return kept, kept * dweights - weights * delta
    else:
        return weights, weights * (dweights - delta)


@triton.jit
def _held(given, numbers, first_query, PARTS: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr):
    """What the program keeps of BLOCK_M queries: q and grad by PARTS and by WIDE, log-sum-exp, delta / c, indices."""
    q_matrix, out_matrix, grad_matrix, lse_ptr = given
    num_queries, keep_scale = numbers
    queries = first_query + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    q = load_rows(q_matrix, queries, num_queries, PARTS, D, True)  # [BLOCK_M, D_i]
    grad = load_rows(grad_matrix, queries, num_queries, PARTS, D, True)  # [BLOCK_M, D_i]
    out = load_rows(out_matrix, queries, num_queries, PARTS, D, True)  # [BLOCK_M, D_i]
    delta = tl.zeros([BLOCK_M], tl.float32)
    for i in tl.static_range(len(PARTS)):
        delta += tl.sum(out[i].to(tl.float32) * grad[i].to(tl.float32), 1)
    # An infinite log-sum-exp makes the weights of queries that are not there zero.
    lse = tl.load(lse_ptr + queries, mask=queries < num_queries, other=float("inf"))  # [BLOCK_M]
    q_wide = q if WIDE == PARTS else load_rows(q_matrix, queries, num_queries, WIDE, D, True)
    grad_wide = grad if WIDE == PARTS else load_rows(grad_matrix, queries, num_queries, WIDE, D, True)
    return q, grad, q_wide, grad_wide, lse, delta / keep_scale, queries


@triton.jit
def _add_few(dq, sums, few, theirs, offsets, first_key, left, factors, noise, MASK: tl.constexpr):
    """The share of TAIL queries: dq [D, TAIL], transposed, and dk and dv. See `_add_block`.

    Scores are transposed here, [BLOCK_N, TAIL]: keys fill the rows of tensor cores, as so few queries would not.
    """
    q, grad, q_wide, grad_wide, lse, delta, queries = few
    k, v, k_wide = theirs
    dk, dv = sums
    scale, keep_scale = factors
    weights = tl.exp2(product(k, q, "ieee") * (scale * LOG2_E) - lse[None, :])  # [BLOCK_N, TAIL]
    if MASK:
        weights = tl.where(offsets[:, None] < left, weights, 0.0)
    keep = None
    if noise is not None:
        keep = tl.trans(keep_by_columns(noise, queries, first_key, offsets.shape[0]))  # [BLOCK_N, TAIL]
    kept, dscores = _shares(weights, product(v, grad, "ieee"), delta[None, :], keep)
    kept, dscores = kept.to(q[0].dtype), dscores.to(q[0].dtype)
    dv = _scaled_products(dv, tl.trans(kept), grad_wide, keep_scale)
    dk = _scaled_products(dk, tl.trans(dscores), q_wide, scale * keep_scale)
    results = ()
    for i in tl.static_range(len(k_wide)):
        results = results + (tl.dot(tl.trans(k_wide[i]), dscores, dq[i]),)
    return results, (dk, dv)


@triton.jit
def _add_block(dq, sums, held, theirs, offsets, first_key, left, factors, noise, MASK: tl.constexpr):
    """The share of one tile of scores, [BLOCK_M, BLOCK_N]: dq, dk and dv with it.

    Args:
        dq: of a block of queries, [BLOCK_M, D_i].
        sums: dk and dv of BLOCK_N keys, each [BLOCK_N, D_i], or None if this is the first tile of theirs.
        held: see `_held`.
        theirs: k and v by PARTS, and k by WIDE.
        offsets, left: of the keys from `first_key` on, and how many there are. Scores count in powers of two.
    """
    q, grad, q_wide, grad_wide, lse, delta, queries = held
    k, v, k_wide = theirs
    dk, dv = sums
    scale, keep_scale = factors
    keep = None
    if noise is not None:
        keep = keep_by_columns(noise, queries, first_key, offsets.shape[0])
    weights = tl.exp2(product(q, k, "ieee") * (scale * LOG2_E) - lse[:, None])  # [BLOCK_M, BLOCK_N]
    if MASK:
        weights = tl.where(offsets[None, :] < left, weights, 0.0)
    dweights = product(grad, v, "ieee")  # [BLOCK_M, BLOCK_N]
    kept, dscores = _shares(weights, dweights, delta[:, None], keep)
    kept, dscores = kept.to(q[0].dtype), dscores.to(q[0].dtype)
    dv = _scaled_products(dv, kept, grad_wide, keep_scale)
    dq = add_products(dq, dscores, k, "ieee")
    dk = _scaled_products(dk, dscores, q_wide, scale * keep_scale)
    return dq, (dk, dv)


@triton.jit
def _keys(
    dqs,
    blocks,
    few,
    given,
    numbers,
    first_key,
    noise,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
):
    """dk and dv of BLOCK_N keys, written; and the dq of all blocks of queries, and of `few`, with the keys' share."""
    k_matrix, v_matrix, dk_matrix, dv_matrix = given
    num_keys, scale, keep_scale = numbers
    offsets = keys_as_columns(BLOCK_N) if noise is not None else tl.arange(0, BLOCK_N)  # [BLOCK_N]
    left = num_keys - first_key
    k_matrix, v_matrix = skip_rows(k_matrix, first_key), skip_rows(v_matrix, first_key)
    dk_matrix, dv_matrix = skip_rows(dk_matrix, first_key), skip_rows(dv_matrix, first_key)
    k = load_rows(k_matrix, offsets, left, PARTS, D, MASK)  # [BLOCK_N, D_i]
    v = load_rows(v_matrix, offsets, left, PARTS, D, MASK)  # [BLOCK_N, D_i]
    k_wide = k
    if few is not None and WIDE != PARTS:
        k_wide = load_rows(k_matrix, offsets, left, WIDE, D, MASK)
    theirs = (k, v, k_wide)
    factors = (scale, keep_scale)
    sums = (None, None)
    few_dq = None
    if few is not None:
        few_dq, sums = _add_few(dqs[len(blocks)], sums, few, theirs, offsets, first_key, left, factors, noise, MASK)
    results = ()
    for i in tl.static_range(len(blocks)):
        dq, sums = _add_block(dqs[i], sums, blocks[i], theirs, offsets, first_key, left, factors, noise, MASK)
        results = results + (dq,)
    if few is not None:
        results = results + (few_dq,)
    dk, dv = sums
    if BLOCK_N == TAIL:
        dk = [tl.trans(x) for x in dk]
        dv = [tl.trans(x) for x in dv]
    store_rows(dk_matrix, offsets, left, dk, WIDE, D)
    store_rows(dv_matrix, offsets, left, dv, WIDE, D)
    return results


@triton.jit(do_not_specialize=["heads", "num_queries", "num_keys", "last_dropped"])
def attention_one_pass_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    grad_ptr,
    lse_ptr,
    dq_ptr,
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
    dq_row,
    dk_row,
    heads,
    num_queries,
    num_keys,
    scale,
    keep_scale,
    last_dropped,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr,
    FEW: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """dq, dk and dv of one (image, head) pair.

    Args: as of `attention_dq_kernel` and `attention_dk_dv_kernel`, and
        dq_ptr: [B, Nq, H, D] within rows of dq_row elements. dk_ptr, dv_ptr: [B, Nk, H, D] within rows of dk_row.
        PARTS, WIDE: the parts of the head_dim (see `triton_tiles`) where it is summed over, and for dk and dv.
        BLOCKS: blocks of BLOCK_M queries. FEW: whether there are up to TAIL queries more than these hold.
    """
    pair = tl.program_id(0)
    own = _own(pair, heads)
    q_matrix = _matrix(q_ptr, own, q_image, q_head, q_row, q_column)
    out_matrix = _matrix(out_ptr, own, tl.cast(num_queries, tl.int64) * heads * D, D, heads * D, 1)
    grad_matrix = _matrix(grad_ptr, own, grad_image, grad_head, grad_row, grad_column)
    k_matrix = _matrix(k_ptr, own, k_image, k_head, k_row, k_column)
    v_matrix = _matrix(v_ptr, own, v_image, v_head, v_row, v_column)
    dk_matrix = _matrix(dk_ptr, own, tl.cast(num_keys, tl.int64) * dk_row, D, dk_row, 1)
    dv_matrix = _matrix(dv_ptr, own, tl.cast(num_keys, tl.int64) * dk_row, D, dk_row, 1)
    lse_ptr += pair.to(tl.int64) * num_queries
    noise = noise_of(seed_ptr, pair, last_dropped) if DROPOUT else None

    queries = (q_matrix, out_matrix, grad_matrix, lse_ptr)
    blocks = ()
    dqs = ()
    for i in tl.static_range(BLOCKS):
        blocks = blocks + (_held(queries, (num_queries, keep_scale), i * BLOCK_M, PARTS, WIDE, D, BLOCK_M),)
        dqs = dqs + (zeros(BLOCK_M, PARTS),)
    few = None
    if FEW:
        few = _held(queries, (num_queries, keep_scale), BLOCKS * BLOCK_M, PARTS, WIDE, D, TAIL)
        transposed = ()
        for i in tl.static_range(len(WIDE)):
            transposed = transposed + (tl.zeros([WIDE[i][1] - WIDE[i][0], TAIL], tl.float32),)
        dqs = dqs + (transposed,)

    given = (k_matrix, v_matrix, dk_matrix, dv_matrix)
    numbers = (num_keys, scale, keep_scale)
    whole = num_keys // BLOCK_N * BLOCK_N
    for first_key in range(0, whole, BLOCK_N):
        dqs = _keys(dqs, blocks, few, given, numbers, first_key, noise, PARTS, WIDE, D, BLOCK_N, False)

    # What follows finds its addresses anew, from a zero that the compiler can't foresee: all those that it might go on
    # using would take registers in the loop.
    own = _own(pair + tl.minimum(num_keys, 0), heads)
    k_matrix = _matrix(k_ptr, own, k_image, k_head, k_row, k_column)
    v_matrix = _matrix(v_ptr, own, v_image, v_head, v_row, v_column)
    dk_matrix = _matrix(dk_ptr, own, tl.cast(num_keys, tl.int64) * dk_row, D, dk_row, 1)
    dv_matrix = _matrix(dv_ptr, own, tl.cast(num_keys, tl.int64) * dk_row, D, dk_row, 1)
    given = (k_matrix, v_matrix, dk_matrix, dv_matrix)
    for first_key in tl.range(whole, num_keys, TAIL, num_stages=1):
        dqs = _keys(dqs, blocks, few, given, numbers, first_key, noise, PARTS, WIDE, D, TAIL, True)

    dq_matrix = _matrix(dq_ptr, own, tl.cast(num_queries, tl.int64) * dq_row, D, dq_row, 1)
    for i in tl.static_range(BLOCKS):
        dq = [x * (scale * keep_scale) for x in dqs[i]]
        store_rows(dq_matrix, i * BLOCK_M + tl.arange(0, BLOCK_M), num_queries, dq, PARTS, D)
    if FEW:
        dq = [tl.trans(x) * (scale * keep_scale) for x in dqs[BLOCKS]]
        store_rows(dq_matrix, BLOCKS * BLOCK_M + tl.arange(0, TAIL), num_queries, dq, WIDE, D)


def _blocks(num_queries: int) -> tuple[int, bool]:
    """Blocks of _BLOCK_M queries, and whether those beyond go to a block of TAIL."""
    whole, left = divmod(num_queries, _BLOCK_M)
    few = whole > 0 and 0 < left <= TAIL.value
    return whole + (left > 0 and not few), few


def takes(capability: int, head_dim: int, math: str, dropout: bool, num_queries: int, num_keys: int) -> bool:
    """Whether `backward_one_pass` can take these arguments, and is to be preferred to the two kernels there.

    Args: see `tiling.fixed`, and
        num_queries, num_keys: lengths.
    """
    blocks, few = _blocks(num_queries)
    if math != "half" or not 0 < blocks <= _MOST_BLOCKS or num_keys > num_queries + _BLOCK_N:
        return False
    if interpreting():  # whatever is faster
        return head_dim <= 48
    rows = blocks * _BLOCK_M
    return 90 <= capability < 100 and head_dim <= 48 and not few and rows <= 1.25 * num_queries


def backward_one_pass(
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
    """Write the gradients, where `takes` says so.

    Args:
        grad: that of out, [B, H, Nq, D], any strides.
        q, k, v, out, lse, seed, dropout_p, scale: what `triton_forward.forward` was given and has written.
        dq: [B, H, Nq, D]; dk, dv: [B, H, Nk, D]; with strides (N * row, D, row, 1), where row >= H * D is the same for
            dk and dv: each a transposed contiguous [B, N, H, D], or a part of a packed [B, N, 3, H, D].
    """
    tensors = (q, k, v, out, grad, lse, dq, dk, dv, seed)
    strides = (*q.stride(), *k.stride(), *v.stride(), *grad.stride(), dq.stride(2), dk.stride(2))
    arguments = (*tensors, *strides, *numbers_of(q, k, dropout_p, scale))
    key = key_of("one pass", q, tensors, *strides, *q.shape, k.shape[2], dropout_p > 0)
    with torch.cuda.device_of(q):
        if not restart(key, arguments):
            batch, heads, num_queries, head_dim = q.shape
            constants = _constants(head_dim, *_blocks(num_queries), dropout_p > 0)
            start(key, attention_one_pass_kernel, arguments, (batch * heads, 1, 1), constants, _OPTIONS)


_OPTIONS = {"num_warps": _NUM_WARPS, "num_stages": 2, "maxnreg": 255}


def _constants(head_dim: int, blocks: int, few: bool, dropout: bool) -> dict[str, Any]:
    parts, wide = Tiling().parts(head_dim), Tiling(padded=True).parts(head_dim)
    tiles = {"BLOCK_M": _BLOCK_M, "BLOCK_N": _BLOCK_N, "BLOCKS": blocks, "FEW": few}
    return {"PARTS": parts, "WIDE": wide, "D": head_dim, "DROPOUT": dropout, **tiles}


def builds(capability: int) -> list[Build]:
    """What is compiled for GPUs of some capability."""
    return [
        _build(head_dim, num_queries, dropout)
        for head_dim in (48,)
        for num_queries in (256, 257)
        for dropout in (False, True)
        if takes(capability, head_dim, "half", dropout, num_queries, num_queries)
    ]


def _build(head_dim: int, num_queries: int, dropout: bool) -> Build:
    kernel = attention_one_pass_kernel
    blocks, few = _blocks(num_queries)
    constants = _constants(head_dim, blocks, few, dropout)
    constants |= {argument: 1 for argument in kernel.arg_names if argument.endswith("_column")}
    constants |= {} if dropout else {"seed_ptr": None}
    types = {"lse_ptr": "*fp32", "seed_ptr": "*i64", "scale": "fp32", "keep_scale": "fp32"}
    elements = _BLOCK_N * (blocks * _BLOCK_M + TAIL.value * few)
    remark = f", N={num_queries}" if few else ""
    return Build(
        f"attention one pass, head_dim {head_dim}{remark}, half{', dropout' if dropout else ''}",
        kernel,
        signature={
            argument: types.get(argument, "*bf16" if argument.endswith("_ptr") else "i32")
            for argument in kernel.arg_names
            if argument not in constants
        },
        constants=constants,
        num_warps=_NUM_WARPS,
        num_stages=_OPTIONS["num_stages"],
        max_registers=_OPTIONS["maxnreg"],
        aligned=tuple(x for x in kernel.arg_names if x.endswith(("_image", "_head", "_row"))),
        elements=elements,
        ideal_macs=5 * head_dim * elements,
    )
