"""The LM head with the sampler behind it as Triton kernels: a matrix product that draws from its tiles, then selection.

Drawing. A program multiplies BLOCK_M masked rows of the hidden state with the weights of BLOCK_V codes. The tile of
logits stays in registers, and four numbers of a row leave it: the largest logit and the sum of weights relative to it,
as in an online softmax, and the best of logit + T * Gumbel with its code. The best of all codes is a draw from the
softmax at temperature T. So the logits, by far the largest tensor of a decoding step, are never in memory.

Sharing the noise. A Philox call gives the words of four adjacent codes, but beyond two the columns that a thread holds
of a tile are not adjacent. The rows of the weights are therefore loaded in such an order that four adjacent codes are
columns of one thread, and each call is made once.

Known rows cost next to nothing. A program looks up which masked positions of its image are its own, so that tiles are
full of masked rows however those are scattered, and programs beyond the last end at once. All rows of a tile are of one
image, so that a program needs one mask and one seed. A row's result depends on no other row in any case.

Finishing. One program an image joins the tiles of each row, works out the confidences and selects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskgit_kernels.attention.launch import math_for
from maskgit_kernels.backend import capability_of, interpreting
from maskgit_kernels.build import Build
from maskgit_kernels.decode_step.triton import select
from maskgit_kernels.philox import STREAM_TOKEN
from maskgit_kernels.philox_triton import gumbel, philox_4x32, seed_halves
from maskgit_kernels.tf32_triton import round_to_tf32

_LN2 = tl.constexpr(math.log(2))
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
_FAR = tl.constexpr(2.0**100)  # beyond any logit, and finite times any sharpness
_STREAM_TOKEN = tl.constexpr(STREAM_TOKEN)


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

    positions: [BLOCK_M], rows of one image's hidden state [N, width], and of a bias [N, V].
    """
    hidden, guidance, guidance_scale, weight, bias, width = head
    codes = first_code + _codes_as_columns(BLOCK_V, SPAN)  # [BLOCK_V]
    weight_rows = tl.minimum(codes, NUM_CODES - 1)  # [BLOCK_V]

    # The sum begins with the bias, in registers that it needs anyway.
    if BIAS == "position":
        in_order = first_code + tl.arange(0, BLOCK_V)  # [BLOCK_V], of which a thread can load several at once
        address = bias + (positions[:, None] * NUM_CODES + in_order[None, :])  # [BLOCK_M, BLOCK_V]
        sums = _load(address, (in_order < NUM_CODES)[None, :], NUM_CODES % BLOCK_V == 0).to(tl.float32)
        sums = _by_columns(sums, BLOCK_M, BLOCK_V, SPAN)
    elif BIAS == "code":
        sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32) + tl.load(bias + weight_rows).to(tl.float32)[None, :]
    else:
        sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)  # [BLOCK_D]
        inside = d < width
        row_offsets = positions[:, None] * width + d[None, :]  # [BLOCK_M, BLOCK_D]
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
    key0,
    key1,
    positions,
    first_code,
    step,
    FAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Gumbel noise for the codes first_code + `_codes_as_columns`, [BLOCK_M, BLOCK_V]; positions: [BLOCK_M]."""
    quads = first_code // 4 + tl.arange(0, BLOCK_V // 4)  # [BLOCK_V / 4]
    w0, w1, w2, w3 = philox_4x32(
        key0, key1, quads[None, :, None], positions[:, None, None], step, _STREAM_TOKEN
    )  # [BLOCK_M, BLOCK_V / 4, 1] each
    j = tl.arange(0, 4)[None, None, :]  # known at compile time for each register, so nothing is left of the choice:
    words = tl.where(j < 2, tl.where(j == 0, w0, w1), tl.where(j == 2, w2, w3))  # [BLOCK_M, BLOCK_V / 4, 4]
    return gumbel(_by_columns(words, BLOCK_M, BLOCK_V, SPAN), FAST)


@triton.jit
def _weigh(logits, sharpness):
    """Of each row of a tile the largest logit * sharpness, `top`, and the sum of 2 ** (logit * sharpness - top)."""
    top = tl.maximum(tl.max(logits, 1), -_FAR) * sharpness  # [BLOCK_M]; finite even where no code is possible
    return top, tl.sum(tl.exp2(logits * sharpness - top[:, None]), 1)


@triton.jit
def _join(top, total, other_top, other_total):
    """Online softmax: what `_weigh` says of two sets of codes, as of their union."""
    new_top = tl.maximum(top, other_top)
    return new_top, total * tl.exp2(top - new_top) + other_total * tl.exp2(other_top - new_top)


@triton.jit
def _best(scores, first_code, NUM_CODES: tl.constexpr, BLOCK_V: tl.constexpr, SPAN: tl.constexpr):
    """The largest score of each row of a tile and its code, the lowest of equals: both [BLOCK_M]."""
    best = tl.max(scores, 1)  # [BLOCK_M]
    codes = first_code + _codes_as_columns(BLOCK_V, SPAN)  # [BLOCK_V]
    # A row of NaN equals nothing, and gets a code that there is.
    code = tl.min(tl.where(scores == best[:, None], codes[None, :], NUM_CODES - 1), 1)  # [BLOCK_M]
    return best, code


@triton.jit
def _better(best, code, other_best, other_code):
    """The better of two, the first if they are equal."""
    wins = other_best > best
    return tl.where(wins, other_best, best), tl.where(wins, other_code, code)


@triton.jit
def _open_first(is_open, count, listed, first, length, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Positions number first to first + BLOCK_M of an image if the masked ones are counted first: int32 [BLOCK_M].

    is_open: int32 [BLOCK_N], with `count` ones. listed: this program's own room for BLOCK_M numbers. They pass through
    memory, since the mask decides which thread needs which.
    """
    n = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    up_to = tl.cumsum(is_open, 0)  # [BLOCK_N]
    place = tl.where(is_open > 0, up_to - 1, count + n - up_to) - first  # [BLOCK_N]
    tl.store(listed + place, tl.minimum(n, length - 1), (place >= 0) & (place < BLOCK_M))
    tl.debug_barrier()
    return tl.load(listed + tl.arange(0, BLOCK_M))


