"""One decoding step as Triton kernels: a pass over the logits that draws every token, then the selection per image.

Drawing. A program takes one row of logits (or a block of rows, where rows are short) through the chip once. The four
words of a Philox call belong to four adjacent codes, so a lane works on quads of codes. It keeps a running maximum and
sum of its weights, as an online softmax does, and the leader of a race of exponentials: argmax(p / e) is a draw from p,
without the outer logarithms of the Gumbel-max trick. Lanes meet only after the last quad. Rows that are known already
are skipped.

Selecting. Exactly n_keep positions of an image stay masked. The n-th smallest confidence is found bit by bit, by
counting (floats compare like integers once their sign is taken care of); among positions that share it, a running count
gives the lower indices precedence.

Launches. Drawing and selecting are two. For a small batch one is enough: each program counts itself in when its rows
are done, and the last one of an image selects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskgit_kernels.backend import interpreting
from maskgit_kernels.build import Build
from maskgit_kernels.philox import STREAM_CONFIDENCE, STREAM_TOKEN
from maskgit_kernels.philox_triton import exponential, gumbel, philox_4x32, seed_halves

_LN2 = tl.constexpr(math.log(2))
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
_SMALLEST = torch.finfo(torch.float32).tiny
_STREAM_TOKEN = tl.constexpr(STREAM_TOKEN)
_STREAM_CONFIDENCE = tl.constexpr(STREAM_CONFIDENCE)


@triton.jit
def _finite(z, unguided, scale, GUIDED: tl.constexpr):
    """Logits as float32, guided if asked for, with +inf and NaN replaced by the largest float.

    Codes of infinite logit then share all the probability as they should, and NaN is harmless. Under guidance infinite
    logits stay infinite, and a code that is impossible in either set is impossible.
    """
    z = z.to(tl.float32)
    if GUIDED:
        unguided = unguided.to(tl.float32)
        guided = tl.where(tl.abs(z) == float("inf"), z, z + scale * (z - unguided))
        z = tl.where(unguided == float("-inf"), float("-inf"), guided)
    return tl.minimum(z, _LARGEST)


@triton.jit
def _load_quads(
    logits,
    guidance,
    quads,
    open_rows,
    stride_v,
    guidance_stride_v,
    guidance_scale,
    NUM_CODES: tl.constexpr,
    GUIDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Four [BLOCK_R, BLOCK_Q] of logits, one for each code of a quad; -inf for rows and codes that are not there.

    logits, guidance: pointers to the rows' first logits, [BLOCK_R]; quads: [BLOCK_Q]; open_rows: [BLOCK_R], True where
    a row is to be loaded.
    """
    codes = quads[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]  # [1, BLOCK_Q, 4]
    wanted = codes >= 0  # [1, BLOCK_Q, 4], all True: a lone row is open, and needs no mask where codes fill the block
    if NUM_CODES % (4 * BLOCK_Q) != 0:
        wanted = codes < NUM_CODES
    if BLOCK_R > 1:
        wanted = wanted & open_rows[:, None, None]  # [BLOCK_R, BLOCK_Q, 4]
    z = tl.load(
        logits[:, None, None] + codes.to(tl.int64) * stride_v, wanted, other=float("-inf")
    )  # [BLOCK_R, BLOCK_Q, 4]
    unguided = z
    if GUIDED:
        unguided = tl.load(guidance[:, None, None] + codes.to(tl.int64) * guidance_stride_v, wanted, other=0.0)
    z = _finite(z, unguided, guidance_scale, GUIDED)
    even, odd = tl.split(tl.reshape(z, [BLOCK_R, BLOCK_Q, 2, 2]))  # codes 0 and 2, 1 and 3: [BLOCK_R, BLOCK_Q, 2]
    z0, z2 = tl.split(even)
    z1, z3 = tl.split(odd)
    return z0, z1, z2, z3


