"""The loss of head_loss in Triton: rows packed on the device, a matrix product that leaves softmax weights, their sums.

Rows. The counted ones are numbered in one list for the whole batch, made on the device, so that the host needn't know
how many there are: it launches programs for all, and those beyond the last row end at once. The rows of a position are
neighbours in the list, and so the gradient of its bias is a sum over neighbours.

Product. A program multiplies BLOCK_M rows with the weights of BLOCK_V codes. Of its tile of logits it leaves a few
numbers of each row, as of an online softmax, and for the gradients the weights exp(logit - the row's largest in the
tile), in the dtype that is multiplied: rounded, they are off by a share of themselves, where rounded logits would be
off by a share of their exponent.

Joining. The tiles of a row are joined to its loss. All sums are over differences from the largest logit, so that large
logits cancel before anything is rounded.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from maskgit_kernels.interpreter import mend
from maskgit_kernels.tf32_triton import round_to_tf32

mend()

LOG2_E = tl.constexpr(math.log2(math.e))
_FAR = tl.constexpr(2.0**100)  # beyond any logit, and finite times any number of codes


@triton.jit(do_not_specialize=["batch", "length"])
def pack_rows(counted, rows, starts, batch, length, BLOCK: tl.constexpr):
    """The numbers image * N + position of the counted rows, in the order of positions, and of those of images.

    Each program counts for itself what comes before its BLOCK candidates: bool [B, N] is small.

    Args:
        counted: bool [B, N].
        rows: int32 [B * N], of which as many are written as are counted.
        starts: int32 [N + 1]: where in `rows` each position begins, and at last how many there are.
    """
    offsets = tl.arange(0, BLOCK)  # [BLOCK]
    first, candidates = tl.program_id(0) * BLOCK, batch * length
    earlier = tl.zeros([BLOCK], tl.int32)
    for start in range(0, first, BLOCK):
        candidate = start + offsets
        earlier += tl.load(counted + (candidate % batch * length + candidate // batch)).to(tl.int32)
    candidate = first + offsets  # [BLOCK]
    image, position = candidate % batch, candidate // batch
    inside = candidate < candidates
    on = tl.load(counted + (image * length + position), inside, other=0).to(tl.int32)  # [BLOCK]
    place = tl.sum(earlier, 0) + tl.cumsum(on, 0) - on  # [BLOCK]
    tl.store(rows + place, image * length + position, inside & (on > 0))
    tl.store(starts + position, place, inside & (image == 0))
    tl.store(starts + (position + 1), place + on, candidate == candidates - 1)


@triton.jit
def load(address, inside, ALL_INSIDE: tl.constexpr):
    """A block of which nothing, or what is not `inside`, is taken to be 0."""
    if ALL_INSIDE:
        return tl.load(address)
    else:
        return tl.load(address, mask=inside, other=0.0)


@triton.jit
def _logits(
    hidden,
    weight,
    bias,
    row_numbers,
    codes,
    length,
    width,
    NUM_CODES: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """float32 [BLOCK_M, BLOCK_V], -inf beyond the last code; row_numbers: int32 [BLOCK_M], codes: int32 [BLOCK_V]."""
    ALL_CODES: tl.constexpr = NUM_CODES % BLOCK_V == 0
    # The sum begins with the bias, in registers that it needs anyway.
    sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    if BIAS == "position":
        bias_rows = (row_numbers % length).to(tl.int64) * NUM_CODES  # [BLOCK_M]
        sums += load(bias + (bias_rows[:, None] + codes[None, :]), (codes < NUM_CODES)[None, :], ALL_CODES).to(
            tl.float32
        )
    elif BIAS == "code":
        sums += load(bias + codes, codes < NUM_CODES, ALL_CODES).to(tl.float32)[None, :]
    hidden_rows = row_numbers.to(tl.int64) * width  # [BLOCK_M]
    weight_rows = tl.minimum(codes, NUM_CODES - 1).to(tl.int64) * width  # [BLOCK_V]
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)  # [BLOCK_D]
        inside = d < width
        h = load(hidden + (hidden_rows[:, None] + d[None, :]), inside[None, :], EVEN_WIDTH)  # [BLOCK_M, BLOCK_D]
        w = load(weight + (weight_rows[None, :] + d[:, None]), inside[:, None], EVEN_WIDTH)  # [BLOCK_D, BLOCK_V]
        if PRECISION == "tf32":
            h, w = round_to_tf32(h), round_to_tf32(w)
        sums = tl.dot(h, w, sums, input_precision=PRECISION)
    if not ALL_CODES:
        sums = tl.where((codes < NUM_CODES)[None, :], sums, float("-inf"))
    return sums


@triton.jit(do_not_specialize=["first_row", "length"])
def weigh_tiles(
    hidden,
    weight,
    bias,
    targets,
    rows,
    starts,
    weights,
    tops,
    totals,
    codes_of_tops,
    drops,
    target_logits,
    first_row,
    chunk,
    length,
    width,
    NUM_CODES: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The logits of BLOCK_M rows and BLOCK_V codes, and what is left of them.

    Args:
        hidden: [B, N, D]. weight: [V, D]. bias: [V], [N, V] or None, as BIAS says. targets: int64 [B, N].
        rows, starts: of `pack_rows`.
        weights: [chunk, tiles * BLOCK_V], exp(logit - top), 0 beyond the last code; None if they aren't wanted.
        tops: float32 [tiles, chunk], a row's largest logit in a tile. codes_of_tops: int32, the first code that has it.
        totals: float32 [tiles, chunk], sum of exp(logit - top).
        drops: float32 [tiles, chunk], sum of top - logit; None without label smoothing.
        target_logits: float32 [chunk], written by the program that has the target, if one has.
        first_row: of the chunk of packed rows that is computed.
    """
    block, tile = tl.program_id(0), tl.program_id(1)
    count = tl.load(starts + length)
    if first_row + block * BLOCK_M >= count:
        return
    local = block * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M], rows of the chunk
    # Beyond the last row some row is computed again: there is room for what comes of it, and nobody reads it.
    row_numbers = tl.load(rows + (first_row + local), first_row + local < count, other=0)
    codes = tile * BLOCK_V + tl.arange(0, BLOCK_V)  # [BLOCK_V]
    logits = _logits(
        hidden,
        weight,
        bias,
        row_numbers,
        codes,
        length,
        width,
        NUM_CODES,
        BIAS,
        EVEN_WIDTH,
        PRECISION,
        BLOCK_M,
        BLOCK_V,
        BLOCK_D,
    )  # [BLOCK_M, BLOCK_V]
    at = tile * chunk + local  # [BLOCK_M]
    top = tl.maximum(tl.max(logits, 1), -_FAR)  # [BLOCK_M]; finite even where no code is possible
    # A row of NaN equals nothing, and gets a code that there is.
    code = tl.min(tl.where(logits == top[:, None], codes[None, :], NUM_CODES - 1), 1)
    tl.store(tops + at, top)
    tl.store(codes_of_tops + at, code)

    target = tl.load(targets + row_numbers)  # [BLOCK_M]
    is_here = (target >= tile * BLOCK_V) & (target < tl.minimum((tile + 1) * BLOCK_V, NUM_CODES))
    of_target = codes[None, :] == tl.where(is_here, target, -1).to(tl.int32)[:, None]  # [BLOCK_M, BLOCK_V]
    tl.store(target_logits + local, tl.sum(tl.where(of_target, logits, 0.0), 1), is_here)

    differences = logits - top[:, None]  # [BLOCK_M, BLOCK_V]
    if drops is not None:
        real = differences if NUM_CODES % BLOCK_V == 0 else tl.where((codes < NUM_CODES)[None, :], differences, 0.0)
        tl.store(drops + at, -tl.sum(real, 1))
    exponentials = tl.exp2(differences * LOG2_E)
    tl.store(totals + at, tl.sum(exponentials, 1))
    if weights is not None:
        stride = tl.num_programs(1) * BLOCK_V
        address = weights + (local[:, None] * stride + codes[None, :])  # [BLOCK_M, BLOCK_V]
        tl.store(address, exponentials.to(weights.dtype.element_ty))