@triton.jit(do_not_specialize=["length", "step"])
def draw_from_tiles(
    hidden,
    guidance,
    weight,
    bias,
    masked,
    seeds,
    listed,
    partials,
    length,
    width,
    step,
    softmax_temperature,
    sharpness,
    choice_temperature,
    guidance_scale,
    NUM_CODES: tl.constexpr,
    DRAW: tl.constexpr,
    NOISY: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr,
):
    """The best of BLOCK_V codes for BLOCK_M masked rows of an image, and what the softmax needs to know of those codes.

    partials: int32 [B, tiles, N, 4], written where masked: the bits of `_weigh`'s and `_best`'s results. "perturbed"
    needs a row's softmax before it can compare scores: there a program takes all codes of its rows, twice, and they
    count as one tile.
    """
    image, block, tile = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    blocks, tiles = tl.num_programs(1), tl.num_programs(2)
    first = block * BLOCK_M
    n = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    is_open = tl.load(masked + image * length + n, n < length, other=0).to(tl.int32)  # [BLOCK_N]
    count = tl.sum(is_open, 0)
    if first >= count:
        return
    listed += ((image * blocks + block) * tiles + tile) * BLOCK_M
    positions = _open_first(is_open, count, listed, first, length, BLOCK_M, BLOCK_N)  # [BLOCK_M]
    key0, key1 = seed_halves(tl.load(seeds + image))
    hidden += image * length * width
    if guidance is not None:
        guidance += image * length * width
    head = (hidden, guidance, guidance_scale, weight, bias, width)

    if DRAW == "perturbed":
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        for first_code in range(0, NUM_CODES, BLOCK_V):
            logits = _logits(
                head, positions, first_code, NUM_CODES, BIAS, EVEN_WIDTH, PRECISION, BLOCK_M, BLOCK_V, BLOCK_D, SPAN
            )  # [BLOCK_M, BLOCK_V]
            tile_top, tile_total = _weigh(logits, sharpness)
            top, total = _join(top, total, tile_top, tile_total)
        best = tl.full([BLOCK_M], float("-inf"), tl.float32)
        code = tl.zeros([BLOCK_M], tl.int32)
        for first_code in range(0, NUM_CODES, BLOCK_V):
            logits = _logits(
                head, positions, first_code, NUM_CODES, BIAS, EVEN_WIDTH, PRECISION, BLOCK_M, BLOCK_V, BLOCK_D, SPAN
            )  # [BLOCK_M, BLOCK_V]
            scores = tl.exp2(logits * sharpness - top[:, None]) * (1.0 / total)[:, None]  # [BLOCK_M, BLOCK_V]
            if NOISY:
                noise = _noise(key0, key1, positions, first_code, step, FAST, BLOCK_M, BLOCK_V, SPAN)
                scores = tl.where(logits == float("-inf"), float("-inf"), scores + choice_temperature * noise)
            tile_best, tile_code = _best(scores, first_code, NUM_CODES, BLOCK_V, SPAN)
            best, code = _better(best, code, tile_best, tile_code)
    else:
        first_code = tile * BLOCK_V
        logits = _logits(
            head, positions, first_code, NUM_CODES, BIAS, EVEN_WIDTH, PRECISION, BLOCK_M, BLOCK_V, BLOCK_D, SPAN
        )  # [BLOCK_M, BLOCK_V]
        scores = logits
        if DRAW == "categorical":
            noise = _noise(key0, key1, positions, first_code, step, FAST, BLOCK_M, BLOCK_V, SPAN)
            scores = logits + softmax_temperature * noise  # [BLOCK_M, BLOCK_V]
        best, code = _best(scores, first_code, NUM_CODES, BLOCK_V, SPAN)
        top, total = _weigh(logits, sharpness)  # now, so as not to take up registers while noise is made

    top, total, best = top.to(tl.int32, bitcast=True), total.to(tl.int32, bitcast=True), best.to(tl.int32, bitcast=True)
    quadruples = tl.join(tl.join(top, best), tl.join(total, code))  # [BLOCK_M, 2, 2]
    two = tl.arange(0, 2)
    at = ((image * tiles + tile) * length + positions)[:, None, None] * 4 + two[None, :, None] * 2 + two[None, None, :]
    ours = first + tl.arange(0, BLOCK_M) < count  # [BLOCK_M]
    tl.store(partials + at, quadruples, ours[:, None, None])


