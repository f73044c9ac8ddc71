"""Triton: joins what the tiles of the LM head's product say of each row, works out the confidences and selects."""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels.decode_step.triton_select import LARGEST, LN2, select
from maskgit_kernels.philox import STREAM_TOKEN
from maskgit_kernels.philox_triton import gumbel, philox_4x32, seed_halves

_LN2, _LARGEST = LN2, LARGEST
_STREAM_TOKEN = tl.constexpr(STREAM_TOKEN)


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
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One image a program: new_tokens, scores (the confidences) and still_masked, all [B, N]."""
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
        tile_top = tl.load(partials + at, is_open, other=0).to(tl.float32, bitcast=True)
        tile_total = tl.load(partials + at + 1, is_open, other=0).to(tl.float32, bitcast=True)
        tile_best = tl.load(partials + at + 2, is_open, other=0).to(tl.float32, bitcast=True)
        tile_code = tl.load(partials + at + 3, is_open, other=0)
        new_top = tl.maximum(top, tile_top)
        total = total * tl.exp2(top - new_top) + tile_total * tl.exp2(tile_top - new_top)  # as an online softmax does
        top = new_top
        wins = tile_best > best  # the first of equals, so the lowest code
        best, code = tl.where(wins, tile_best, best), tl.where(wins, tile_code, code)

    logit = best
    if DRAW == "categorical":  # the winner's logit is its score less its own noise
        key0, key1 = seed_halves(tl.load(seeds + image))
        w0, w1, w2, w3 = philox_4x32(key0, key1, code // 4, n, step, _STREAM_TOKEN)  # [BLOCK_N] each
        j = code % 4
        word = tl.where(j < 2, tl.where(j == 0, w0, w1), tl.where(j == 2, w2, w3))
        logit = best - softmax_temperature * gumbel(word)
    log2_p = tl.minimum(logit * sharpness - top, 0.0) - tl.log2(total)
    score = log2_p * _LN2 if LOG_PROB else tl.exp2(log2_p)

    at = image * length + n  # [BLOCK_N]
    tl.store(new_tokens + at, tl.where(is_open, code.to(tl.int64), tl.load(tokens + at, inside)), inside)
    # Known positions alone are infinitely confident.
    tl.store(scores + at, tl.where(is_open, tl.minimum(score, _LARGEST), float("inf")), inside)
    tl.debug_barrier()
    select(scores, n_keep_masked, seeds, still_masked, image, length, step, choice_temperature, NOISY, BLOCK_N)
