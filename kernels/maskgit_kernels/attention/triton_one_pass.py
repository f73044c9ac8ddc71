"""Attention backward of short sequences in one pass: when, and how it is launched and compiled.

The kernel is in `triton_one_pass_kernel`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from maskgit_kernels.attention.launch import numbers_of
from maskgit_kernels.attention.tiling import Tiling
from maskgit_kernels.attention.triton_one_pass_kernel import attention_one_pass_kernel
from maskgit_kernels.attention.triton_tiles import TAIL
from maskgit_kernels.backend import interpreting
from maskgit_kernels.build import Build
from maskgit_kernels.launching import start

_BLOCK_M, _BLOCK_N = 128, 64  # queries of a block, keys at a time
_MOST_BLOCKS = 2  # of queries: for dq of more there are no registers
_MOST_KEYS = 320  # for more, two kernels have more programs, and as few bytes
_OPTIONS = {"num_warps": 8, "num_stages": 2, "max_registers": 255}


def _blocks(num_queries: int) -> tuple[int, bool]:
    """Blocks of _BLOCK_M queries, and whether those beyond go to a block of TAIL."""
    whole, left = divmod(num_queries, _BLOCK_M)
    few = whole > 0 and 0 < left <= TAIL.value
    return whole + (left > 0 and not few), few


def takes(capability: int, head_dim: int, math: str, dropout: bool, num_queries: int, num_keys: int) -> bool:
    """Whether `backward_one_pass` can take these arguments and, by what it compiles to, needs less than two kernels.

    Instructions for each score of 256 by 256, of the two kernels together and of this one, with dropout in brackets:

        capability 9.0, head_dim 48: 17.6 and 12.4 (34.7 and 18.7)
        capability 8.0, head_dim 48: 20.9 and 23.3 (35.3 and 31.0), and 85 (101) registers are spilled
        capability 10.0, head_dim 48: 21.4 (33.5), and here more tensor memory is asked for than there is

    At head_dim 96, dq of 256 queries leaves no registers for the rest.

    Args: see `tiling.fixed`, and
        num_queries, num_keys: lengths.
    """
    blocks, _ = _blocks(num_queries)
    if math != "half" or head_dim > 48 or not 0 < blocks <= _MOST_BLOCKS or not 0 < num_keys <= _MOST_KEYS:
        return False
    if interpreting():  # whatever is faster
        return True
    return 90 <= capability < 100 and head_dim == 48 and blocks * _BLOCK_M <= 1.25 * num_queries


def backward_one_pass(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Write the gradients, where `takes` says so.

    Args:
        grad: that of out, [B, H, Nq, D], any strides.
        q, k, v, out, lse, seed, dropout_p, scale: what `triton_forward.forward` was given and has written.
        dq: [B, H, Nq, D]; dk, dv: [B, H, Nk, D]; with strides (N * row, D, row, 1), where row >= H * D is the same for
            dk and dv: each a transposed contiguous [B, N, H, D], or a part of a packed [B, N, 3, H, D].
    """
    tensors = (q, k, v, out, grad, lse, dq, dk, dv, seed)
    strides = (*q.stride(), *k.stride(), *v.stride(), *grad.stride(), *out.stride())
    strides += (dq.stride(0), dq.stride(2), dk.stride(0), dk.stride(2))
    batch, heads, num_queries, head_dim = q.shape
    constants = _constants(head_dim, *_blocks(num_queries), dropout_p > 0)
    with torch.cuda.device_of(q):
        numbers = numbers_of(q, k, dropout_p, scale)
        start(attention_one_pass_kernel, (batch * heads, 1, 1), tensors, strides, numbers, constants, **_OPTIONS)


@functools.cache
def _constants(head_dim: int, blocks: int, few: bool, dropout: bool) -> dict[str, Any]:
    parts, wide = Tiling().parts(head_dim), Tiling(padded=True).parts(head_dim)
    tiles = {"BLOCK_M": _BLOCK_M, "BLOCK_N": _BLOCK_N, "BLOCKS": blocks, "FEW": few}
    return {"PARTS": parts, "WIDE": wide, "D": head_dim, "DROPOUT": dropout, **tiles}


def builds(capability: int) -> list[Build]:
    """What is compiled for GPUs of some capability."""
    return [
        _build(head_dim, num_queries, dropout)
        for head_dim in (48,)
        for num_queries in (256, 257)
        for dropout in (False, True)
        if takes(capability, head_dim, "half", dropout, num_queries, num_queries)
    ]


def _build(head_dim: int, num_queries: int, dropout: bool) -> Build:
    kernel = attention_one_pass_kernel
    blocks, few = _blocks(num_queries)
    constants = dict(_constants(head_dim, blocks, few, dropout))
    constants |= {argument: 1 for argument in kernel.arg_names if argument.endswith("_column")}
    constants |= {} if dropout else {"seed_ptr": None}
    types = {"lse_ptr": "*fp32", "seed_ptr": "*i64", "scale": "fp32", "keep_scale": "fp32"}
    elements = _BLOCK_N * blocks * _BLOCK_M  # of a pass of the main loop, which knows nothing of the few
    remark = f", N={num_queries}" if few else ""
    return Build(
        f"attention one pass, head_dim {head_dim}{remark}, half{', dropout' if dropout else ''}",
        kernel,
        signature={
            argument: types.get(argument, "*bf16" if argument.endswith("_ptr") else "i32")
            for argument in kernel.arg_names
            if argument not in constants
        },
        constants=constants,
        **_OPTIONS,
        aligned=tuple(x for x in kernel.arg_names if x.endswith(("_image", "_head", "_row"))),
        elements=elements,
        ideal_macs=5 * head_dim * elements,
    )
