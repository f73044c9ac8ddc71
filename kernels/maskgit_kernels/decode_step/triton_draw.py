"""Triton: a pass over the logits that draws every token of a decoding step.

A program takes one row of logits (or a block of rows, where rows are short) through the chip once. The four words of a
Philox call belong to four adjacent codes, so a lane works on quads of codes. It keeps a running maximum and sum of its
weights, as an online softmax does, and the leader of a race of exponentials: argmax(p / e) is a draw from p, without
the outer logarithms of the Gumbel-max trick. Lanes meet only after the last quad. Rows that are known already are
skipped.
"""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels.decode_step.triton_select import LARGEST, LN2, select
from maskgit_kernels.philox import STREAM_TOKEN
from maskgit_kernels.philox_triton import exponential, gumbel, philox_4x32, seed_halves

_LN2, _LARGEST = LN2, LARGEST
_STREAM_TOKEN = tl.constexpr(STREAM_TOKEN)


@triton.jit
def _load(rows, codes, wanted):
    """Logits as float32, biased and guided if asked for, with +inf and NaN replaced by the largest float.

    Codes of infinite logit then share all the probability as they should, and NaN is harmless. Under guidance infinite
    logits stay infinite, and a code that is impossible in either set is impossible. So is what is not wanted.

    codes, wanted: [BLOCK_R, ..., ...], to which the pointers to the rows, [BLOCK_R, 1, 1], broadcast.
    """
    logits, guidance, bias, stride_v, guidance_stride_v, scale = rows
    codes = codes.to(tl.int64)
    z = tl.load(logits + codes * stride_v, wanted, other=float("-inf")).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + codes, wanted, other=0.0).to(tl.float32)
    if guidance is not None:
        unguided = tl.load(guidance + codes * guidance_stride_v, wanted, other=0.0).to(tl.float32)
        guided = tl.where(tl.abs(z) == float("inf"), z, z + scale * (z - unguided))
        z = tl.where(unguided == float("-inf"), float("-inf"), guided)
    return tl.minimum(z, _LARGEST)


