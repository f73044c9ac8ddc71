"""Launches the Triton kernels of head_sample, and lists what is compiled of them."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from maskgit_kernels.attention.launch import math_for
from maskgit_kernels.backend import capability_of, interpreting
from maskgit_kernels.build import Build
from maskgit_kernels.decode_step.launch import decode_step_triton
from maskgit_kernels.decode_step.settings import Settings, State, new_state
from maskgit_kernels.decode_step.triton_select import LARGEST, selecting_warps
from maskgit_kernels.head_sample.choice import Tile, fused_wins, imposed
from maskgit_kernels.head_sample.triton_draw import draw_from_tiles, list_masked
from maskgit_kernels.head_sample.triton_finish import finish_images


class _Tiles(NamedTuple):
    """How the product is laid out."""

    rows: int  # BLOCK_M
    codes: int  # BLOCK_V
    width: int  # BLOCK_D
    span: int  # SPAN
    num_warps: int
    num_stages: int


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


def _listing(block_n: int) -> dict[str, int]:
    """Options of `list_masked`."""
    threads = min(max(block_n, 32), 1024)
    return {"BLOCK": threads, "num_warps": threads // 32}


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Of the GPU; where kernels are interpreted, of an A100."""
    return 108 if interpreting() else torch.cuda.get_device_properties(device).multi_processor_count


# Logits that may be in memory: 64 MiB, or one image's if that is more.
_PIECE = 2**24


def head_sample_triton(
    hidden: Tensor,
    guidance_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: State,
    settings: Settings,
    *,
    counters_may_outlive: bool,
) -> tuple[Tensor, Tensor]:
    """See `head_sample`; the arguments are validated there. For counters_may_outlive see `decode_step_triton`."""
    if state.tokens.numel() == 0:
        return new_state(state.tokens, state.masked)
    arithmetic = math_for(hidden.dtype)
    tiles = _tiles(capability_of(hidden.device), arithmetic, guidance_hidden is not None)
    way = imposed() or _faster(hidden, len(weight), arithmetic, guidance_hidden is not None, tiles)
    head = hidden, guidance_hidden, weight, bias
    if way == "fused" and settings.draw != "perturbed":
        return _fused(*head, state, settings, arithmetic, tiles)
    return _product_and_step(*head, state, settings, counters_may_outlive)


