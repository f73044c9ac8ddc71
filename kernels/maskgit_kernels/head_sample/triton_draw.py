"""Triton: the LM head's product, which draws from its tiles and keeps none of their logits.

Drawing. A program multiplies BLOCK_M masked rows of the hidden state with the weights of BLOCK_V codes. The tile of
logits stays in registers, and four numbers of a row leave it: the largest logit and the sum of weights relative to it,
as in an online softmax, and the best of logit + T * Gumbel with its code. The best of all codes is a draw from the
softmax at temperature T. So the logits, by far the largest tensor of a decoding step, are never in memory.

Sharing the noise. A Philox call gives the words of four adjacent codes, but beyond two the columns that a thread holds
of a tile are not adjacent. The rows of the weights are therefore loaded in such an order that four adjacent codes are
columns of one thread, and each call is made once.

Known rows cost next to nothing. The masked rows of the whole batch are listed first, so that tiles are full however few
and scattered an image's are, and programs beyond the last end at once. Which rows share a tile changes nothing: a row
of a product depends on no other, and each has its own image's key for its noise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels.philox import STREAM_TOKEN
from maskgit_kernels.philox_triton import gumbel, philox_4x32, seed_halves
from maskgit_kernels.tf32_triton import round_to_tf32

_FAR = tl.constexpr(2.0**100)  # beyond any logit, and finite times any sharpness
_STREAM_TOKEN = tl.constexpr(STREAM_TOKEN)


@triton.jit(do_not_specialize=["length"])
def list_masked(masked, listed, length, BLOCK: tl.constexpr):
    """List the masked positions of one image a program, after those of the images before it.

    listed: int32 [B * N + 1]: b * N + n of all that are masked, in order; last of all their number. BLOCK: as many as
    there are threads.
    """
    image = tl.program_id(0)
    first, end = image * length, (image + 1) * length
    many = tl.arange(0, 16 * BLOCK)  # of the images before a thread counts 16 positions at a time
    counts = tl.zeros([16 * BLOCK], tl.int32)
    for start in range(0, first, 16 * BLOCK):
        counts += tl.load(masked + start + many, start + many < first, other=0).to(tl.int32)
    place = tl.sum(counts, 0)
    for start in range(first, end, BLOCK):  # a thread has one, so that none travels
        row = start + tl.arange(0, BLOCK)  # [BLOCK]
        is_open = tl.load(masked + row, row < end, other=0).to(tl.int32)  # [BLOCK]
        tl.store(listed + place + tl.cumsum(is_open, 0) - 1, row, is_open > 0)
        place += tl.sum(is_open, 0)
    if image == tl.num_programs(0) - 1:
        tl.store(listed + end, place)


@triton.jit
def _codes_as_columns(BLOCK_V: tl.constexpr, SPAN: tl.constexpr):
    """Which of a tile's codes its columns stand for, [BLOCK_V].

    A thread holds columns c, c + 1, c + SPAN and c + SPAN + 1, c even. So of 2 * SPAN codes the one with the index bits
    C...CJE is column JC...CE.
    """
    columns = tl.arange(0, BLOCK_V)  # [BLOCK_V]
    group, quad = columns // (2 * SPAN), columns // 2 % (SPAN // 2)
    return group * (2 * SPAN) + quad * 4 + columns // SPAN % 2 * 2 + columns % 2


@triton.jit
def _by_columns(block, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, SPAN: tl.constexpr):
    """A block of BLOCK_M * BLOCK_V elements, with codes in order, as [BLOCK_M, BLOCK_V] with `_codes_as_columns`."""
    block = block.reshape(BLOCK_M, BLOCK_V // (2 * SPAN), SPAN // 2, 2, 2)  # [BLOCK_M, group, C...C, J, E]
    return block.permute(0, 1, 3, 2, 4).reshape(BLOCK_M, BLOCK_V)


@triton.jit
def _load(address, inside, ALL_INSIDE: tl.constexpr):
    if ALL_INSIDE:
        return tl.load(address)
    else:
        return tl.load(address, mask=inside, other=0.0)


@triton.jit
def _logits(
    head,
    rows,
    positions,
    first_code,
    NUM_CODES: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPAN: tl.constexpr,
):
    """The logits of the codes first_code + `_codes_as_columns`, float32 [BLOCK_M, BLOCK_V]; -inf beyond the last code.

    rows, positions: [BLOCK_M], of the hidden states [B * N, width], and of a bias [N, V].
    """
    hidden, guidance, guidance_scale, weight, bias, width = head
    codes = first_code + _codes_as_columns(BLOCK_V, SPAN)  # [BLOCK_V]
    weight_rows = tl.minimum(codes, NUM_CODES - 1)  # [BLOCK_V]

    # The sum begins with the bias, in registers that it needs anyway.
    if BIAS == "position":
        in_order = first_code + tl.arange(0, BLOCK_V)  # [BLOCK_V], of which a thread can load several at once
        address = bias + (positions.to(tl.int64)[:, None] * NUM_CODES + in_order[None, :])  # [BLOCK_M, BLOCK_V]
        sums = _load(address, (in_order < NUM_CODES)[None, :], NUM_CODES % BLOCK_V == 0).to(tl.float32)
        sums = _by_columns(sums, BLOCK_M, BLOCK_V, SPAN)
    elif BIAS == "code":
        sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32) + tl.load(bias + weight_rows).to(tl.float32)[None, :]
    else:
        sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)  # [BLOCK_D]
        inside = d < width
        row_offsets = rows[:, None].to(tl.int64) * width + d[None, :]  # [BLOCK_M, BLOCK_D]
        h = _load(hidden + row_offsets, inside[None, :], EVEN_WIDTH)  # [BLOCK_M, BLOCK_D]
        if guidance is not None:
            h32, g32 = h.to(tl.float32), _load(guidance + row_offsets, inside[None, :], EVEN_WIDTH).to(tl.float32)
            h = (h32 + guidance_scale * (h32 - g32)).to(h.dtype)
        code_offsets = weight_rows[None, :].to(tl.int64) * width + d[:, None]  # [BLOCK_D, BLOCK_V]
        w = _load(weight + code_offsets, inside[:, None], EVEN_WIDTH)  # [BLOCK_D, BLOCK_V]
        if PRECISION == "tf32":
            h, w = round_to_tf32(h), round_to_tf32(w)
        sums = tl.dot(h, w, sums, input_precision=PRECISION)
    if NUM_CODES % BLOCK_V != 0:
        sums = tl.where((codes < NUM_CODES)[None, :], sums, float("-inf"))
    return sums


@triton.jit
def _noise(
    row_seeds,
    positions,
    first_code,
    step,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Gumbel noise for the codes first_code + `_codes_as_columns`, [BLOCK_M, BLOCK_V].

    row_seeds: int64 [BLOCK_M], positions: int32 [BLOCK_M].
    """
    key0, key1 = seed_halves(row_seeds[:, None, None])
    quads = first_code // 4 + tl.arange(0, BLOCK_V // 4)  # [BLOCK_V / 4]
    w0, w1, w2, w3 = philox_4x32(
        key0, key1, quads[None, :, None], positions[:, None, None], step, _STREAM_TOKEN
    )  # [BLOCK_M, BLOCK_V / 4, 1] each
    # Triton weighs what it would cost to move these numbers to the threads of the columns against making them there,
    # by their bytes: as 64 bits they are made there. Of that, and of the choice by j, no instruction is left.
    w0, w1, w2, w3 = w0.to(tl.uint64), w1.to(tl.uint64), w2.to(tl.uint64), w3.to(tl.uint64)
    j = tl.arange(0, 4)[None, None, :]
    words = tl.where(j < 2, tl.where(j == 0, w0, w1), tl.where(j == 2, w2, w3))  # [BLOCK_M, BLOCK_V / 4, 4]
    return gumbel(_by_columns(words.to(tl.uint32), BLOCK_M, BLOCK_V, SPAN))


