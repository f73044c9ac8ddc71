"""head_loss as a PyTorch operator: what autograd, torch.compile and torch.export see of it.

The gradients are computed with the loss, while the logits that they need are at hand, and the backward pass only scales
them, as in Liger Kernel (Hsu et al., 2024). If the logits, which can't be kept, were computed anew, it would take a
fourth product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskgit_kernels.backend import resolve
from maskgit_kernels.common import math_for
from maskgit_kernels.head_loss.eager import head_loss_eager
from maskgit_kernels.operators import operator

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _empty_results(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counted: Tensor,
    hits_among: Tensor,
    label_smoothing: float,
    gradients: bool,
    backend: str | None,
) -> Results:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=dtype),
        targets.new_empty(()),
        hidden.new_empty(hidden.shape if gradients else 0),
        hidden.new_empty(weight.shape if gradients else 0, dtype=dtype),
        hidden.new_empty(bias.shape if gradients and bias is not None else 0, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    hidden, weight, bias, *_ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])
    ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype


@once_differentiable
def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    # `grad` of one element, not a scalar, which a GPU would first round to the gradients' dtype.
    scaled = (
        None if dtype is None else (x * grad[None]).to(dtype)
        for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    )
    return *scaled, *[None] * 6


@operator("maskgit_kernels::head_loss", fake=_empty_results, save=_save, differentiate=_differentiate)
def head_loss_operator(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counted: Tensor,
    hits_among: Tensor,
    label_smoothing: float,
    gradients: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`head_loss` on validated arguments, and if wanted the gradients of its loss.

    Returns:
        loss: float32 [] (float64 for float64).
        hits: int64 [].
        dhidden: [B, N, D] of hidden's dtype, 0 where not counted.
        dweight, dbias: of weight's and bias's shapes, and loss's dtype. Without `gradients` the last three are empty,
            and dbias without a bias.
    """
    arguments = hidden, weight, bias, targets, counted, hits_among, label_smoothing, gradients
    unsupported = "it does not take float64" if hidden.dtype == torch.float64 else None
    exact = hidden.dtype == torch.float32 and math_for(hidden.dtype) == "ieee"  # without tensor cores: see head_loss
    if resolve(backend, hidden.device, unsupported, slower=exact) == "triton" and counted.numel():
        from maskgit_kernels.head_loss.launch import head_loss_triton

        with torch.cuda.device_of(hidden):  # Triton launches on the current device
            return head_loss_triton(*arguments)
    return head_loss_eager(*arguments)
