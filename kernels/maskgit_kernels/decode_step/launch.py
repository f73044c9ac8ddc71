"""Launches the Triton kernels of a decoding step, and lists what is compiled of them.

Drawing and selecting are two launches. For a small batch one is enough: each program that draws counts itself in when
its rows are done, and the last one of an image selects.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskgit_kernels.build import Build
from maskgit_kernels.decode_step.settings import Settings, State, new_state
from maskgit_kernels.decode_step.triton_draw import draw_tokens
from maskgit_kernels.decode_step.triton_select import LARGEST, select_positions, selecting_warps
from maskgit_kernels.launching import cdiv, next_power_of_2, start

_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, LARGEST.value
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


def _one_launch(batch: int, length: int) -> bool:
    """Up to so many rows the device is hardly full, and a second launch would take longer than what it does. More
    positions of one image want more warps to select among them than to draw."""
    return batch * length <= 4096 and length <= 1024


class _Tiles(NamedTuple):
    """How a row sampler is laid out."""

    rows: int  # BLOCK_R
    quads: int  # BLOCK_Q
    num_warps: int


def _tiles(num_codes: int, length: int, one_launch: bool) -> _Tiles:
    """Few warps a row save the work of joining their lanes; many finish sooner, which counts when rows are few."""
    num_warps = 4 if one_launch or num_codes > 4096 else 1
    quads_per_lane = 2 if num_codes >= 512 * num_warps else 1  # shares what a pass costs, if the row has two passes
    quads = 32 * num_warps * quads_per_lane
    quads_of_row = next_power_of_2(cdiv(num_codes, 4))
    rows = max(1, min(quads // quads_of_row, next_power_of_2(length)))
    return _Tiles(rows, min(quads, quads_of_row), num_warps)


def _constants(num_codes: int, length: int, settings: Settings, tiles: _Tiles) -> dict[str, Any]:
    return {
        "NUM_CODES": num_codes,
        "DRAW": settings.draw,
        "LOG_PROB": settings.confidence == "log_prob",
        "NOISY": settings.choice_temperature > 0,
        "BLOCK_R": tiles.rows,
        "BLOCK_Q": tiles.quads,
        "BLOCK_N": next_power_of_2(length),
    }


def decode_step_triton(
    logits: Tensor,
    guidance_logits: Tensor | None,
    num_codes: int,
    state: State,
    settings: Settings,
    *,
    bias: Tensor | None = None,
    counters_may_outlive: bool,
) -> tuple[Tensor, Tensor]:
    """See `decode_step`; the arguments are validated there. Logits may have any strides.

    Args:
        bias: [V] or [N, V], floating-point, added to the logits: what the LM head's product lacks in `head_sample`.
        counters_may_outlive: keep the counters that a small batch needs for the next step. Not so in a compiled graph,
            whose memory is not to be held on to; they are then set to zero by a launch of their own.
    """
    batch, length = state.tokens.shape
    new_tokens, still_masked = new_state(state.tokens, state.masked)
    if state.tokens.numel() == 0:
        return new_tokens, still_masked
    scores = torch.empty(batch, length, dtype=torch.float32, device=logits.device)
    tokens, masked, n_keep_masked, seeds = (x.contiguous() for x in state)
    guidance = guidance_logits if settings.guidance_scale != 0 else None
    bias = None if bias is None else bias.contiguous()
    one_launch = _one_launch(batch, length)
    counters = _counters(batch, logits.device, counters_may_outlive) if one_launch else None
    tiles = _tiles(num_codes, length, one_launch)
    # Clamped to what float32 can hold: a temperature of 1e-39 is greedy, one of 1e39 uniform.
    sharpness = min(max(math.log2(math.e) / settings.softmax_temperature, _SMALLEST), _LARGEST)
    choice_temperature = min(settings.choice_temperature, _LARGEST)

    start(
        draw_tokens,
        (batch * cdiv(length, tiles.rows), 1, 1),
        (logits, guidance, bias, tokens, masked, n_keep_masked, seeds, new_tokens, scores, still_masked, counters),
        (
            *logits.stride(),
            *((0, 0, 0) if guidance is None else guidance.stride()),
            num_codes if bias is not None and bias.dim() == 2 else 0,
        ),
        (length, settings.step, sharpness, choice_temperature, settings.guidance_scale),
        _constants(num_codes, length, settings, tiles),
        tiles.num_warps,
    )
    if not one_launch:
        block_n = next_power_of_2(length)
        start(
            select_positions,
            (batch, 1, 1),
            (scores, n_keep_masked, seeds, still_masked),
            (),
            (length, settings.step, choice_temperature),
            {"NOISY": choice_temperature > 0 and settings.draw != "perturbed", "BLOCK_N": block_n},
            selecting_warps(block_n),
        )
    return new_tokens, still_masked


TYPES = {  # of the arguments of this package's kernels and head_sample's
    **dict.fromkeys(("logits", "guidance", "hidden", "weight"), "*bf16"),
    **dict.fromkeys(("tokens", "n_keep_masked", "seeds", "new_tokens"), "*i64"),
    **dict.fromkeys(("masked", "still_masked"), "*i1"),
    **dict.fromkeys(("finished", "listed", "partials"), "*i32"),
    **dict.fromkeys(("bias", "scores"), "*fp32"),
    **dict.fromkeys(("stride_b", "stride_n", "guidance_stride_b", "guidance_stride_n", "bias_stride_n"), "i32"),
    **dict.fromkeys(("width", "rows", "length", "step"), "i32"),
    **dict.fromkeys(("softmax_temperature", "sharpness", "choice_temperature", "guidance_scale"), "fp32"),
}


def builds(capability: int) -> list[Build]:
    """The kernels as launched for contiguous bf16 logits of 256 (or more) tokens, on whatever architecture.

    With a bias logits are float32, as head_sample has them.
    """

    def drawing(name: str, num_codes: int, draw: str = "categorical", one_launch: bool = False, given: str = ""):
        tiles = _tiles(num_codes, 256, one_launch)
        confidence = "prob" if draw == "perturbed" else "log_prob"
        unused: dict[str, Any] = {} if one_launch else {"finished": None}
        if given != "guidance":
            unused |= {"guidance": None, "guidance_stride_b": 0, "guidance_stride_n": 0}
        if given != "bias":
            unused |= {"bias": None, "bias_stride_n": 0}
        dtype = "fp32" if given == "bias" else "bf16"
        return Build(
            name=f"decode step, {name}, V={num_codes}, {dtype}",
            kernel=draw_tokens,
            signature=TYPES | {"logits": f"*{dtype}"},
            constants={
                **_constants(num_codes, 256, Settings(0, 1.0, 1.0, draw, confidence), tiles),
                **{"stride_v": 1, "guidance_stride_v": 1},
                **unused,
            },
            num_warps=tiles.num_warps,
            aligned=tuple(x for x in TYPES if "stride" in x),
            elements=4 * tiles.rows * tiles.quads,
        )

    def selecting(length: int) -> Build:
        constants = {"NOISY": True, "BLOCK_N": length}
        name, warps = f"decode step, selection, N={length}", selecting_warps(length)
        return Build(name, select_positions, TYPES, constants, warps)

    return [
        drawing("categorical", 1024),
        drawing("categorical", 16384),
        drawing("categorical, one launch", 1024, one_launch=True),
        drawing("categorical, one launch", 16384, one_launch=True),
        drawing("categorical, guided", 1024, given="guidance"),
        drawing("biased", 1024, given="bias"),
        drawing("greedy", 1024, draw="greedy"),
        drawing("perturbed", 1024, draw="perturbed"),
        *map(selecting, (256, 1024, 4096)),
    ]
