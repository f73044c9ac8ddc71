"""Starts the attention kernels: grid, constants, and the tiles to use, tuned or fixed.

And says how they are compiled, for `benchmarks.compiled`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from maskgit_kernels.attention import tuned
from maskgit_kernels.attention.reference import drops_in_256
from maskgit_kernels.attention.tiling import Tiling, candidates, fixed
from maskgit_kernels.attention.triton_tiles import few_left, programs
from maskgit_kernels.backend import capability_of, interpreting
from maskgit_kernels.build import Build
from maskgit_kernels.common import math_for, precision
from maskgit_kernels.launching import start


def numbers_of(q: Tensor, k: Tensor, dropout_p: float, scale: float) -> tuple[int | float, ...]:
    """The kernels' arguments from `heads` to `last_dropped`."""
    return q.shape[1], q.shape[2], k.shape[2], float(scale), 1 / (1 - dropout_p), max(0, drops_in_256(dropout_p) - 1)


def launch(
    name: str,
    kernel: Any,
    q: Tensor,
    k: Tensor,
    dropout_p: float,
    scale: float,
    tensors: tuple[Tensor | None, ...],
    strides: tuple[int, ...],
) -> None:
    """Run a kernel that has a program for each tile of each (image, head) pair, on the GPU of q.

    Args:
        name: "forward", "dq" or "dk_dv".
        q: [B, H, Nq, D]. k: [B, H, Nk, D].
        dropout_p: a multiple of 1/256.
        tensors, strides: the kernel's arguments up to its `heads`.
    """
    pairs, length = q.shape[0] * q.shape[1], k.shape[2] if name == "dk_dv" else q.shape[2]
    size = q.shape[3], math_for(q.dtype), dropout_p > 0
    numbers = numbers_of(q, k, dropout_p, scale)

    def run(tiling: Tiling) -> None:
        per_pair, constants = _layout(name, tiling, *size, length)
        options = tiling.num_warps, tiling.num_stages, tiling.max_registers
        start(kernel, (pairs * per_pair, 1, 1), tensors, strides, numbers, constants, *options)

    with torch.cuda.device_of(q):
        if name in _imposed:
            run(_imposed[name])
        elif os.environ.get("MASKGIT_AUTOTUNE") == "1" and not interpreting():
            place = (name, q.device, *size, tuned.bucket(q.shape[2]), tuned.bucket(k.shape[2]))
            if place not in _timed:
                _timed[place] = _fastest(candidates(name, capability_of(q.device), *size, length), run)
            run(_timed[place])
        else:
            run(choose(q.device, name, *size, length))


@functools.cache
def choose(device: torch.device, name: str, head_dim: int, math: str, dropout: bool, length: int) -> Tiling:
    """The tiling of a kernel on a device: as was timed on GPUs of its name, else as fixed for its capability.

    Args: see `tiling.fixed`.
    """
    found = tuned.lookup(name_of(device), tuned.key(name, head_dim, math, dropout, length))
    return found or fixed(name, capability_of(device), head_dim, math, dropout, length)


_imposed: dict[str, Tiling] = {}


def imposed(name: str) -> bool:
    """Whether a kernel is being timed: see `impose`."""
    return name in _imposed


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
            few = _layout(name, tiling, *size, length)[1]["FEW_LEFT"]
            remark = f", N={length}" if length != _LENGTHS[0] else ""
            builds.setdefault((size, tiling, few), build(name, kernel, tiling, length, *size, remark))
    return list(builds.values())


def build(
    name: str, kernel: Any, tiling: Tiling, length: int, head_dim: int, math: str, dropout: bool, remark: str
) -> Build:
    """What `launch` compiles for packed projections; `remark` goes into the build's name. For `length` see `fixed`."""
    constants = dict(_layout(name, tiling, head_dim, math, dropout, length)[1])
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


@functools.cache
def _layout(
    name: str, tiling: Tiling, head_dim: int, math: str, dropout: bool, length: int
) -> tuple[int, dict[str, Any]]:
    """Programs for each (image, head) pair, and the kernel's constexpr arguments."""
    parts = tiling.parts(head_dim)
    rows = tiling.block_n if name == "dk_dv" else tiling.block_m
    constants = {
        "PARTS": parts,
        "D": head_dim,
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "DROPOUT": dropout,
        "PRECISION": precision(math),
        "FEW_LEFT": few_left(length, rows, parts),
    }
    return programs(length, rows), constants


def name_of(device: torch.device) -> str:
    """What the tuned table knows a GPU by; in the interpreter there is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


_timed: dict[tuple[Any, ...], Tiling] = {}  # by what lengths of the same buckets share


def _fastest(tilings: list[Tiling], start: Callable[[Tiling], Any]) -> Tiling:
    """The tiling with which a kernel takes the least time. Those that do not fit on the GPU are out of the race."""

    def milliseconds(tiling: Tiling) -> float:
        try:
            return triton.testing.do_bench(lambda: start(tiling), return_mode="median")
        except (OutOfResources, PTXASError):
            return float("inf")

    return min(tilings, key=milliseconds)