def _faster(hidden: Tensor, num_codes: int, arithmetic: str, guided: bool, tiles: _Tiles) -> str:
    batch, length, width = hidden.shape
    tile = Tile(tiles.rows, tiles.codes, 8 // tiles.num_warps)
    gpu = capability_of(hidden.device), _multiprocessors(hidden.device)
    return "fused" if fused_wins(batch * length, num_codes, width, arithmetic, guided, tile, *gpu) else "product"


def _product_and_step(
    hidden: Tensor,
    guidance_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: State,
    settings: Settings,
    counters_may_outlive: bool,
) -> tuple[Tensor, Tensor]:
    """A library's product, float32 whatever the factors are, and a decoding step on it, for some images at a time.

    One launch more than `decode_step` takes, and with guidance another.
    """
    batch, length, _ = hidden.shape
    num_codes = len(weight)
    unguided = settings._replace(guidance_scale=0.0)
    results = []
    for part in torch.arange(batch).split(max(1, _PIECE // (length * num_codes))):
        images = slice(int(part[0]), int(part[-1]) + 1)
        rows = hidden[images]
        if guidance_hidden is not None:  # h + s * (h - g), rounded once
            rows = torch.lerp(guidance_hidden[images], rows, 1 + settings.guidance_scale)
        logits = _product(rows.flatten(0, 1), weight).view(-1, length, num_codes)
        some = State(*(x[images] for x in state))
        results.append(
            decode_step_triton(
                logits, None, num_codes, some, unguided, bias=bias, counters_may_outlive=counters_may_outlive
            )
        )
    tokens, masked = zip(*results, strict=True)
    return torch.cat(tokens), torch.cat(masked)


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight.T, float32 [R, V]."""
    if rows.dtype == torch.float32:
        return rows @ weight.T
    if rows.is_cuda:
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    return (rows.double() @ weight.double().T).float()  # where kernels are interpreted


def _fused(
    hidden: Tensor,
    guidance_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    state: State,
    settings: Settings,
    arithmetic: str,
    tiles: _Tiles,
) -> tuple[Tensor, Tensor]:
    """The product that draws from its tiles, in three launches; not for "perturbed"."""
    batch, length, width = hidden.shape
    num_codes = len(weight)
    new_tokens, still_masked = new_state(state.tokens, state.masked)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    tokens, masked, n_keep_masked, seeds = (x.contiguous() for x in state)
    bias = None if bias is None else bias.contiguous()
    guidance = None if guidance_hidden is None else guidance_hidden.contiguous()
    # Scores may have any temperature whose products are finite. Exponents of weights are differences of numbers that
    # grow as it falls, so theirs is held at 2**-20, where a softmax has a single winner anyway.
    sharpness = math.log2(math.e) / min(max(settings.softmax_temperature, 2.0**-20), 2.0**100)
    softmax_temperature = min(settings.softmax_temperature, 2.0**100)

    tiles_of_row = triton.cdiv(num_codes, tiles.codes)
    block_n = triton.next_power_of_2(length)
    fast = not interpreting()

    def scratch(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=hidden.device)

    listed, partials = scratch(batch * length + 1), scratch(batch, tiles_of_row, length, 4)
    list_masked[(batch,)](masked, listed, length, **_listing(block_n))
    draw_from_tiles[(triton.cdiv(batch * length, tiles.rows), tiles_of_row)](
        hidden,
        guidance,
        weight,
        bias,
        seeds,
        listed,
        partials,
        batch * length,
        length,
        width,
        settings.step,
        softmax_temperature,
        sharpness,
        settings.guidance_scale,
        NUM_CODES=num_codes,
        DRAW=settings.draw,
        BIAS="none" if bias is None else "code" if bias.dim() == 1 else "position",
        EVEN_WIDTH=width % tiles.width == 0,
        PRECISION="tf32" if arithmetic == "tf32" else "ieee",
        FAST=fast,
        BLOCK_M=tiles.rows,
        BLOCK_V=tiles.codes,
        BLOCK_D=tiles.width,
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
        scratch(batch, length, dtype=torch.float32),
        still_masked,
        length,
        settings.step,
        softmax_temperature,
        sharpness,
        min(settings.choice_temperature, LARGEST.value),
        DRAW=settings.draw,
        LOG_PROB=settings.confidence == "log_prob",
        NOISY=settings.choice_temperature > 0,
        FAST=fast,
        TILES=tiles_of_row,
        BLOCK_N=block_n,
        num_warps=selecting_warps(block_n),
    )
    return new_tokens, still_masked


_TYPES = {
    **dict.fromkeys(("hidden", "guidance", "weight"), "*bf16"),
    **dict.fromkeys(("tokens", "n_keep_masked", "seeds", "new_tokens"), "*i64"),
    **dict.fromkeys(("masked", "still_masked"), "*i1"),
    **dict.fromkeys(("listed", "partials"), "*i32"),
    **dict.fromkeys(("bias", "scores"), "*fp32"),
    **dict.fromkeys(("rows", "length", "width", "step"), "i32"),
    **dict.fromkeys(("softmax_temperature", "sharpness", "choice_temperature", "guidance_scale"), "fp32"),
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
        tiles=None,
    ) -> Build:
        tiles = tiles or _tiles(capability, arithmetic, guided)
        logits = tiles.rows * tiles.codes
        types = {} if arithmetic == "half" else dict.fromkeys(("hidden", "guidance", "weight"), "*fp32")
        return Build(
            name=f"head sample, {name}, V={num_codes}, {dict(half='bf16', tf32='tf32', ieee='fp32')[arithmetic]}",
            kernel=draw_from_tiles,
            signature=_TYPES | types,
            constants={
                "NUM_CODES": num_codes,
                "DRAW": draw,
                "BIAS": bias,
                "EVEN_WIDTH": True,
                "PRECISION": "tf32" if arithmetic == "tf32" else "ieee",
                "FAST": True,
                "BLOCK_M": tiles.rows,
                "BLOCK_V": tiles.codes,
                "BLOCK_D": tiles.width,
                "SPAN": tiles.span,
                **({} if guided else {"guidance": None}),
            },
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            aligned=("width",),
            elements=logits,
            ideal_macs=0 if arithmetic == "ieee" else logits * tiles.width,
        )

    def listing(length: int) -> Build:
        block, num_warps = _listing(length).values()
        return Build(f"head sample, list, N={length}", list_masked, _TYPES, {"BLOCK": block}, num_warps)

    def finishing(length: int, num_codes: int) -> Build:
        return Build(
            name=f"head sample, finish, N={length}, V={num_codes}",
            kernel=finish_images,
            signature=_TYPES,
            constants={
                "DRAW": "categorical",
                "LOG_PROB": True,
                "NOISY": True,
                "FAST": True,
                "TILES": triton.cdiv(num_codes, _tiles(capability, "half", guided=False).codes),
                "BLOCK_N": length,
            },
            num_warps=selecting_warps(length),
        )

    return [
        drawing("categorical"),
        drawing("categorical", num_codes=16384, bias="code"),
        drawing("categorical, guided", guided=True),
        drawing("greedy", draw="greedy"),
        drawing("categorical", arithmetic="tf32"),
        drawing("categorical", arithmetic="ieee"),
        listing(256),
        listing(1024),
        finishing(256, 1024),
        finishing(1024, 16384),
    ]