@triton.jit
def _weigh(logits, sharpness):
    """Of each row of a tile the largest logit * sharpness, `top`, and the sum of 2 ** (logit * sharpness - top)."""
    top = tl.maximum(tl.max(logits, 1), -_FAR) * sharpness  # [BLOCK_M]; finite even where no code is possible
    return top, tl.sum(tl.exp2(logits * sharpness - top[:, None]), 1)


@triton.jit
def _best(scores, first_code, NUM_CODES: tl.constexpr, BLOCK_V: tl.constexpr, SPAN: tl.constexpr):
    """The largest score of each row of a tile and its code, the lowest of equals: both [BLOCK_M]."""
    best = tl.max(scores, 1)  # [BLOCK_M]
    codes = first_code + _codes_as_columns(BLOCK_V, SPAN)  # [BLOCK_V]
    # A row of NaN equals nothing, and gets a code that there is.
    code = tl.min(tl.where(scores == best[:, None], codes[None, :], NUM_CODES - 1), 1)  # [BLOCK_M]
    return best, code


@triton.jit(do_not_specialize=["rows", "length", "step"])
def draw_from_tiles(
    hidden,
    guidance,
    weight,
    bias,
    seeds,
    listed,
    partials,
    width,
    rows,
    length,
    step,
    softmax_temperature,
    sharpness,
    guidance_scale,
    NUM_CODES: tl.constexpr,
    DRAW: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPAN: tl.constexpr,
):
    """The best of BLOCK_V codes for BLOCK_M listed rows, and what the softmax needs to know of those codes.

    listed: see `list_masked`; rows: B * N. partials: int32 [B, tiles, N, 4], written where masked: the bits of
    `_weigh`'s and `_best`'s results.
    """
    tile, tiles = tl.program_id(1), tl.num_programs(1)
    places = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    count = tl.load(listed + rows)
    if tl.program_id(0) * BLOCK_M >= count:
        return
    row = tl.load(listed + places, places < count, other=0)  # [BLOCK_M]
    image, position = row // length, row % length
    first_code = tile * BLOCK_V
    head = (hidden, guidance, guidance_scale, weight, bias, width)
    logits = _logits(
        head, row, position, first_code, NUM_CODES, BIAS, EVEN_WIDTH, PRECISION, BLOCK_M, BLOCK_V, BLOCK_D, SPAN
    )  # [BLOCK_M, BLOCK_V]
    scores = logits
    if DRAW == "categorical":
        noise = _noise(tl.load(seeds + image), position, first_code, step, BLOCK_M, BLOCK_V, SPAN)
        scores = logits + softmax_temperature * noise  # [BLOCK_M, BLOCK_V]
    best, code = _best(scores, first_code, NUM_CODES, BLOCK_V, SPAN)
    top, total = _weigh(logits, sharpness)  # now, so as not to take up registers while noise is made

    top, total, best = top.to(tl.int32, bitcast=True), total.to(tl.int32, bitcast=True), best.to(tl.int32, bitcast=True)
    quadruples = tl.join(tl.join(top, best), tl.join(total, code))  # [BLOCK_M, 2, 2]
    two = tl.arange(0, 2)
    at = (image.to(tl.int64) * tiles + tile) * length + position  # [BLOCK_M]
    at = at[:, None, None] * 4 + two[None, :, None] * 2 + two[None, None, :]
    tl.store(partials + at, quadruples, (places < count)[:, None, None])
