"""Triton: which positions of an image stay masked, for `draw_tokens` here and `finish_images` of head_sample.

Exactly n_keep positions of an image stay masked. The n-th smallest confidence is found bit by bit, by counting (floats
compare like integers once their sign is taken care of); among positions that share it, a running count gives the lower
indices precedence.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from maskgit_kernels.philox import STREAM_CONFIDENCE
from maskgit_kernels.philox_triton import gumbel, philox_4x32, seed_halves

LN2 = tl.constexpr(math.log(2))
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
_STREAM_CONFIDENCE = tl.constexpr(STREAM_CONFIDENCE)


@triton.jit
def select(
    scores,
    n_keep_masked,
    seeds,
    still_masked,
    image,
    length,
    step,
    choice_temperature,
    NOISY: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Mark the n_keep_masked[image] least confident positions of one image, of equals the lower ones.

    scores [B, N] hold +inf where a position was not masked before; still_masked [B, N] is written. With NOISY, Gumbel
    noise is added to the scores here, where a thread has a position to itself.
    """
    n = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    inside = n < length
    score = tl.load(scores + image * length + n, inside, other=float("inf"))  # [BLOCK_N]
    is_open = score < float("inf")
    if NOISY:
        key0, key1 = seed_halves(tl.load(seeds + image))
        words = philox_4x32(key0, key1, 0, n, step, _STREAM_CONFIDENCE)
        score += choice_temperature * gumbel(words[0])
    score = tl.where(score == 0.0, 0.0, tl.minimum(score, LARGEST))  # -0.0 is 0.0, and only known positions are +inf
    score = tl.where(is_open, score, float("inf"))

    # As unsigned integers in the same order: negative floats have all bits flipped, the others only the sign.
    bits = score.to(tl.int32, bitcast=True)
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000  # [BLOCK_N]
    n_open = tl.sum(is_open.to(tl.int32), 0)
    keep = tl.minimum(tl.maximum(tl.load(n_keep_masked + image), 0), n_open).to(tl.int32)
    # The largest threshold with fewer than `keep` ranks below it is the keep-th smallest rank.
    threshold = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(32):
        below = tl.sum((rank < (threshold | bit)).to(tl.int32), 0)
        threshold = tl.where(below < keep, threshold | bit, threshold)
        bit = bit >> 1
    surely = rank < threshold
    equal = rank == threshold
    needed = keep - tl.sum(surely.to(tl.int32), 0)
    stays = surely | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= needed))
    tl.store(still_masked + image * length + n, stays, inside)


@triton.jit(do_not_specialize=["length", "step"])
def select_positions(
    scores,
    n_keep_masked,
    seeds,
    still_masked,
    length,
    step,
    choice_temperature,
    NOISY: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The selection of one image a program."""
    image = tl.program_id(0).to(tl.int64)
    select(scores, n_keep_masked, seeds, still_masked, image, length, step, choice_temperature, NOISY, BLOCK_N)


def selecting_warps(block_n: int) -> int:
    """Warps for a program that selects among so many positions: of them, a thread has four, and at last more."""
    return min(max(block_n // 128, 4), 16)