@triton.jit
def _load_quads(rows, open_rows, quads, NUM_CODES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Four [BLOCK_R, BLOCK_Q] of logits, one for each code of a quad; -inf for rows and codes that are not there.

    quads: [BLOCK_Q]; open_rows: [BLOCK_R], True where a row is to be loaded.
    """
    codes = quads[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]  # [1, BLOCK_Q, 4]
    wanted = codes >= 0  # [1, BLOCK_Q, 4], all True: a lone row is open, and needs no mask where codes fill the block
    if NUM_CODES % (4 * BLOCK_Q) != 0:
        wanted = codes < NUM_CODES
    if BLOCK_R > 1:
        wanted = wanted & open_rows[:, None, None]  # [BLOCK_R, BLOCK_Q, 4]
    z = _load(rows, codes, wanted)  # [BLOCK_R, BLOCK_Q, 4]
    even, odd = tl.split(tl.reshape(z, [BLOCK_R, BLOCK_Q, 2, 2]))  # codes 0 and 2, 1 and 3: [BLOCK_R, BLOCK_Q, 2]
    z0, z2 = tl.split(even)
    z1, z3 = tl.split(odd)
    return z0, z1, z2, z3


@triton.jit
def _draw(
    rows,
    open_rows,
    positions,
    key0,
    key1,
    step,
    sharpness,
    choice_temperature,
    NUM_CODES: tl.constexpr,
    DRAW: tl.constexpr,
    LOG_PROB: tl.constexpr,
    NOISY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """A code (int32) and its confidence (float32) for each row, both [BLOCK_R].

    Weights are 2 ** ((z - top) * sharpness). The confidence lacks its noise, except for "perturbed", where the noise
    chose the code.
    """
    lanes = tl.arange(0, BLOCK_Q)  # [BLOCK_Q]
    top = tl.full([BLOCK_R, BLOCK_Q], -_LARGEST, tl.float32)  # largest logit so far
    total = tl.zeros([BLOCK_R, BLOCK_Q], tl.float32)  # sum of weights
    # The leader: its logit (greedy), weight (categorical) or score (perturbed), the noise it races with, and its code.
    best = tl.full([BLOCK_R, BLOCK_Q], 0.0 if DRAW == "categorical" else float("-inf"), tl.float32)
    best_noise = tl.full([BLOCK_R, BLOCK_Q], 1.0, tl.float32)
    best_code = tl.zeros([BLOCK_R, BLOCK_Q], tl.int32)

    for start in range(0, tl.cdiv(NUM_CODES, 4), BLOCK_Q):
        quads = start + lanes  # [BLOCK_Q]
        z = _load_quads(rows, open_rows, quads, NUM_CODES, BLOCK_R, BLOCK_Q)
        new_top = tl.maximum(tl.maximum(tl.maximum(z[0], z[1]), tl.maximum(z[2], z[3])), top)
        shrink = tl.exp2((top - new_top) * sharpness)
        total *= shrink
        top = new_top
        if DRAW == "categorical":
            best *= shrink
            words = philox_4x32(key0, key1, quads[None, :], positions[:, None], step, _STREAM_TOKEN)
        for j in tl.static_range(4):
            weight = tl.exp2((z[j] - top) * sharpness)  # [BLOCK_R, BLOCK_Q]
            total += weight
            if DRAW == "categorical":
                noise = exponential(words[j])
                wins = weight * best_noise > best * noise  # that is, weight / noise > best / best_noise
                best = tl.where(wins, weight, best)
                best_noise = tl.where(wins, noise, best_noise)
                best_code = tl.where(wins, quads[None, :] * 4 + j, best_code)
            elif DRAW == "greedy":
                wins = z[j] > best
                best = tl.where(wins, z[j], best)
                best_code = tl.where(wins, quads[None, :] * 4 + j, best_code)

    row_top = tl.max(top, 1)  # [BLOCK_R]
    shrink = tl.exp2((top - row_top[:, None]) * sharpness)
    row_total = tl.sum(total * shrink, 1)  # [BLOCK_R]
    if DRAW == "categorical":
        best = best * shrink / best_noise
    elif DRAW == "perturbed":
        # p + tau * Gumbel needs p, and so the whole row's sum: a second pass, over logits that the cache still holds.
        # Beside infinite logits, now the largest float, finite ones are as impossible as -inf.
        least = tl.where(row_top == _LARGEST, _LARGEST, -_LARGEST)[:, None]  # [BLOCK_R, 1]
        for start in range(0, tl.cdiv(NUM_CODES, 4), BLOCK_Q):
            quads = start + lanes
            z = _load_quads(rows, open_rows, quads, NUM_CODES, BLOCK_R, BLOCK_Q)
            if NOISY:
                words = philox_4x32(key0, key1, quads[None, :], positions[:, None], step, _STREAM_TOKEN)
            for j in tl.static_range(4):
                score = tl.exp2((z[j] - row_top[:, None]) * sharpness) / row_total[:, None]  # [BLOCK_R, BLOCK_Q]
                if NOISY:
                    score += choice_temperature * gumbel(words[j])
                wins = (z[j] >= least) & (score > best)
                best = tl.where(wins, score, best)
                best_code = tl.where(wins, quads[None, :] * 4 + j, best_code)

    row_best = tl.max(best, 1)  # [BLOCK_R]
    code = tl.min(tl.where(best == row_best[:, None], best_code, NUM_CODES - 1), 1)  # [BLOCK_R], the lowest of equals
    if DRAW == "perturbed":
        return code, row_best
    z = _load(rows, code[:, None, None], open_rows[:, None, None]).reshape(BLOCK_R)
    log2_p = (z - row_top) * sharpness - tl.log2(row_total)
    return code, log2_p * _LN2 if LOG_PROB else tl.exp2(log2_p)


@triton.jit(do_not_specialize=["length", "step"])
def draw_tokens(
    logits,
    guidance,
    bias,
    tokens,
    masked,
    n_keep_masked,
    seeds,
    new_tokens,
    scores,
    still_masked,
    finished,
    stride_b,
    stride_n,
    stride_v,
    guidance_stride_b,
    guidance_stride_n,
    guidance_stride_v,
    bias_stride_n,
    length,
    step,
    sharpness,
    choice_temperature,
    guidance_scale,
    NUM_CODES: tl.constexpr,
    DRAW: tl.constexpr,
    LOG_PROB: tl.constexpr,
    NOISY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_R rows of one image a program: new_tokens and scores, and with `finished` still_masked for the whole image.

    finished: int32 [B], all 0, which is how it is left, to count an image's programs in; or None.
    """
    blocks = tl.cdiv(length, BLOCK_R)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    positions = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    inside = positions < length
    at = image * length + positions
    open_rows = tl.load(masked + at, inside, other=0)
    code = tl.zeros([BLOCK_R], tl.int32)
    score = tl.zeros([BLOCK_R], tl.float32)
    if tl.max(open_rows.to(tl.int32), 0) > 0:
        key0, key1 = seed_halves(tl.load(seeds + image))
        n = positions.to(tl.int64)[:, None, None]  # [BLOCK_R, 1, 1]
        # Assigned in three steps, for Triton 3.6 has no functions that return None.
        row_logits, row_guidance, row_bias = logits + image * stride_b + n * stride_n, guidance, bias
        if guidance is not None:
            row_guidance = guidance + image * guidance_stride_b + n * guidance_stride_n
        if bias is not None:
            row_bias = bias + n * bias_stride_n
        rows = (row_logits, row_guidance, row_bias, stride_v, guidance_stride_v, guidance_scale)
        code, score = _draw(
            rows,
            open_rows,
            positions,
            key0,
            key1,
            step,
            sharpness,
            choice_temperature,
            NUM_CODES,
            DRAW,
            LOG_PROB,
            NOISY,
            BLOCK_R,
            BLOCK_Q,
        )
    tl.store(new_tokens + at, tl.where(open_rows, code.to(tl.int64), tl.load(tokens + at, inside)), inside)
    # Known positions alone are infinitely confident.
    tl.store(scores + at, tl.where(open_rows, tl.minimum(score, _LARGEST), float("inf")), inside)

    if finished is not None:
        tl.debug_barrier()  # all the program's stores come before the count that publishes them
        if tl.atomic_add(finished + image, 1, sem="acq_rel", scope="gpu") == blocks - 1:
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
                BLOCK_N,
            )
            tl.store(finished + image, 0)  # as it was found
