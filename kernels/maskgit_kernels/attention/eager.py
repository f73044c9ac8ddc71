"""Attention in plain PyTorch: matrix product, softmax, matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskgit_kernels.attention.reference import keep_mask
from maskgit_kernels.attention.triton_op import new_gradients, parts
from maskgit_kernels.operators import operator

# Weights that a CPU works on at a time: few enough to stay in the caches, many enough that calls cost little.
_PIECE_BYTES = 2 * 2**20

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element

Piece = tuple[slice, slice]
"""Images and heads: all heads of some images, or some heads of one."""


def written_out(
    q: Tensor, k: Tensor | None, v: Tensor | None, dropout_p: float, seed: int | Tensor | None, scale: float
) -> Tensor:
    """For any device, [B, Nq, H, D] of q, k and v or of a packed q; the arguments are validated in `attention`."""
    q, k, v = parts(q, k, v)
    weights = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)  # [B, H, Nq, Nk]
    if dropout_p > 0:
        assert seed is not None
        weights = weights * keep_mask(q, k, dropout_p, seed)
        v = v / (1 - dropout_p)  # smaller than the weights
    return (weights @ v).transpose(1, 2)


def in_pieces(
    q: Tensor, k: Tensor | None, v: Tensor | None, dropout_p: float, seed: int | Tensor | None, scale: float
) -> Tensor:
    """The same for a CPU."""
    keep = None
    if dropout_p > 0:
        assert seed is not None
        # Outside of the operator: compilers can make one fast loop of it.
        keep = keep_mask(*parts(q, k, v)[:2], dropout_p, seed)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v))
    out, _ = attention_in_pieces(q, k, v, keep, 1 / (1 - dropout_p), scale, differentiable)
    return out


def _new_results(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    keep: Tensor | None,
    keep_scale: float,
    scale: float,
    differentiable: bool,
) -> tuple[Tensor, Tensor]:
    (batch, heads, queries, head_dim), keys = parts(q, k, v)[0].shape, parts(q, k, v)[1].shape[2]
    weights = (batch, heads, queries, keys) if differentiable else (0,)
    return q.new_empty(batch, queries, heads, head_dim), q.new_empty(weights)


@operator("maskgit_kernels::attention_in_pieces_backward", fake=lambda grad, q, k, v, *_: new_gradients(q, k, v))
def attention_in_pieces_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    saved: Tensor,
    keep: Tensor | None,
    keep_scale: float,
    scale: float,
) -> list[Tensor]:
    """Backward pass, piece by piece:

    dV = c (P * M)^T dO,  dP = c (dO V^T) * M,  dS = P * (dP - rowsum(dP * P)),  dQ = scale dS K,  dK = scale dS^T Q.
    """
    gradients = new_gradients(q, k, v)
    (dq, dk, dv), (q, k, v), grad = parts(*gradients), parts(q, k, v), grad.transpose(1, 2)
    for piece in _pieces(q, k):
        q_part, k_part, v_part, grad_part = (_matrices(x, piece) for x in (q, k, v, grad))
        weights = kept = _matrices(saved, piece)  # [P, Nq, Nk]
        if keep is not None:
            kept = _kept(weights, _matrices(keep, piece), out=torch.empty_like(weights))
        _product_into(dv, piece, kept.transpose(1, 2), grad_part, keep_scale)
        d_weights = _product(grad_part, v_part.transpose(1, 2), keep_scale)  # [P, Nq, Nk]
        if keep is not None:  # a weight of 0 that isn't dropped has no gradient either
            torch.ops.aten.threshold_backward(d_weights, kept, 0, grad_input=d_weights)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, q.dtype, grad_input=d_weights)
        _product_into(dq, piece, d_scores, k_part, scale)
        _product_into(dk, piece, d_scores.transpose(1, 2), q_part, scale)
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, keep, ctx.keep_scale, ctx.scale, _ = inputs
    weights = output[1]
    ctx.mark_non_differentiable(weights)
    ctx.set_materialize_grads(False)  # or PyTorch makes zeros for it
    ctx.save_for_backward(q, k, v, weights, keep)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    q, k, v, weights, keep = ctx.saved_tensors
    gradients = attention_in_pieces_backward(grad, q, k, v, weights, keep, ctx.keep_scale, ctx.scale)
    return (*gradients, *[None] * (7 - len(gradients)))


@operator("maskgit_kernels::attention_in_pieces", fake=_new_results, save=_save, differentiate=_differentiate)
def attention_in_pieces(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    keep: Tensor | None,
    keep_scale: float,
    scale: float,
    differentiable: bool,
) -> tuple[Tensor, Tensor]:
    """Forward pass, piece by piece: c (P * M) V with P = softmax(scale Q K^T).

    Args:
        q, k, v: [B, H, N, D]; or q is packed, [B, N, 3, H, D], and the others None.
        keep: M, as `keep_mask` gives it; None without dropout.
        keep_scale: c.

    Returns:
        The output, [B, Nq, H, D], and P for the backward pass, [B, H, Nq, Nk], empty if not `differentiable`.
    """
    merged, saved = _new_results(q, k, v, keep, keep_scale, scale, differentiable)
    (q, k, v), out = parts(q, k, v), merged.transpose(1, 2)  # [B, H, N, D]
    for piece in _pieces(q, k):
        q_part, k_part, v_part = (_matrices(x, piece) for x in (q, k, v))  # [P, N, D] each
        scores = _product(q_part, k_part.transpose(1, 2), scale)  # [P, Nq, Nk]
        weights = torch.softmax(scores, dim=-1, out=_matrices(saved, piece) if differentiable else scores)
        if keep is not None:
            weights = _kept(weights, _matrices(keep, piece), out=scores)
        _product_into(out, piece, weights, v_part, keep_scale)
    return merged, saved


def _pieces(q: Tensor, k: Tensor) -> Iterator[Piece]:
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    image_bytes = heads * queries * keys * q.element_size()
    if image_bytes <= _PIECE_BYTES:
        images = _PIECE_BYTES // max(1, image_bytes)
        yield from ((slice(i, min(i + images, batch)), slice(0, heads)) for i in range(0, batch, images))
    else:
        some = -(-heads // round(image_bytes / _PIECE_BYTES))
        yield from (
            (slice(i, i + 1), slice(h, min(h + some, heads))) for i in range(batch) for h in range(0, heads, some)
        )


def _matrices(x: Tensor, piece: Piece) -> Tensor:
    """A piece of [B, H, ...] as [P, ...], in one run of memory: a view of x if that is contiguous."""
    return x[piece].flatten(0, 1).contiguous()


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """factor a b for [P, M, K] and [P, K, N], [P, M, N]."""
    if out is None:
        out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


def _product_into(x: Tensor, piece: Piece, a: Tensor, b: Tensor, factor: float) -> None:
    """The same for a piece of [B, H, M, N], whose strides products of one image's heads can write through."""
    place = x[piece]
    if place.shape[0] == 1:
        _product(a, b, factor, out=place[0])
    else:
        place.copy_(_product(a, b, factor).view(place.shape))


def _kept(weights: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """weights * keep, both [P, Nq, Nk]."""
    bits = _BITS[weights.element_size()]  # an integer is converted to another in half the time
    torch.mul(weights.view(bits), keep, out=out.view(bits))
    return out
