"""The two ways of head_sample with Triton, and what is compiled of its kernels."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskgit_kernels.backend import capability_of, interpreting
from maskgit_kernels.build import Build
from maskgit_kernels.common import math_for, precision
from maskgit_kernels.decode_step.launch import TYPES, decode_step_triton
from maskgit_kernels.decode_step.settings import Settings, State, new_state
from maskgit_kernels.decode_step.triton_select import LARGEST, selecting_warps
from maskgit_kernels.head_sample.choice import fused_wins, imposed
from maskgit_kernels.head_sample.triton_draw import draw_from_tiles, list_masked
from maskgit_kernels.head_sample.triton_finish import finish_images
from maskgit_kernels.launching import cdiv, next_power_of_2, start

# Logits that may be in memory: 64 MiB, or one image's if that is more.
_PIECE = 2**24


class Head(NamedTuple):
    """What makes the logits; see `head_sample`."""

    hidden: Tensor
    guidance_hidden: Tensor | None  # None without guidance
    weight: Tensor
    bias: Tensor | None


class _Tiles(NamedTuple):
    """How the product is laid out."""

    rows: int  # BLOCK_M
    codes: int  # BLOCK_V
    width: int  # BLOCK_D
    span: int  # SPAN
    num_warps: int
    num_stages: int


@functools.cache
def _tiles(capability: int, arithmetic: str, guided: bool) -> _Tiles:
    """Where tensor cores are fast for what the L2 cache delivers, tiles of 128 rows, so that each weight is loaded half
    as often as with 64: a multiprocessor then has room for one program, which can't multiply while it draws. Elsewhere
    tensor cores set the pace, or without them the sums, and two smaller programs take turns.

    SPAN follows from which columns a thread holds. On Ampere, Ada and consumer Blackwell, where warps share the columns
    of a tile in strips of 8, those 32 further are the same warp's again. On Hopper and datacenter Blackwell a warp has
    more columns than that on end, those 16 further included. Without tensor cores a thread has four adjacent ones, and
    codes stay in order.
    """
    strips = capability < 90 or capability >= 120
    consumer = capability in (86, 89) or capability >= 120  # half as fast or slower, with 100 KiB of shared memory
    large = arithmetic != "ieee" and not consumer
    return _Tiles(
        rows=128 if large else 64,
        codes=128,
        width={"half": 64, "tf32": 32, "ieee": 16}[arithmetic],
        span=2 if arithmetic == "ieee" else 32 if strips else 16,
        num_warps=8 if large else 4,
        num_stages=2 if consumer and (guided or arithmetic == "tf32") else 3,
    )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Of the GPU; where kernels are interpreted, of an A100."""
    return 108 if interpreting() else torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _faster(device: torch.device, rows: int, num_codes: int, width: int, arithmetic: str, guided: bool) -> str:
    tiles = _tiles(capability_of(device), arithmetic, guided)
    tile = tiles.rows, tiles.codes, 8 // tiles.num_warps
    gpu = capability_of(device), _multiprocessors(device)
    return "fused" if fused_wins(rows, num_codes, width, arithmetic, guided, tile, *gpu) else "product"


def head_sample_triton(
    head: Head, state: State, settings: Settings, *, counters_may_outlive: bool
) -> tuple[Tensor, Tensor]:
    """See `head_sample`; the arguments are validated there. For counters_may_outlive see `decode_step_triton`."""
    if state.tokens.numel() == 0:
        return new_state(state.tokens, state.masked)
    hidden, (num_codes, width), guided = head.hidden, head.weight.shape, head.guidance_hidden is not None
    rows, arithmetic = state.tokens.numel(), math_for(hidden.dtype)
    way = imposed() or _faster(hidden.device, rows, num_codes, width, arithmetic, guided)
    if way == "fused" and settings.draw != "perturbed":
        return _fused(head, state, settings, arithmetic, _tiles(capability_of(hidden.device), arithmetic, guided))
    return _product_and_step(head, state, settings, counters_may_outlive)


