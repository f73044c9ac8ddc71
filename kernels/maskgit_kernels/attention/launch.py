"""Starts the attention kernels: grid, constants, and the tiles to use, fixed or tuned.

And says how they are compiled, for `maskgit_kernels.aot`.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton
from torch import Tensor

from maskgit_kernels.aot import Build
from maskgit_kernels.attention.reference import drops_in_256
from maskgit_kernels.attention.tiling import Tiling, candidates, fixed
from maskgit_kernels.attention.triton_tiles import TAIL, few_left, programs
from maskgit_kernels.backend import interpreting


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
    constants = {"D": head_dim, "DROPOUT": dropped > 0, "PRECISION": _precision(math)}

    def grid(meta: dict[str, Any]) -> tuple[int]:
        length, block = (num_keys, meta["BLOCK_N"]) if name == "dk_dv" else (num_queries, meta["BLOCK_M"])
        return (batch * heads * programs(length, block),)

    capability = _capability(q.device)
    with torch.cuda.device_of(q):
        if _tuning():
            tuner = _tuner(name, kernel, capability, head_dim, math, num_queries.bit_length(), num_keys.bit_length())
            tuner[grid](*arguments, *numbers, **constants)
        else:
            tiling = fixed(name, capability, head_dim, math, dropped > 0)
            kernel[grid](*arguments, *numbers, **constants, **_blocks(tiling, head_dim), **_options(tiling))


def build(name: str, kernel: Any, capability: int, head_dim: int, math: str, dropout: bool, few: bool = False) -> Build:
    """What `launch` compiles for packed projections on GPUs of some capability, without tuning.

    Args:
        few: whether a row is left that fills no block; see `triton_tiles.few_left`.
    """
    kernel = kernel.fn  # without the heuristics
    tiling = fixed(name, capability, head_dim, math, dropout)
    constants = {"D": head_dim, "DROPOUT": dropout, "PRECISION": _precision(math), **_blocks(tiling, head_dim)}
    constants["FEW_LEFT"] = few_left(2 * TAIL.value + 1, 2 * TAIL.value, constants["PARTS"]) if few else None
    constants |= {argument: 1 for argument in kernel.arg_names if argument.endswith("_column")}
    constants |= {} if dropout else {"seed_ptr": None}
    types = {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "seed_ptr": "*i64", "scale": "fp32", "keep_scale": "fp32"}
    element = "*bf16" if math == "half" else "*fp32"
    products = {"forward": 2, "dq": 3, "dk_dv": 4}[name]
    return Build(
        f"attention {name}, head_dim {head_dim}, {math}{', dropout' * dropout}{', few left' * few}",
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


def math_for(dtype: torch.dtype) -> str:
    """What multiplies: see `tiling.MATH`. float32 follows PyTorch's own setting for matrix products."""
    if dtype != torch.float32:
        return "half"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since PyTorch 2.9, where reading the older setting may raise
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


def _precision(math: str) -> str:
    return "tf32" if math == "tf32" else "ieee"


@functools.cache
def _capability(device: torch.device) -> int:
    """Ten times the compute capability; in the interpreter that of the oldest GPU."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _tuning() -> bool:
    return os.environ.get("MASKGIT_AUTOTUNE", "0") == "1" and not interpreting()


@functools.cache
def _tuner(name: str, kernel: Any, capability: int, head_dim: int, math: str, *size: int) -> Any:
    """The kernel with an autotuner around it. Lengths of the same `size`, a power of two, share what was found."""
    configs = [
        triton.Config(
            _blocks(tiling, head_dim),
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            maxnreg=tiling.max_registers,
        )
        for tiling in candidates(name, capability, head_dim, math)
    ]
    return triton.autotune(configs, key=["DROPOUT"])(kernel)
