"""Starts the attention kernels: grid, constants, and the tiles to use, tuned or fixed.

And says how they are compiled, for `benchmarks.compiled`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from maskgit_kernels.attention import tuned
from maskgit_kernels.attention.reference import drops_in_256
from maskgit_kernels.attention.tiling import Tiling, candidates, fixed
from maskgit_kernels.attention.triton_tiles import Parts, few_left, programs
from maskgit_kernels.backend import capability_of, interpreting
from maskgit_kernels.build import Build
from maskgit_kernels.common import math_for, precision


def launch(name: str, kernel: Any, q: Tensor, k: Tensor, dropout_p: float, scale: float, *arguments: Any) -> None:
    """Run a kernel on the GPU of q (or in Triton's interpreter), one program for each tile of each (image, head) pair.

    Args:
        name: "forward", "dq" or "dk_dv".
        q: [B, H, Nq, D]. k: [B, H, Nk, D].
        arguments: those of the kernel up to its `heads`.
    """
    batch, heads, num_queries, head_dim = q.shape
    num_keys = k.shape[2]
    dropped = drops_in_256(dropout_p)
    math = math_for(q.dtype)
    numbers = (heads, num_queries, num_keys, scale, 1 / (1 - dropout_p), max(0, dropped - 1))
    constants = {"D": head_dim, "DROPOUT": dropped > 0, "PRECISION": precision(math)}

    def grid(meta: dict[str, Any]) -> tuple[int]:
        length, block = (num_keys, meta["BLOCK_N"]) if name == "dk_dv" else (num_queries, meta["BLOCK_M"])
        return (batch * heads * programs(length, block),)

    size = head_dim, math, dropped > 0
    with torch.cuda.device_of(q):
        if name not in _imposed and _tuning():
            capability = capability_of(q.device)
            tuner = _tuner(name, kernel, capability, *size, tuned.bucket(num_queries), tuned.bucket(num_keys))
            tuner[grid](*arguments, *numbers, **constants)
        else:
            tiling = _imposed.get(name) or choose(q.device, name, *size, num_keys if name == "dk_dv" else num_queries)
            kernel[grid](*arguments, *numbers, **constants, **_blocks(tiling, head_dim), **_options(tiling))


@functools.cache
def choose(device: torch.device, name: str, head_dim: int, math: str, dropout: bool, length: int) -> Tiling:
    """The tiling of a kernel on a device: as was timed on GPUs of its name, else as fixed for its capability.

    Args: see `tiling.fixed`.
    """
    found = tuned.lookup(name_of(device), tuned.key(name, head_dim, math, dropout, length))
    return found or fixed(name, capability_of(device), head_dim, math, dropout, length)


_imposed: dict[str, Tiling] = {}


@contextlib.contextmanager
def impose(name: str, tiling: Tiling) -> Iterator[None]:
    """Within it, a kernel uses this tiling and no other: for timing it."""
    _imposed[name] = tiling
    try:
        yield
    finally:
        del _imposed[name]


# Lengths that all tiles divide, that leave a row to a small program, and that the largest tiles don't divide. The last
# two are compiled for the head_dims of models that have them.
_LENGTHS = (256, 257, 192)
_ALL_LENGTHS = (48, 96)


def builds_of(name: str, kernel: Any, capability: int, shipped: list[tuple[int, str, bool]]) -> list[Build]:
    """What `launch` compiles without tuning for each (head_dim, math, dropout), at lengths that get different code."""
    builds: dict[tuple[Any, ...], Build] = {}
    for size in shipped:
        for length in _LENGTHS if size[0] in _ALL_LENGTHS and size[1] == "half" else _LENGTHS[:1]:
            tiling = fixed(name, capability, *size, length)
            rows = tiling.block_n if name == "dk_dv" else tiling.block_m
            few = few_left(length, rows, tiling.parts(size[0]))
            remark = f", N={length}" if length != _LENGTHS[0] else ""
            builds.setdefault((size, tiling, few), build(name, kernel, tiling, few, *size, remark))
    return list(builds.values())


def build(
    name: str, kernel: Any, tiling: Tiling, few: Parts | None, head_dim: int, math: str, dropout: bool, remark: str
) -> Build:
    """What `launch` compiles for packed projections; `remark` goes into the build's name. For `few` see `few_left`."""
    kernel = kernel.fn  # without the heuristics
    constants = {"D": head_dim, "DROPOUT": dropout, "PRECISION": precision(math), **_blocks(tiling, head_dim)}
    constants["FEW_LEFT"] = few
    constants |= {argument: 1 for argument in kernel.arg_names if argument.endswith("_column")}
    constants |= {} if dropout else {"seed_ptr": None}
    types = {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "seed_ptr": "*i64", "scale": "fp32", "keep_scale": "fp32"}
    element = "*bf16" if math == "half" else "*fp32"
    products = {"forward": 2, "dq": 3, "dk_dv": 4}[name]
    return Build(
        f"attention {name}, head_dim {head_dim}{remark}, {math}{', dropout' if dropout else ''}",
        kernel,
        signature={
            argument: types.get(argument, element if argument.endswith("_ptr") else "i32")
            for argument in kernel.arg_names
            if argument not in constants
        },
        constants=constants,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        max_registers=tiling.max_registers,
        aligned=tuple(x for x in kernel.arg_names if x.endswith(("_image", "_head", "_row"))),
        elements=tiling.block_m * tiling.block_n,
        ideal_macs=0 if math == "ieee" else products * head_dim * tiling.block_m * tiling.block_n,
    )


def _blocks(tiling: Tiling, head_dim: int) -> dict[str, Any]:
    return {"PARTS": tiling.parts(head_dim), "BLOCK_M": tiling.block_m, "BLOCK_N": tiling.block_n}


def _options(tiling: Tiling) -> dict[str, Any]:
    return {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages, "maxnreg": tiling.max_registers}


def name_of(device: torch.device) -> str:
    """What the tuned table knows a GPU by; in the interpreter there is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _tuning() -> bool:
    return os.environ.get("MASKGIT_AUTOTUNE", "0") == "1" and not interpreting()


@functools.cache
def _tuner(
    name: str, kernel: Any, capability: int, head_dim: int, math: str, dropout: bool, queries: int, keys: int
) -> Any:
    """The kernel with an autotuner around it. Lengths of the same bucket share what was found."""
    configs = [
        triton.Config(
            _blocks(tiling, head_dim),
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            maxnreg=tiling.max_registers,
        )
        for tiling in candidates(name, capability, head_dim, math, dropout, keys if name == "dk_dv" else queries)
    ]
    return triton.autotune(configs, key=[])(kernel)
