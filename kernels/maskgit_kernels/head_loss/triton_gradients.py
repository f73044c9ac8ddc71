"""The gradients of head_loss in Triton, from the softmax weights that `triton_loss` has left of a chunk of rows.

    dlogits = softmax(logits) - (1 - smoothing) * [code is the target] - smoothing / V

takes the place of the weights, and is then multiplied with the weight of the head, for the hidden states, and with the
hidden states, for the weight. Nothing is added up atomically, so the sums are the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels.head_loss.triton_loss import LOG2_E, load
from maskgit_kernels.tf32_triton import round_to_tf32


@triton.jit(do_not_specialize=["first_row", "length"])
def differentiate_logits(
    weights,
    dlogits,
    tops,
    row_tops,
    row_totals,
    targets,
    rows,
    starts,
    sums,
    first_row,
    chunk,
    length,
    smoothing,
    NUM_CODES: tl.constexpr,
    SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """dlogits of the rows of one position, or of SEGMENT rows, and BLOCK_V codes.

    Args: as of `triton_loss.join_tiles`, and
        dlogits: [chunk, tiles * BLOCK_V], rounded to what is multiplied. May be the memory of `weights`: an
            element is written by the thread that has read it, and read by no other.
        sums: float32 [N or segments of a chunk, V], to which dlogits are added, before they are rounded, or None.
        SEGMENT: None for the rows of a position.
    """
    segment, tile = tl.program_id(0), tl.program_id(1)
    if SEGMENT is None:  # of a position's rows some may be in another chunk
        begin = tl.maximum(tl.load(starts + segment), first_row)
        end = tl.minimum(tl.load(starts + segment + 1), first_row + chunk)
    else:
        begin = first_row + segment * SEGMENT
        end = tl.minimum(begin + SEGMENT, tl.load(starts + length))
    if begin >= end:
        return
    codes = tile * BLOCK_V + tl.arange(0, BLOCK_V)  # [BLOCK_V]
    column_sums = tl.zeros([BLOCK_V], tl.float32)
    for first in range(begin, end, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        inside = row < end
        local = row - first_row
        below = tl.load(row_tops + local, inside, other=0.0) - tl.load(tops + (tile * chunk + local), inside, other=0.0)
        scale = tl.exp2(-below * LOG2_E) / tl.load(row_totals + local, inside, other=1.0)  # [BLOCK_M]
        target = tl.load(targets + tl.load(rows + row, inside, other=0), inside, other=-1)  # [BLOCK_M]
        is_code = (target >= 0) & (target < NUM_CODES)
        of_target = codes[None, :] == tl.where(is_code, target, -1).to(tl.int32)[:, None]  # [BLOCK_M, BLOCK_V]
        at = local[:, None] * (tl.num_programs(1) * BLOCK_V) + codes[None, :]  # [BLOCK_M, BLOCK_V]
        gradients = tl.load(weights + at, inside[:, None], other=0.0).to(tl.float32) * scale[:, None]
        gradients -= tl.where(of_target, 1 - smoothing, 0.0) + smoothing / NUM_CODES
        column_sums += tl.sum(tl.where(inside[:, None], gradients, 0.0), 0)
        if PRECISION == "tf32":
            gradients = round_to_tf32(gradients)
        tl.store(dlogits + at, gradients.to(dlogits.dtype.element_ty), inside[:, None])
    if sums is not None:
        address = sums + (segment.to(tl.int64) * NUM_CODES + codes)  # [BLOCK_V]
        tl.store(address, tl.load(address, codes < NUM_CODES, other=0.0) + column_sums, codes < NUM_CODES)


@triton.jit(do_not_specialize=["first_row", "length"])
def differentiate_hidden(
    dlogits,
    weight,
    rows,
    starts,
    dhidden,
    first_row,
    chunk,
    length,
    width,
    NUM_CODES: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """BLOCK_D elements of the gradients of BLOCK_M rows: dlogits @ weight.

    Args: as of `triton_loss.weigh_tiles`, and
        dlogits: [chunk, CODES_STRIDE]; finite beyond the last code.
        dhidden: [B, N, D], of which the counted rows are written.
    """
    block = tl.program_id(0)
    count = tl.load(starts + length)
    if first_row + block * BLOCK_M >= count:
        return
    local = block * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)  # [BLOCK_D]
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first_code in range(0, NUM_CODES, BLOCK_V):
        codes = first_code + tl.arange(0, BLOCK_V)  # [BLOCK_V]
        g = tl.load(dlogits + (local[:, None] * CODES_STRIDE + codes[None, :]))  # [BLOCK_M, BLOCK_V]
        weight_rows = codes.to(tl.int64) * width
        there = (codes < NUM_CODES)[:, None] & (d < width)[None, :]
        EVEN: tl.constexpr = EVEN_WIDTH and NUM_CODES % BLOCK_V == 0
        w = load(weight + (weight_rows[:, None] + d[None, :]), there, EVEN)  # [BLOCK_V, BLOCK_D]
        if PRECISION == "tf32":  # g is rounded
            w = round_to_tf32(w)
        sums = tl.dot(g, w, sums, input_precision=PRECISION)
    inside = first_row + local < count
    row_numbers = tl.load(rows + (first_row + local), inside, other=0)
    address = dhidden + (row_numbers.to(tl.int64)[:, None] * width + d[None, :])  # [BLOCK_M, BLOCK_D]
    tl.store(address, sums.to(dhidden.dtype.element_ty), inside[:, None] & (d < width)[None, :])


@triton.jit(do_not_specialize=["first_row", "length"])
def differentiate_weight(
    dlogits,
    hidden,
    rows,
    starts,
    dweight,
    first_row,
    chunk,
    length,
    width,
    NUM_CODES: tl.constexpr,
    CODES_STRIDE: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Adds to BLOCK_D elements of the gradients of BLOCK_V codes: dlogits^T @ hidden, of every so many blocks of rows.

    Args: as of `differentiate_hidden`, and
        hidden: [B, N, D].
        dweight: float32 [slices, V, D], each with a share of the blocks of rows.
    """
    codes = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)  # [BLOCK_V]
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)  # [BLOCK_D]
    slice, slices = tl.program_id(2), tl.num_programs(2)
    end = tl.minimum(tl.load(starts + length), first_row + chunk)
    if first_row + slice * BLOCK_M >= end:
        return
    sums = tl.zeros([BLOCK_V, BLOCK_D], tl.float32)
    for first in range(first_row + slice * BLOCK_M, end, slices * BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        inside = row < end
        row_numbers = tl.load(rows + row, inside, other=0)
        there = inside[:, None] if EVEN_WIDTH else inside[:, None] & (d < width)[None, :]
        address = dlogits + ((row - first_row)[:, None] * CODES_STRIDE + codes[None, :])
        g = tl.load(address, inside[:, None], other=0.0)  # [BLOCK_M, BLOCK_V]
        h = tl.load(hidden + (row_numbers.to(tl.int64)[:, None] * width + d[None, :]), there, other=0.0)
        if PRECISION == "tf32":  # g is rounded
            h = round_to_tf32(h)  # [BLOCK_M, BLOCK_D]
        sums = tl.dot(tl.trans(g), h, sums, input_precision=PRECISION)
    there = (codes < NUM_CODES)[:, None] & (d < width)[None, :]
    code_rows = (slice.to(tl.int64) * NUM_CODES + codes) * width
    address = dweight + (code_rows[:, None] + d[None, :])  # [BLOCK_V, BLOCK_D]
    tl.store(address, tl.load(address, there, other=0.0) + sums, there)
