"""The Triton kernels as PyTorch operators: what autograd, torch.compile and torch.export see of them.

Queries, keys and values are three tensors, or packed in one: k and v are None then, and the gradient is one tensor too,
to whose parts the kernels write.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskgit_kernels.operators import operator


def parts(q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, [B, H, N, D] each: as they are, or views of a packed q, [B, N, 3, H, D]."""
    if k is None or v is None:
        q, k, v = q.transpose(1, 3).unbind(2)
    return q, k, v


def heads_merged(x: Tensor) -> Tensor:
    """A new tensor of x's shape [B, H, N, D] that lies in memory as [B, N, H * D]: merging the heads is a view."""
    batch, heads, length, head_dim = x.shape
    return x.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def new_gradients(q: Tensor, k: Tensor | None, v: Tensor | None) -> list[Tensor]:
    """Memory for the gradients of q, k and v, or for that of a packed q: it is contiguous."""
    return [q.new_empty(q.shape)] if k is None or v is None else [heads_merged(x) for x in (q, k, v)]


def _new_results(q: Tensor, k: Tensor | None, v: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    if k is None:
        batch, queries, heads, head_dim = *q.shape[:2], *q.shape[3:]
    else:
        batch, heads, queries, head_dim = q.shape
    return q.new_empty(batch, queries, heads, head_dim), q.new_empty(batch, heads, queries, dtype=torch.float32)


@operator("maskgit_kernels::attention_backward", fake=lambda grad, q, k, v, *_: new_gradients(q, k, v))
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
) -> list[Tensor]:
    """The gradients of q, k and v, or of a packed q, from that of the output; see `attention_forward`."""
    from maskgit_kernels.attention import triton_backward

    gradients = new_gradients(q, k, v)
    grad, out = grad.transpose(1, 2), out.transpose(1, 2)  # [B, H, Nq, D]
    triton_backward.backward(grad, *parts(q, k, v), out, lse, seed, dropout_p, scale, *parts(*gradients))
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, seed, ctx.dropout_p, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # or PyTorch makes zeros for it
    ctx.save_for_backward(q, k, v, out, lse, seed)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    q, k, v, out, lse, seed = ctx.saved_tensors
    gradients = attention_backward(grad, q, k, v, out, lse, seed, ctx.dropout_p, ctx.scale)
    return (*gradients, *[None] * (6 - len(gradients)))


@operator("maskgit_kernels::attention_forward", fake=_new_results, save=_save, differentiate=_differentiate)
def attention_forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, seed: Tensor | None, dropout_p: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention on validated arguments, for which see `triton_forward.forward`.

    Args:
        q: [B, H, Nq, D]; or packed, [B, N, 3, H, D].
        k, v: [B, H, Nk, D]; None if q is packed.

    Returns:
        The output, [B, Nq, H, D], and the log-sum-exp, float32 [B, H, Nq].
    """
    from maskgit_kernels.attention import triton_forward

    out, lse = _new_results(q, k, v)
    triton_forward.forward(*parts(q, k, v), seed, dropout_p, scale, out.transpose(1, 2), lse)
    return out, lse