@triton.jit
def _draw(
    logits,
    guidance,
    open_rows,
    positions,
    key0,
    key1,
    step,
    stride_v,
    guidance_stride_v,
    sharpness,
    choice_temperature,
    guidance_scale,
    NUM_CODES: tl.constexpr,
    DRAW: tl.constexpr,
    LOG_PROB: tl.constexpr,
    GUIDED: tl.constexpr,
    NOISY: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """A code (int32) and its confidence (float32) for each row, both [BLOCK_R].

    logits and guidance point to the rows, [BLOCK_R]. Weights are 2 ** ((z - top) * sharpness). The confidence lacks its
    noise, except for "perturbed", where the noise chose the code.
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
        z = _load_quads(
            logits,
            guidance,
            quads,
            open_rows,
            stride_v,
            guidance_stride_v,
            guidance_scale,
            NUM_CODES,
            GUIDED,
            BLOCK_R,
            BLOCK_Q,
        )
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
                noise = exponential(words[j], FAST)
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
            z = _load_quads(
                logits,
                guidance,
                quads,
                open_rows,
                stride_v,
                guidance_stride_v,
                guidance_scale,
                NUM_CODES,
                GUIDED,
                BLOCK_R,
                BLOCK_Q,
            )
            if NOISY:
                words = philox_4x32(key0, key1, quads[None, :], positions[:, None], step, _STREAM_TOKEN)
            for j in tl.static_range(4):
                score = tl.exp2((z[j] - row_top[:, None]) * sharpness) / row_total[:, None]  # [BLOCK_R, BLOCK_Q]
                if NOISY:
                    score += choice_temperature * gumbel(words[j], FAST)
                wins = (z[j] >= least) & (score > best)
                best = tl.where(wins, score, best)
                best_code = tl.where(wins, quads[None, :] * 4 + j, best_code)

    row_best = tl.max(best, 1)  # [BLOCK_R]
    code = tl.min(tl.where(best == row_best[:, None], best_code, NUM_CODES - 1), 1)  # [BLOCK_R], the lowest of equals
    if DRAW == "perturbed":
        return code, row_best
    z = tl.load(logits + code.to(tl.int64) * stride_v, open_rows, other=0.0)  # [BLOCK_R]
    unguided = z
    if GUIDED:
        unguided = tl.load(guidance + code.to(tl.int64) * guidance_stride_v, open_rows, other=0.0)
    z = _finite(z, unguided, guidance_scale, GUIDED)
    log2_p = (z - row_top) * sharpness - tl.log2(row_total)
    return code, log2_p * _LN2 if LOG_PROB else tl.exp2(log2_p)


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
    FAST: tl.constexpr,
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
        score += choice_temperature * gumbel(words[0], FAST)
    score = tl.where(score == 0.0, 0.0, tl.minimum(score, _LARGEST))  # -0.0 is 0.0, and only known positions are +inf
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
def draw_tokens(
    logits,
    guidance,
    tokens,
    masked,
    n_keep_masked,
    seeds,
    new_tokens,
    scores,
    still_masked,
    finished,
    length,
    stride_b,
    stride_n,
    stride_v,
    guidance_stride_b,
    guidance_stride_n,
    guidance_stride_v,
    step,
    sharpness,
    choice_temperature,
    guidance_scale,
    NUM_CODES: tl.constexpr,
    DRAW: tl.constexpr,
    LOG_PROB: tl.constexpr,
    GUIDED: tl.constexpr,
    NOISY: tl.constexpr,
    SELECT: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_R rows of one image a program: new_tokens and scores, and with SELECT still_masked for the whole image."""
    blocks = tl.cdiv(length, BLOCK_R)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    positions = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    inside = positions < length
    rows = image * length + positions
    open_rows = tl.load(masked + rows, inside, other=0)
    code = tl.zeros([BLOCK_R], tl.int32)
    score = tl.zeros([BLOCK_R], tl.float32)
    if tl.max(open_rows.to(tl.int32), 0) > 0:
        key0, key1 = seed_halves(tl.load(seeds + image))
        row_logits = logits + image * stride_b + positions.to(tl.int64) * stride_n  # [BLOCK_R]
        row_guidance = row_logits
        if GUIDED:
            row_guidance = guidance + image * guidance_stride_b + positions.to(tl.int64) * guidance_stride_n
        code, score = _draw(
            row_logits,
            row_guidance,
            open_rows,
            positions,
            key0,
            key1,
            step,
            stride_v,
            guidance_stride_v,
            sharpness,
            choice_temperature,
            guidance_scale,
            NUM_CODES,
            DRAW,
            LOG_PROB,
            GUIDED,
            NOISY,
            FAST,
            BLOCK_R,
            BLOCK_Q,
        )
    tl.store(new_tokens + rows, tl.where(open_rows, code.to(tl.int64), tl.load(tokens + rows, inside)), inside)
    # Known positions alone are infinitely confident.
    tl.store(scores + rows, tl.where(open_rows, tl.minimum(score, _LARGEST), float("inf")), inside)

    if SELECT:
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
                FAST,
                BLOCK_N,
            )
            tl.store(finished + image, 0)  # as it was found


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
    FAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The selection of one image a program."""
    image = tl.program_id(0).to(tl.int64)
    select(scores, n_keep_masked, seeds, still_masked, image, length, step, choice_temperature, NOISY, FAST, BLOCK_N)


_counters_of_stream: dict[tuple[torch.device, int], Tensor] = {}


def _counters(batch: int, device: torch.device, may_outlive: bool) -> Tensor:
    """int32 [at least batch], all zero: fresh ones, or without a launch those that the stream's last step left so.

    Kernels of one stream follow each other and can share counters. Those of a CUDA graph, which may be replayed on any
    stream, can't.
    """
    if not may_outlive or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return torch.zeros(batch, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    counters = _counters_of_stream.get(key)
    if counters is None or len(counters) < batch:
        counters = _counters_of_stream[key] = torch.zeros(max(batch, 64), dtype=torch.int32, device=device)
    return counters


# Up to this many rows the device is hardly full, and a second launch would take longer than what it does.
_ONE_LAUNCH_ROWS = 4096


@dataclass(frozen=True)
class _Tiles:
    """How a row sampler is laid out."""

    rows: int  # BLOCK_R
    quads: int  # BLOCK_Q
    num_warps: int


def _tiles(num_codes: int, length: int, one_launch: bool) -> _Tiles:
    """Few warps a row save the work of joining their lanes; many finish sooner, which counts when rows are few."""
    num_warps = 4 if one_launch or num_codes > 4096 else 1
    quads_per_lane = 2 if num_codes >= 512 * num_warps else 1  # shares what a pass costs, if the row has two passes
    quads = 32 * num_warps * quads_per_lane
    quads_of_row = triton.next_power_of_2(triton.cdiv(num_codes, 4))
    rows = max(1, min(quads // quads_of_row, triton.next_power_of_2(length)))
    return _Tiles(rows, min(quads, quads_of_row), num_warps)


def decode_step_triton(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    seeds: Tensor,
    step: int,
    num_codes: int,
    softmax_temperature: float,
    choice_temperature: float,
    draw: str,
    confidence: str,
    guidance_logits: Tensor | None,
    guidance_scale: float,
    counters_may_outlive: bool,
) -> tuple[Tensor, Tensor]:
    """See `decode_step`; the arguments are validated there. Logits may have any strides.

    With counters_may_outlive the counters that a small batch needs are kept for the next step. Not so in a compiled
    graph, whose memory is not to be held on to; they are then set to zero by a launch of their own.
    """
    batch, length = tokens.shape
    new_tokens = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    still_masked = torch.empty_like(masked, memory_format=torch.contiguous_format)
    if tokens.numel() == 0:
        return new_tokens, still_masked
    scores = torch.empty(batch, length, dtype=torch.float32, device=tokens.device)
    tokens, masked, n_keep_masked, seeds = (x.contiguous() for x in (tokens, masked, n_keep_masked, seeds))
    guidance = guidance_logits if guidance_scale != 0 else None
    noisy = choice_temperature > 0
    one_launch = batch * length <= _ONE_LAUNCH_ROWS
    tiles = _tiles(num_codes, length, one_launch)
    block_n = triton.next_power_of_2(length)
    fast = not interpreting()
    # Clamped to what float32 can hold: a temperature of 1e-39 is greedy, one of 1e39 uniform.
    sharpness = min(max(math.log2(math.e) / softmax_temperature, _SMALLEST), _LARGEST.value)
    choice_temperature = min(choice_temperature, _LARGEST.value)

    draw_tokens[(batch * triton.cdiv(length, tiles.rows),)](
        logits,
        guidance,
        tokens,
        masked,
        n_keep_masked,
        seeds,
        new_tokens,
        scores,
        still_masked,
        _counters(batch, logits.device, counters_may_outlive) if one_launch else None,
        length,
        *logits.stride(),
        *(guidance.stride() if guidance is not None else (0, 0, 0)),
        step,
        sharpness,
        choice_temperature,
        guidance_scale,
        NUM_CODES=num_codes,
        DRAW=draw,
        LOG_PROB=confidence == "log_prob",
        GUIDED=guidance is not None,
        NOISY=noisy,
        SELECT=one_launch,
        FAST=fast,
        BLOCK_R=tiles.rows,
        BLOCK_Q=tiles.quads,
        BLOCK_N=block_n,
        num_warps=tiles.num_warps,
    )
    if not one_launch:
        select_positions[(batch,)](
            scores,
            n_keep_masked,
            seeds,
            still_masked,
            length,
            step,
            choice_temperature,
            NOISY=noisy and draw != "perturbed",
            FAST=fast,
            BLOCK_N=block_n,
        )
    return new_tokens, still_masked


_TYPES = {
    "logits": "*bf16",
    "guidance": "*bf16",
    "tokens": "*i64",
    "masked": "*i1",
    "n_keep_masked": "*i64",
    "seeds": "*i64",
    "new_tokens": "*i64",
    "scores": "*fp32",
    "still_masked": "*i1",
    "finished": "*i32",
    "length": "i32",
    "stride_b": "i32",
    "stride_n": "i32",
    "guidance_stride_b": "i32",
    "guidance_stride_n": "i32",
    "step": "i32",
    "sharpness": "fp32",
    "choice_temperature": "fp32",
    "guidance_scale": "fp32",
}


def builds(capability: int) -> list[Build]:
    """The kernels as launched for contiguous bf16 logits of 256 (or 1024) tokens, on whatever architecture."""

    def drawing(name: str, num_codes: int, draw: str = "categorical", guided: bool = False, one_launch: bool = False):
        tiles = _tiles(num_codes, 256, one_launch)
        unused = {} if guided else {"guidance": None, "guidance_stride_b": 0, "guidance_stride_n": 0}
        return Build(
            name=f"decode step, {name}, V={num_codes}, bf16",
            kernel=draw_tokens,
            signature=_TYPES,
            constants={
                "NUM_CODES": num_codes,
                "DRAW": draw,
                "LOG_PROB": draw != "perturbed",
                "GUIDED": guided,
                "NOISY": True,
                "SELECT": one_launch,
                "FAST": True,
                "BLOCK_R": tiles.rows,
                "BLOCK_Q": tiles.quads,
                "BLOCK_N": 256,
                "stride_v": 1,
                "guidance_stride_v": 1,
                **({} if one_launch else {"finished": None}),
                **unused,
            },
            num_warps=tiles.num_warps,
            aligned=("stride_b", "stride_n", "guidance_stride_b", "guidance_stride_n"),
            elements=4 * tiles.rows * tiles.quads,
        )

    def selecting(length: int):
        return Build(
            name=f"decode step, selection, N={length}",
            kernel=select_positions,
            signature=_TYPES,
            constants={"NOISY": True, "FAST": True, "BLOCK_N": length},
        )

    return [
        drawing("categorical", 1024),
        drawing("categorical", 16384),
        drawing("categorical, one launch", 1024, one_launch=True),
        drawing("categorical, one launch", 16384, one_launch=True),
        drawing("categorical, guided", 1024, guided=True),
        drawing("greedy", 1024, draw="greedy"),
        drawing("perturbed", 1024, draw="perturbed"),
        selecting(256),
        selecting(1024),
    ]