@triton.jit(do_not_specialize=["first_row", "length"])
def join_tiles(
    hits_among,
    targets,
    rows,
    starts,
    tops,
    totals,
    codes_of_tops,
    drops,
    target_logits,
    row_tops,
    row_totals,
    losses,
    hits,
    first_row,
    chunk,
    length,
    smoothing,
    NUM_CODES: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Losses and hits of BLOCK_M rows from what `weigh_tiles` left of them.

    Args: as of `weigh_tiles`, and
        hits_among: bool [B, N].
        row_tops, row_totals: float32 [chunk], a row's largest logit, and the sum of exp(logit - that).
        losses: float32 [B * N], hits: int32 [B * N], in the order of `rows`.
    """
    count = tl.load(starts + length)
    local = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    if first_row + tl.program_id(0) * BLOCK_M >= count:
        return
    inside = first_row + local < count
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    code = tl.zeros([BLOCK_M], tl.int32)
    for first_tile in range(0, TILES, BLOCK_T):
        tile = first_tile + tl.arange(0, BLOCK_T)  # [BLOCK_T]
        there = (tile < TILES)[:, None] & inside[None, :]
        at = tile[:, None] * chunk + local[None, :]  # [BLOCK_T, BLOCK_M]
        tile_tops = tl.load(tops + at, there, other=float("-inf"))
        tile_codes = tl.load(codes_of_tops + at, there, other=NUM_CODES)
        best = tl.max(tile_tops, 0)  # [BLOCK_M]
        code = tl.where(best > top, tl.min(tl.where(tile_tops == best[None, :], tile_codes, NUM_CODES), 0), code)
        top = tl.maximum(top, best)
    total = tl.zeros([BLOCK_M], tl.float32)
    drop = tl.zeros([BLOCK_M], tl.float32)
    for first_tile in range(0, TILES, BLOCK_T):
        tile = first_tile + tl.arange(0, BLOCK_T)  # [BLOCK_T]
        there = (tile < TILES)[:, None] & inside[None, :]
        at = tile[:, None] * chunk + local[None, :]  # [BLOCK_T, BLOCK_M]
        below = top[None, :] - tl.load(tops + at, there, other=0.0)  # [BLOCK_T, BLOCK_M]
        total += tl.sum(tl.load(totals + at, there, other=0.0) * tl.exp2(-below * LOG2_E), 0)
        if drops is not None:
            codes_there = tl.minimum(NUM_CODES - tile * BLOCK_V, BLOCK_V)  # [BLOCK_T]
            tile_drops = tl.load(drops + at, there, other=0.0) + below * codes_there[:, None]
            drop += tl.sum(tl.where(there, tile_drops, 0.0), 0)

    row_numbers = tl.load(rows + (first_row + local), inside, other=0)
    target = tl.load(targets + row_numbers, inside, other=-1)  # [BLOCK_M]
    is_code = (target >= 0) & (target < NUM_CODES)
    target_logit = tl.load(target_logits + local, inside & is_code, other=float("nan"))
    loss = tl.log(total) + (1 - smoothing) * (top - target_logit)
    if drops is not None:
        loss += smoothing / NUM_CODES * drop
    among = tl.load(hits_among + row_numbers, inside, other=0).to(tl.int1)
    tl.store(losses + (first_row + local), loss, inside)
    tl.store(hits + (first_row + local), (among & (code == target)).to(tl.int32), inside)
    tl.store(row_tops + local, top, inside)
    tl.store(row_totals + local, total, inside)


@triton.jit(do_not_specialize=["length"])
def sum_rows(losses, hits, starts, loss, hit_count, length, BLOCK: tl.constexpr):
    """loss: float32 [], hit_count: int64 [], the sums of losses and hits of the counted rows, in one order."""
    count = tl.load(starts + length)
    loss_sums = tl.zeros([BLOCK], tl.float32)
    hit_sums = tl.zeros([BLOCK], tl.int64)
    for first in range(0, count, BLOCK):
        row = first + tl.arange(0, BLOCK)  # [BLOCK]
        loss_sums += tl.load(losses + row, row < count, other=0.0)
        hit_sums += tl.load(hits + row, row < count, other=0)
    tl.store(loss, tl.sum(loss_sums, 0))
    tl.store(hit_count, tl.sum(hit_sums, 0))
