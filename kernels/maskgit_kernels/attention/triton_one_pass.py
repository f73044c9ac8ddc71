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
    keep_by_rows,
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
_MOST_KEYS = 320  # for more, two kernels have more programs, and as few bytes
_NUM_WARPS = 8


@triton.jit
def _matrices(arguments, pair, heads):
    """Those of an (image, head) pair.

    Args:
        arguments: for each, a pointer and the strides of images, heads, rows and columns.
    """
    image, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    matrices = ()
    for i in tl.static_range(len(arguments)):
        pointer, image_stride, head_stride, row_stride, column_stride = arguments[i]
        matrices = matrices + ((pointer + image * image_stride + head * head_stride, row_stride, column_stride),)
    return matrices


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
def _held(
    given,
    lse_ptr,
    num_queries,
    keep_scale,
    first_query,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What the program keeps of BLOCK_M queries: q and grad by PARTS and by WIDE, log-sum-exp, delta / c, indices."""
    q_matrix, out_matrix, grad_matrix = given
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
def _add_block(dq, sums, held, theirs, offsets, first_key, left, factors, noise, MASK: tl.constexpr):
    """The share of one tile of scores, [BLOCK_M, BLOCK_N]: dq, dk and dv with it.

    Args:
        dq: of a block of queries, [BLOCK_M, D_i].
        sums: dk and dv of BLOCK_N keys, each [BLOCK_N, D_i], or None if this is the first tile of theirs.
        held: see `_held`.
        theirs: k and v by PARTS.
        offsets, left: of the keys from `first_key` on, and how many there are. Scores count in powers of two.
    """
    q, grad, q_wide, grad_wide, lse, delta, queries = held
    k, v = theirs
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
    """dk and dv of BLOCK_N keys, written; and the dq of all blocks of queries with the keys' share."""
    k_matrix, v_matrix, dk_matrix, dv_matrix = given
    num_keys, scale, keep_scale = numbers
    offsets = keys_as_columns(BLOCK_N) if noise is not None else tl.arange(0, BLOCK_N)  # [BLOCK_N]
    left = num_keys - first_key
    k_matrix, v_matrix = skip_rows(k_matrix, first_key), skip_rows(v_matrix, first_key)
    dk_matrix, dv_matrix = skip_rows(dk_matrix, first_key), skip_rows(dv_matrix, first_key)
    k = load_rows(k_matrix, offsets, left, PARTS, D, MASK)  # [BLOCK_N, D_i]
    v = load_rows(v_matrix, offsets, left, PARTS, D, MASK)  # [BLOCK_N, D_i]
    theirs = (k, v)
    factors = (scale, keep_scale)
    sums = (None, None)
    results = ()
    for i in tl.static_range(len(blocks)):
        dq, sums = _add_block(dqs[i], sums, blocks[i], theirs, offsets, first_key, left, factors, noise, MASK)
        results = results + (dq,)
    dk, dv = sums
    if BLOCK_N == TAIL:
        dk = [tl.trans(x) for x in dk]
        dv = [tl.trans(x) for x in dv]
    store_rows(dk_matrix, offsets, left, dk, WIDE, D)
    store_rows(dv_matrix, offsets, left, dv, WIDE, D)
    return results


@triton.jit
def _few_add(
    dq,
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
    """dq of `few` queries with the share of BLOCK_N keys, and these keys' dk and dv, read and written, with theirs.

    Scores are transposed here, [BLOCK_N, TAIL]: keys fill the rows of tensor cores, as so few queries would not. So is
    dq, [D_i, TAIL].
    """
    q, grad, q_wide, grad_wide, lse, delta, queries = few
    k_matrix, v_matrix, dk_matrix, dv_matrix = given
    num_keys, scale, keep_scale = numbers
    keys = first_key + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = load_rows(k_matrix, keys, num_keys, PARTS, D, MASK)  # [BLOCK_N, D_i]
    v = load_rows(v_matrix, keys, num_keys, PARTS, D, MASK)  # [BLOCK_N, D_i]
    k_wide = load_rows(k_matrix, keys, num_keys, WIDE, D, MASK)  # [BLOCK_N, D_i]
    weights = tl.exp2(product(k, q, "ieee") * (scale * LOG2_E) - lse[None, :])  # [BLOCK_N, TAIL]
    if MASK:
        weights = tl.where(keys[:, None] < num_keys, weights, 0.0)
    keep = keep_by_rows(noise, queries, first_key, BLOCK_N) if noise is not None else None
    kept, dscores = _shares(weights, product(v, grad, "ieee"), delta[None, :], keep)
    kept, dscores = kept.to(q[0].dtype), dscores.to(q[0].dtype)
    dk = load_rows(dk_matrix, keys, num_keys, PARTS, D, MASK)  # [BLOCK_N, D_i]
    dv = load_rows(dv_matrix, keys, num_keys, PARTS, D, MASK)  # [BLOCK_N, D_i]
    dks = ()
    dvs = ()
    for i in tl.static_range(len(PARTS)):
        dks = dks + (dk[i].to(tl.float32) + tl.dot(dscores, q[i]) * (scale * keep_scale),)
        dvs = dvs + (dv[i].to(tl.float32) + tl.dot(kept, grad[i]) * keep_scale,)
    store_rows(dk_matrix, keys, num_keys, dks, PARTS, D)
    store_rows(dv_matrix, keys, num_keys, dvs, PARTS, D)
    results = ()
    for i in tl.static_range(len(WIDE)):
        results = results + (dq[i] + tl.dot(tl.trans(k_wide[i]), dscores) * (scale * keep_scale),)
    return results


@triton.jit
def _few_queries(
    few,
    given,
    dq_matrix,
    numbers,
    num_queries,
    noise,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dq of up to TAIL queries, and their share in dk and dv, in which that of all others is."""
    num_keys = numbers[0]
    dq = ()
    for i in tl.static_range(len(WIDE)):
        dq = dq + (tl.zeros([WIDE[i][1] - WIDE[i][0], TAIL], tl.float32),)
    whole = num_keys // BLOCK_N * BLOCK_N
    for first_key in tl.range(0, whole, BLOCK_N, num_stages=1):
        dq = _few_add(dq, few, given, numbers, first_key, noise, PARTS, WIDE, D, BLOCK_N, False)
    for first_key in tl.range(whole, num_keys, TAIL, num_stages=1):
        dq = _few_add(dq, few, given, numbers, first_key, noise, PARTS, WIDE, D, TAIL, True)
    dq = [tl.trans(x) for x in dq]
    store_rows(dq_matrix, few[6], num_queries, dq, WIDE, D)


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
    out_image,
    out_head,
    out_row,
    out_column,
    dq_image,
    dq_row,
    dk_image,
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
        out_ptr: [B, H, Nq, D], with the four strides of its name.
        dq_ptr: [B, Nq, H, D], strides dq_image, dq_row, D, 1. dk_ptr, dv_ptr: [B, Nk, H, D], dk_image, dk_row, D, 1.
        PARTS, WIDE: the parts of the head_dim (see `triton_tiles`) where it is summed over, and for dk and dv.
        BLOCKS: blocks of BLOCK_M queries. FEW: whether there are up to TAIL queries more than these hold.
    """
    pair = tl.program_id(0)
    theirs = (
        (q_ptr, q_image, q_head, q_row, q_column),
        (out_ptr, out_image, out_head, out_row, out_column),
        (grad_ptr, grad_image, grad_head, grad_row, grad_column),
    )
    keys = (
        (k_ptr, k_image, k_head, k_row, k_column),
        (v_ptr, v_image, v_head, v_row, v_column),
        (dk_ptr, dk_image, D, dk_row, 1),
        (dv_ptr, dk_image, D, dk_row, 1),
    )
    dq_matrix = ((dq_ptr, dq_image, D, dq_row, 1),)
    noise = noise_of(seed_ptr, pair, last_dropped) if DROPOUT else None
    numbers = (num_keys, scale, keep_scale)

    given = _matrices(theirs, pair, heads)
    lse = lse_ptr + pair.to(tl.int64) * num_queries
    blocks = ()
    dqs = ()
    for i in tl.static_range(BLOCKS):
        blocks = blocks + (_held(given, lse, num_queries, keep_scale, i * BLOCK_M, PARTS, WIDE, D, BLOCK_M),)
        dqs = dqs + (zeros(BLOCK_M, PARTS),)
    given = _matrices(keys, pair, heads)
    whole = num_keys // BLOCK_N * BLOCK_N
    for first_key in range(0, whole, BLOCK_N):
        dqs = _keys(dqs, blocks, given, numbers, first_key, noise, PARTS, WIDE, D, BLOCK_N, False)

    # What follows finds its addresses anew, from zeros that the compiler can't foresee: all those that it might go on
    # using would take registers in the loops between.
    pair += tl.minimum(num_keys, 0)
    given = _matrices(keys, pair, heads)
    for first_key in tl.range(whole, num_keys, TAIL, num_stages=1):
        dqs = _keys(dqs, blocks, given, numbers, first_key, noise, PARTS, WIDE, D, TAIL, True)
    pair += tl.minimum(num_queries, 0)
    (dq_matrix,) = _matrices(dq_matrix, pair, heads)
    for i in tl.static_range(BLOCKS):
        dq = [x * (scale * keep_scale) for x in dqs[i]]
        store_rows(dq_matrix, i * BLOCK_M + tl.arange(0, BLOCK_M), num_queries, dq, PARTS, D)

    if FEW:
        tl.debug_barrier()  # other threads go on with the dk and dv that these have written
        given = _matrices(theirs, pair, heads)
        lse = lse_ptr + pair.to(tl.int64) * num_queries
        few = _held(given, lse, num_queries, keep_scale, BLOCKS * BLOCK_M, PARTS, WIDE, D, TAIL)
        given, numbers = _matrices(keys, pair, heads), (num_keys + tl.minimum(num_queries, 0), scale, keep_scale)
        _few_queries(few, given, dq_matrix, numbers, num_queries, noise, PARTS, WIDE, D, BLOCK_M)


def _blocks(num_queries: int) -> tuple[int, bool]:
    """Blocks of _BLOCK_M queries, and whether those beyond go to a block of TAIL."""
    whole, left = divmod(num_queries, _BLOCK_M)
    few = whole > 0 and 0 < left <= TAIL.value
    return whole + (left > 0 and not few), few


def takes(capability: int, head_dim: int, math: str, dropout: bool, num_queries: int, num_keys: int) -> bool:
    """Whether `backward_one_pass` can take these arguments and, by what it compiles to, needs less than two kernels.

    Instructions for each score of 256 by 256, of the two kernels together and of this one, with dropout in brackets:

        capability 9.0, head_dim 48: 18.5 and 12.4 (32.6 and 18.7)
        capability 9.0, head_dim 96: 23.4 and over 20 (39.3 and over 27), queries and dk, dv taken in halves; spills
        capability 8.0, head_dim 48: 21.0 and 18.4 (35.3 and 26.4), and 20 (50) registers are spilled
        capability 10.0, head_dim 48: 21.2 and 20.7 (33.5 and 28.8): each product waits for the one before it

    Args: see `tiling.fixed`, and
        num_queries, num_keys: lengths.
    """
    blocks, _ = _blocks(num_queries)
    if math != "half" or head_dim > 48 or not 0 < blocks <= _MOST_BLOCKS or not 0 < num_keys <= _MOST_KEYS:
        return False
    if interpreting():  # whatever is faster
        return True
    return 90 <= capability < 100 and head_dim == 48 and blocks * _BLOCK_M <= 1.25 * num_queries


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
    strides = (*q.stride(), *k.stride(), *v.stride(), *grad.stride(), *out.stride())
    strides += (dq.stride(0), dq.stride(2), dk.stride(0), dk.stride(2))
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
    elements = _BLOCK_N * blocks * _BLOCK_M  # of a pass of the main loop, which knows nothing of the few
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
