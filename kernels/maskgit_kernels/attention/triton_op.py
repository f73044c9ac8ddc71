"""The Triton kernels as PyTorch operators: what autograd, torch.compile and torch.export see of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("maskgit_kernels::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, dropout_p: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention on validated arguments; see `triton_forward.forward`. Returns the output and the log-sum-exp."""
    from maskgit_kernels.attention import triton_forward

    out, lse = _forward_outputs(q)
    triton_forward.forward(q, k, v, seed, dropout_p, scale, out, lse)
    return out, lse


@torch.library.custom_op("maskgit_kernels::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; see `triton_backward.backward`."""
    from maskgit_kernels.attention import triton_backward

    dq, dk, dv = (heads_merged(x) for x in (q, k, v))
    triton_backward.backward(grad, q, k, v, out, lse, seed, dropout_p, scale, dq, dk, dv)
    return dq, dk, dv


def heads_merged(x: Tensor) -> Tensor:
    """A new tensor of x's shape [B, H, N, D] that lies in memory as [B, N, H * D]: merging the heads is a view."""
    batch, heads, length, head_dim = x.shape
    return x.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def _forward_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return heads_merged(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@attention_forward.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _forward_outputs(q)


@attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return heads_merged(q), heads_merged(k), heads_merged(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, seed, ctx.dropout_p, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, seed, out, lse)


def _differentiate(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, seed, out, lse = ctx.saved_tensors
    return (*attention_backward(grad, q, k, v, out, lse, seed, ctx.dropout_p, ctx.scale), None, None, None)


attention_forward.register_autograd(_differentiate, setup_context=_save)