def _product_and_step(
    head: Head, state: State, settings: Settings, counters_may_outlive: bool
) -> tuple[Tensor, Tensor]:
    """A library's product, summed and kept in float32, and `decode_step` on it, for some images at a time.

    One launch more than `decode_step` takes, and with guidance another.
    """
    hidden, guidance, weight, bias = head
    batch, length, _ = hidden.shape
    num_codes = len(weight)
    results = []
    images = max(1, _PIECE // (length * num_codes))
    for first in range(0, batch, images):
        some = slice(first, first + images)
        rows = hidden[some].flatten(0, 1)
        if guidance is not None:  # h + s * (h - g), rounded once
            rows = torch.lerp(guidance[some].flatten(0, 1), rows, 1 + settings.guidance_scale)
        results.append(
            decode_step_triton(
                _product(rows, weight).view(-1, length, num_codes),
                None,
                num_codes,
                State(*(x[some] for x in state)),
                settings,
                bias=bias,
                counters_may_outlive=counters_may_outlive,
            )
        )
    if len(results) == 1:
        return results[0]
    tokens, masked = zip(*results, strict=True)
    return torch.cat(tokens), torch.cat(masked)


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight.T, float32 [R, V]."""
    if rows.dtype == torch.float32:
        return rows @ weight.T
    if rows.is_cuda:
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    return (rows.double() @ weight.double().T).float()  # where kernels are interpreted


def _constants(num_codes: int, settings: Settings, bias: str, even: bool, arithmetic: str, tiles: _Tiles):
    return {
        "NUM_CODES": num_codes,
        "DRAW": settings.draw,
        "BIAS": bias,
        "EVEN_WIDTH": even,
        "PRECISION": precision(arithmetic),
        "BLOCK_M": tiles.rows,
        "BLOCK_V": tiles.codes,
        "BLOCK_D": tiles.width,
        "SPAN": tiles.span,
    }


def _finishing(num_codes: int, length: int, settings: Settings, tiles: _Tiles) -> dict[str, Any]:
    return {
        "DRAW": settings.draw,
        "LOG_PROB": settings.confidence == "log_prob",
        "NOISY": settings.choice_temperature > 0,
        "TILES": cdiv(num_codes, tiles.codes),
        "BLOCK_N": next_power_of_2(length),
    }


def _listing_threads(length: int) -> int:
    return min(max(next_power_of_2(length), 32), 1024)


def _fused(head: Head, state: State, settings: Settings, arithmetic: str, tiles: _Tiles) -> tuple[Tensor, Tensor]:
    """The product that draws from its tiles, in three launches; not for "perturbed"."""
    hidden, guidance, weight, bias = (None if x is None else x.contiguous() for x in head)
    assert hidden is not None and weight is not None
    tokens, masked, n_keep_masked, seeds = (x.contiguous() for x in state)
    new_tokens, still_masked = new_state(tokens, masked)
    (batch, length, width), num_codes = hidden.shape, len(weight)
    # Scores may have any temperature whose products are finite. Exponents of weights are differences of numbers that
    # grow as it falls, so theirs is held at 2**-20, where a softmax has a single winner anyway.
    sharpness = math.log2(math.e) / min(max(settings.softmax_temperature, 2.0**-20), 2.0**100)
    softmax_temperature = min(settings.softmax_temperature, 2.0**100)
    choice_temperature = min(settings.choice_temperature, LARGEST.value)

    scores = torch.empty(batch, length, dtype=torch.float32, device=hidden.device)
    listed = torch.empty(batch * length + 1, dtype=torch.int32, device=hidden.device)
    partials = listed.new_empty(batch, cdiv(num_codes, tiles.codes), length, 4)
    threads = _listing_threads(length)
    start(list_masked, (batch, 1, 1), (masked, listed), (), (length,), {"BLOCK": threads}, threads // 32)
    start(
        draw_from_tiles,
        (cdiv(batch * length, tiles.rows), cdiv(num_codes, tiles.codes), 1),
        (hidden, guidance, weight, bias, seeds, listed, partials),
        (width,),
        (batch * length, length, settings.step, softmax_temperature, sharpness, settings.guidance_scale),
        _constants(
            num_codes,
            settings,
            "none" if bias is None else "code" if bias.dim() == 1 else "position",
            width % tiles.width == 0,
            arithmetic,
            tiles,
        ),
        tiles.num_warps,
        tiles.num_stages,
    )
    constants = _finishing(num_codes, length, settings, tiles)
    start(
        finish_images,
        (batch, 1, 1),
        (partials, tokens, masked, n_keep_masked, seeds, new_tokens, scores, still_masked),
        (),
        (length, settings.step, softmax_temperature, sharpness, choice_temperature),
        constants,
        selecting_warps(constants["BLOCK_N"]),
    )
    return new_tokens, still_masked


def builds(capability: int) -> list[Build]:
    """The kernels as launched for 256 (or 1024) tokens and a hidden state whose width is a multiple of 64."""
    names = {"half": "bf16", "tf32": "tf32", "ieee": "fp32"}

    def drawing(
        name: str,
        num_codes: int = 1024,
        draw: str = "categorical",
        bias: str = "position",
        arithmetic: str = "half",
    ) -> Build:
        guided = "guided" in name
        tiles = _tiles(capability, arithmetic, guided)
        logits = tiles.rows * tiles.codes
        factors = ("hidden", "guidance", "weight")
        constants = _constants(num_codes, Settings(0, draw=draw), bias, True, arithmetic, tiles)
        return Build(
            name=f"head sample, {name}, V={num_codes}, {names[arithmetic]}",
            kernel=draw_from_tiles,
            signature=TYPES | dict.fromkeys(factors, "*bf16" if arithmetic == "half" else "*fp32"),
            constants=constants if guided else constants | {"guidance": None},
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            aligned=("width",),
            elements=logits,
            ideal_macs=0 if arithmetic == "ieee" else logits * tiles.width,
        )

    def finishing(length: int, num_codes: int) -> Build:
        settings, tiles = Settings(0, choice_temperature=1.0), _tiles(capability, "half", False)
        constants = _finishing(num_codes, length, settings, tiles)
        name = f"head sample, finish, N={length}, V={num_codes}"
        return Build(name, finish_images, TYPES, constants, selecting_warps(length))

    def listing(length: int) -> Build:
        threads = _listing_threads(length)
        return Build(f"head sample, list, N={length}", list_masked, TYPES, {"BLOCK": threads}, threads // 32)

    return [
        drawing("categorical"),
        drawing("categorical", num_codes=16384, bias="code"),
        drawing("categorical, guided"),
        drawing("greedy", draw="greedy"),
        drawing("categorical", arithmetic="tf32"),
        drawing("categorical", arithmetic="ieee"),
        listing(256),
        listing(1024),
        finishing(256, 1024),
        finishing(1024, 16384),
    ]
