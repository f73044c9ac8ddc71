"""Runs the kernels of head_loss, a chunk of the rows after the other."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from maskgit_kernels.backend import capability_of
from maskgit_kernels.common import math_for
from maskgit_kernels.head_loss.plan import Plan
from maskgit_kernels.head_loss.triton_gradients import (
    differentiate_hidden,
    differentiate_logits,
    differentiate_weight,
)
from maskgit_kernels.head_loss.triton_loss import join_tiles, pack_rows, sum_rows, weigh_tiles


def head_loss_triton(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counted: Tensor,
    hits_among: Tensor,
    label_smoothing: float,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `operator.head_loss_operator`; the arguments are validated in `head_loss`.

    Raises:
        ValueError: more positions than an int32 can number.
    """
    batch, length, width = hidden.shape
    num_codes, num_rows = len(weight), batch * length
    if num_rows >= 2**31:
        raise ValueError(f"backend 'triton' takes B * N < 2**31 positions, got {batch} * {length}")
    hidden, weight, targets, counted, hits_among = (
        x.contiguous() for x in (hidden, weight, targets, counted, hits_among)
    )
    bias = None if bias is None else bias.contiguous()
    kind = "none" if bias is None else "code" if bias.dim() == 1 else "position"
    math, capability = math_for(hidden.dtype), capability_of(hidden.device)
    plan = Plan(capability, math, batch, length, width, num_codes, kind, gradients)
    chunk, tiles = plan.chunk, plan.tiles

    def new(*shape: int, dtype: torch.dtype = torch.float32, make: Any = torch.empty) -> Tensor:
        return make(shape, dtype=dtype, device=hidden.device)

    def run(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        kernel[grid](*arguments, **plan.constants[kernel.__name__])

    loss, hits = new(), new(dtype=torch.int64)
    rows, starts = new(num_rows, dtype=torch.int32), new(length + 1, dtype=torch.int32)
    losses, row_hits = new(num_rows), new(num_rows, dtype=torch.int32)
    weights = new(chunk, plan.stride, dtype=hidden.dtype) if gradients else None
    codes_of_tops = new(tiles, chunk, dtype=torch.int32)
    drops = new(tiles, chunk) if label_smoothing else None
    of_tiles = (tops := new(tiles, chunk), new(tiles, chunk), codes_of_tops, drops, new(chunk))
    of_rows = new(chunk), new(chunk)
    dhidden = new(*hidden.shape if gradients else (0,), dtype=hidden.dtype, make=torch.zeros)
    dweight = new(plan.slices, *weight.shape if gradients else (0,), make=torch.zeros)
    sums = None
    if gradients and bias is not None:
        sums = new(plan.rows_of_sums, num_codes, make=torch.zeros)
    segments = length if kind == "position" else triton.cdiv(chunk, plan.segment)
    blocks = chunk // plan.side

    run(pack_rows, (triton.cdiv(num_rows, plan.rows_packed),), counted, rows, starts, batch, length)
    for first in range(0, num_rows, chunk):
        part = first, chunk, length
        given = hidden, weight, bias, targets, rows, starts, weights
        run(weigh_tiles, (blocks, tiles), *given, *of_tiles, *part, width)
        results = *of_rows, losses, row_hits
        given = targets, hits_among, rows, starts
        run(join_tiles, (triton.cdiv(chunk, plan.rows_joined),), *given, *of_tiles, *results, *part, label_smoothing)
        if not gradients:
            break
        given = weights, weights, tops, *of_rows, targets, rows, starts, sums
        run(differentiate_logits, (segments, tiles), *given, *part, label_smoothing)
        grid = blocks, plan.width_tiles
        run(differentiate_hidden, grid, weights, weight, rows, starts, dhidden, *part, width)
        grid = tiles, plan.width_tiles, plan.slices
        run(differentiate_weight, grid, weights, hidden, rows, starts, dweight, *part, width)
    run(sum_rows, (1,), losses, row_hits, starts, loss, hits, length)
    dbias = new(0) if sums is None else sums if kind == "position" else sums.sum(0)
    return loss, hits, dhidden, dweight.sum(0), dbias
