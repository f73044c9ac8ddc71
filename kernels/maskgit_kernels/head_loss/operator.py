"""head_loss as a PyTorch operator: what autograd, torch.compile and torch.export see of it.

The gradients are computed with the loss, while the logits they need are at hand, and the backward pass only scales
them: one product fewer than if the logits, which can't be kept, were computed anew. A scalar loss makes that possible.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskgit_kernels.backend import resolve
from maskgit_kernels.head_loss.eager import head_loss_eager


@torch.library.custom_op("maskgit_kernels::head_loss", mutates_args=())
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
    """`head_loss` on validated arguments, and the gradients of its loss.

    Returns:
        loss: float32 [] (float64 for float64).
        hits: int64 [].
        dhidden: [B, N, D], of hidden's dtype; 0 where not counted.
        dweight, dbias: of weight's and bias's shapes, and loss's dtype. The last three are empty without `gradients`,
            and dbias is without a bias.
    """
    arguments = hidden, weight, bias, targets, counted, hits_among, label_smoothing, gradients
    unsupported = "it does not take float64" if hidden.dtype == torch.float64 else None
    if resolve("torch" if backend in (None, "auto") else backend, hidden.device, unsupported) == "triton":
        raise RuntimeError("head_loss has no Triton kernels yet")
    return head_loss_eager(*arguments)


@head_loss_operator.register_fake
def _(
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
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=dtype),
        targets.new_empty(()),
        hidden.new_empty(hidden.shape if gradients else 0),
        hidden.new_empty(weight.shape if gradients else 0, dtype=dtype),
        hidden.new_empty(bias.shape if gradients and bias is not None else 0, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, bias, *_ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])
    ctx.dtypes = weight.dtype, None if bias is None else bias.dtype


@once_differentiable
def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    dhidden, dweight, dbias = ctx.saved_tensors
    weight_dtype, bias_dtype = ctx.dtypes
    # `grad` of one element, not a scalar, which would first be rounded to dhidden's dtype.
    scaled = [(x * grad[None]).to(dtype) for x, dtype in ((dhidden, dhidden.dtype), (dweight, weight_dtype))]
    scaled_bias = None if bias_dtype is None else (dbias * grad).to(bias_dtype)
    return *scaled, scaled_bias, *[None] * 6


head_loss_operator.register_autograd(_differentiate, setup_context=_save)
