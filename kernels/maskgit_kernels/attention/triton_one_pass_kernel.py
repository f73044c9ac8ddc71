"""Attention backward of short sequences in one pass: a program for each (image, head) gives dq, dk and dv.

The program holds all queries and goes through the keys once. Each tile of scores is so computed once, and not once for
dq and once more for dk and dv, as by the two kernels of `triton_backward`: five matrix products in place of seven, one
exponential in place of two, dropout's noise once. Still every sum is made in one program's fixed order, without atomic
additions. The mathematics is that of `triton_backward`.

dq of all queries stays in registers, [BLOCK_M, D] for each block of queries. It is the only sum that lives through the
loop, which is why queries are held and not keys: of these there would be two, dk and dv.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
def _scaled(blocks, factor):
    return [x * factor for x in blocks]


@triton.jit
def _transposed(blocks):
    return [tl.trans(x) for x in blocks]


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
    # Queries that are not there have weights, of 1, but no share in any sum: their q, grad and delta are zeros.
    lse = tl.load(lse_ptr + queries, mask=queries < num_queries, other=0.0)  # [BLOCK_M]
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
        dk, dv = _transposed(dk), _transposed(dv)
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
    store_rows(dq_matrix, few[6], num_queries, _transposed(dq), WIDE, D)


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
        queries = i * BLOCK_M + tl.arange(0, BLOCK_M)
        store_rows(dq_matrix, queries, num_queries, _scaled(dqs[i], scale * keep_scale), PARTS, D)

    if FEW:
        tl.debug_barrier()  # other threads go on with the dk and dv that these have written
        given = _matrices(theirs, pair, heads)
        lse = lse_ptr + pair.to(tl.int64) * num_queries
        few = _held(given, lse, num_queries, keep_scale, BLOCKS * BLOCK_M, PARTS, WIDE, D, TAIL)
        given, numbers = _matrices(keys, pair, heads), (num_keys + tl.minimum(num_queries, 0), scale, keep_scale)
        _few_queries(few, given, dq_matrix, numbers, num_queries, noise, PARTS, WIDE, D, BLOCK_M)