@triton.jit(do_not_specialize=["length", "step"])
def finish_images(
    partials,
    tokens,
    masked,
    n_keep_masked,
    seeds,
    new_tokens,
    scores,
    still_masked,
    length,
    step,
    softmax_temperature,
    sharpness,
    choice_temperature,
    DRAW: tl.constexpr,
    LOG_PROB: tl.constexpr,
    NOISY: tl.constexpr,
    FAST: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Joins the tiles of one image's rows: new_tokens, scores (the confidences) and still_masked, all [B, N]."""
    image = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    inside = n < length
    is_open = tl.load(masked + image * length + n, inside, other=0)
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    code = tl.zeros([BLOCK_N], tl.int32)
    for tile in tl.range(TILES, loop_unroll_factor=4):  # the loads of four tiles at a time
        at = ((image * TILES + tile) * length + n) * 4  # [BLOCK_N]
        tile_best = tl.load(partials + at + 2, is_open, other=0).to(tl.float32, bitcast=True)
        best, code = _better(best, code, tile_best, tl.load(partials + at + 3, is_open, other=0))
        if DRAW != "perturbed":
            tile_top = tl.load(partials + at, is_open, other=0).to(tl.float32, bitcast=True)
            tile_total = tl.load(partials + at + 1, is_open, other=0).to(tl.float32, bitcast=True)
            top, total = _join(top, total, tile_top, tile_total)

    score = best
    if DRAW != "perturbed":
        logit = best
        if DRAW == "categorical":  # the winner's logit is its score less its own noise
            key0, key1 = seed_halves(tl.load(seeds + image))
            w0, w1, w2, w3 = philox_4x32(key0, key1, code // 4, n, step, _STREAM_TOKEN)  # [BLOCK_N] each
            j = code % 4
            word = tl.where(j < 2, tl.where(j == 0, w0, w1), tl.where(j == 2, w2, w3))
            logit = best - softmax_temperature * gumbel(word, FAST)
        log2_p = tl.minimum(logit * sharpness - top, 0.0) - tl.log2(total)
        score = log2_p * _LN2 if LOG_PROB else tl.exp2(log2_p)

    at = image * length + n  # [BLOCK_N]
    tl.store(new_tokens + at, tl.where(is_open, code.to(tl.int64), tl.load(tokens + at, inside)), inside)
    # Known positions alone are infinitely confident.
    tl.store(scores + at, tl.where(is_open, tl.minimum(score, _LARGEST), float("inf")), inside)
    tl.debug_barrier()
    select(
        scores,
        n_keep_masked,
        seeds,
        still_masked,
        image,
        length,
        step,
        choice_temperature,
        NOISY and DRAW != "perturbed",
        FAST,
        BLOCK_N,
    )


@dataclass(frozen=True)
class _Tiles:
    """How the product is laid out."""

    rows: int  # BLOCK_M
    codes: int  # BLOCK_V
    width: int  # BLOCK_D
    span: int  # SPAN
    num_warps: int
    num_stages: int


def _tiles(capability: int, arithmetic: str, draw: str, guided: bool) -> _Tiles:
    """Tiles that leave room for two programs on a multiprocessor, one to multiply while the other draws.

    SPAN follows from which columns a thread holds. On Ampere, Ada and consumer Blackwell, where warps share the columns
    of a tile in strips of 8, those 32 further are the same warp's again. On Hopper and datacenter Blackwell a warp has
    more columns than that on end, those 16 further included. Without tensor cores a thread has four adjacent ones, and
    codes stay in order.
    """
    strips = capability < 90 or capability >= 120
    narrow = draw == "perturbed" and capability >= 90
    crowded = arithmetic == "ieee" and capability >= 120  # all sums in registers: 8 warps are room for one program only
    little_shared_memory = capability in (86, 89) or capability >= 120
    return _Tiles(
        rows=64,
        codes=64 if narrow else 128,
        width={"half": 64, "tf32": 32, "ieee": 16}[arithmetic],
        span=2 if arithmetic == "ieee" else 32 if strips else 16,
        num_warps=8 if strips and not narrow and not crowded else 4,
        num_stages=2 if guided and little_shared_memory else 3,
    )


def _finishing_warps(block_n: int) -> int:
    return 4 if block_n <= 512 else 8


def head_sample_triton(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    seeds: Tensor,
    step: int,
    softmax_temperature: float,
    choice_temperature: float,
    draw: str,
    confidence: str,
    guidance_hidden: Tensor | None,
    guidance_scale: float,
) -> tuple[Tensor, Tensor]:
    """See `head_sample`; the arguments are validated there.

    Raises:
        ValueError: hidden states of one image, or logits of one image, that can't be numbered by an int32.
    """
    batch, length, width = hidden.shape
    num_codes = len(weight)
    if length * max(width, num_codes) >= 2**31:
        raise ValueError(
            f"backend 'triton' takes images of N * max(D, V) < 2**31, got {length} * {max(width, num_codes)}"
        )
    new_tokens = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    still_masked = torch.empty_like(masked, memory_format=torch.contiguous_format)
    if tokens.numel() == 0:
        return new_tokens, still_masked
    hidden, weight, tokens, masked, n_keep_masked, seeds = (
        x.contiguous() for x in (hidden, weight, tokens, masked, n_keep_masked, seeds)
    )
    bias = None if bias is None else bias.contiguous()
    guidance = guidance_hidden.contiguous() if guidance_hidden is not None and guidance_scale != 0 else None
    noisy = choice_temperature > 0
    # Scores may have any temperature whose products are finite. Exponents of weights are differences of numbers that
    # grow as it falls, so theirs is held at 2**-20, where a softmax has a single winner anyway.
    sharpness = math.log2(math.e) / min(max(softmax_temperature, 2.0**-20), 2.0**100)
    softmax_temperature = min(softmax_temperature, 2.0**100)
    choice_temperature = min(choice_temperature, _LARGEST.value)

    arithmetic = math_for(hidden.dtype)
    tiles = _tiles(capability_of(hidden.device), arithmetic, draw, guidance is not None)
    blocks = triton.cdiv(length, tiles.rows)
    tiles_of_row = 1 if draw == "perturbed" else triton.cdiv(num_codes, tiles.codes)
    block_n = triton.next_power_of_2(length)
    fast = not interpreting()

    def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=hidden.device)

    partials = scratch(batch, tiles_of_row, length, 4, dtype=torch.int32)
    draw_from_tiles[(batch, blocks, tiles_of_row)](
        hidden,
        guidance,
        weight,
        bias,
        masked,
        seeds,
        scratch(batch, blocks, tiles_of_row, tiles.rows, dtype=torch.int32),
        partials,
        length,
        width,
        step,
        softmax_temperature,
        sharpness,
        choice_temperature,
        guidance_scale,
        NUM_CODES=num_codes,
        DRAW=draw,
        NOISY=noisy,
        BIAS="none" if bias is None else "code" if bias.dim() == 1 else "position",
        EVEN_WIDTH=width % tiles.width == 0,
        PRECISION="tf32" if arithmetic == "tf32" else "ieee",
        FAST=fast,
        BLOCK_M=tiles.rows,
        BLOCK_V=tiles.codes,
        BLOCK_D=tiles.width,
        BLOCK_N=max(block_n, tiles.rows),
        SPAN=tiles.span,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    finish_images[(batch,)](
        partials,
        tokens,
        masked,
        n_keep_masked,
        seeds,
        new_tokens,
        scratch(batch, length),
        still_masked,
        length,
        step,
        softmax_temperature,
        sharpness,
        choice_temperature,
        DRAW=draw,
        LOG_PROB=confidence == "log_prob",
        NOISY=noisy,
        FAST=fast,
        TILES=tiles_of_row,
        BLOCK_N=block_n,
        num_warps=_finishing_warps(block_n),
    )
    return new_tokens, still_masked


_TYPES = {
    "bias": "*fp32",
    "masked": "*i1",
    "seeds": "*i64",
    "listed": "*i32",
    "partials": "*i32",
    "tokens": "*i64",
    "n_keep_masked": "*i64",
    "new_tokens": "*i64",
    "scores": "*fp32",
    "still_masked": "*i1",
    "length": "i32",
    "width": "i32",
    "step": "i32",
    "softmax_temperature": "fp32",
    "sharpness": "fp32",
    "choice_temperature": "fp32",
    "guidance_scale": "fp32",
}


def builds(capability: int) -> list[Build]:
    """The kernels as launched for 256 (or 1024) tokens and a hidden state whose width is a multiple of 64."""

    def drawing(
        name: str,
        num_codes: int = 1024,
        draw: str = "categorical",
        bias: str = "position",
        guided: bool = False,
        arithmetic: str = "half",
    ) -> Build:
        tiles = _tiles(capability, arithmetic, draw, guided)
        short = {"half": "bf16", "tf32": "tf32", "ieee": "fp32"}[arithmetic]
        dtype = "bf16" if arithmetic == "half" else "fp32"
        logits = tiles.rows * tiles.codes
        return Build(
            name=f"head sample, {name}, V={num_codes}, {short}",
            kernel=draw_from_tiles,
            signature=_TYPES | dict.fromkeys(("hidden", "guidance", "weight"), f"*{dtype}"),
            constants={
                "NUM_CODES": num_codes,
                "DRAW": draw,
                "NOISY": True,
                "BIAS": bias,
                "EVEN_WIDTH": True,
                "PRECISION": "tf32" if arithmetic == "tf32" else "ieee",
                "FAST": True,
                "BLOCK_M": tiles.rows,
                "BLOCK_V": tiles.codes,
                "BLOCK_D": tiles.width,
                "SPAN": tiles.span,
                "BLOCK_N": 256,
                **({} if guided else {"guidance": None}),
            },
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            aligned=("width",),
            elements=logits,
            ideal_macs=0 if arithmetic == "ieee" else logits * tiles.width,
        )

    def finishing(length: int, num_codes: int) -> Build:
        tiles_of_row = triton.cdiv(num_codes, _tiles(capability, "half", "categorical", guided=False).codes)
        return Build(
            name=f"head sample, finish, N={length}, V={num_codes}",
            kernel=finish_images,
            signature=_TYPES,
            constants={
                "DRAW": "categorical",
                "LOG_PROB": True,
                "NOISY": True,
                "FAST": True,
                "TILES": tiles_of_row,
                "BLOCK_N": length,
            },
            num_warps=_finishing_warps(length),
        )

    return [
        drawing("categorical"),
        drawing("categorical", num_codes=16384, bias="code"),
        drawing("categorical, guided", guided=True),
        drawing("greedy", draw="greedy"),
        drawing("perturbed", draw="perturbed"),
        drawing("categorical", arithmetic="tf32"),
        drawing("categorical", arithmetic="ieee"),
        finishing(256, 1024),
        finishing(1024, 16384),
    ]
