"""Runs the kernels of head_loss, a chunk of the rows after the other."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from maskgit_kernels.common import math_for
from maskgit_kernels.head_loss.plan import plan_of
from maskgit_kernels.head_loss.triton_gradients import (
    differentiate_hidden,
    differentiate_logits,
    differentiate_weight,
)
from maskgit_kernels.head_loss.triton_loss import join_tiles, pack_rows, sum_rows, weigh_tiles
from maskgit_kernels.launching import start


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
    plan = plan_of(math_for(hidden.dtype), batch, length, width, num_codes, kind, gradients)
    chunk, tiles = plan.chunk, plan.tiles

    def new(*shape: int, dtype: torch.dtype = torch.float32, make: Any = torch.empty) -> Tensor:
        return make(shape, dtype=dtype, device=hidden.device)

    def run(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        tensors = tuple(x for x in arguments if x is None or isinstance(x, Tensor))
        integers = tuple(x for x in arguments if isinstance(x, int))
        floats = tuple(x for x in arguments if isinstance(x, float))
        constants, options = plan.compiled[kernel.__name__]
        columns, rows, depth = (*grid, 1, 1)[:3]
        start(kernel, (columns, rows, depth), tensors, integers, floats, constants, **options)

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
    blocks = chunk // plan.side
    segments = length if kind == "position" else blocks
    sums = new(segments, num_codes, make=torch.zeros) if gradients and bias is not None else None

    run(pack_rows, (triton.cdiv(num_rows, plan.rows_packed),), counted, rows, starts, batch, length)
    for first in range(0, num_rows, chunk):
        part = first, chunk, length
        product = *part, width
        listed = targets, rows, starts
        run(weigh_tiles, (blocks, tiles), hidden, weight, bias, *listed, weights, *of_tiles, *product)
        results = *of_rows, losses, row_hits
        grid: tuple[int, ...] = (triton.cdiv(chunk, plan.rows_joined),)
        run(join_tiles, grid, hits_among, *listed, *of_tiles, *results, *part, label_smoothing)
        if not gradients:
            break
        grid, dlogits = (segments, tiles), weights  # the same memory
        run(differentiate_logits, grid, weights, dlogits, tops, *of_rows, *listed, sums, *part, label_smoothing)
        run(differentiate_hidden, (blocks, plan.width_tiles), dlogits, weight, rows, starts, dhidden, *product)
        grid = tiles, plan.width_tiles, plan.slices
        run(differentiate_weight, grid, dlogits, hidden, rows, starts, dweight, *product)
    run(sum_rows, (1,), losses, row_hits, starts, loss, hits, length)
    dweight = dweight.sum(0) if plan.slices > 1 else dweight[0]
    dbias = new(0) if sums is None else sums if kind == "position" else sums.sum(0)
    return loss, hits, dhidden, dweight, dbias
