"""Attention in plain PyTorch: matrix product, softmax, matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskgit_kernels.attention.reference import keep_mask
from maskgit_kernels.attention.triton_op import heads_merged

# Weights that a CPU works on at a time: few enough to stay in the caches, many enough that calls cost little.
_PIECE_BYTES = 2 * 2**20

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element

Piece = tuple[slice, slice]
"""Images and heads: all heads of some images, or some heads of one."""


def written_out(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: int | Tensor | None, scale: float) -> Tensor:
    """For any device; the arguments are validated in `attention`."""
    weights = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)  # [B, H, Nq, Nk]
    if dropout_p > 0:
        assert seed is not None
        weights = weights * keep_mask(q, k, dropout_p, seed)
        v = v / (1 - dropout_p)  # smaller than the weights
    return weights @ v


def in_pieces(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: int | Tensor | None, scale: float) -> Tensor:
    """For a CPU; the arguments are validated in `attention`. Merging the heads of the result copies nothing."""
    keep = None
    if dropout_p > 0:
        assert seed is not None
        keep = keep_mask(q, k, dropout_p, seed)  # outside of the operator: compilers can make one fast loop of it
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if differentiable:  # once for both passes; a packed projection that they lay in needn't be kept then
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, _ = attention_in_pieces(q, k, v, keep, 1 / (1 - dropout_p), scale, differentiable)
    return out


@torch.library.custom_op("maskgit_kernels::attention_in_pieces", mutates_args=())
def attention_in_pieces(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, keep_scale: float, scale: float, differentiable: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass, piece by piece: c (P * M) V with P = softmax(scale Q K^T).

    Args:
        q, k, v: [B, H, N, D].
        keep: M, as `keep_mask` gives it; None without dropout.
        keep_scale: c.

    Returns:
        The output, and P for the backward pass, [B, H, Nq, Nk], empty if not `differentiable`.
    """
    out, saved = _outputs(q, k, v, keep, keep_scale, scale, differentiable)
    for piece in _pieces(q, k):
        q_part, k_part, v_part = (_matrices(x, piece) for x in (q, k, v))  # [P, N, D] each
        scores = _product(q_part, k_part.transpose(1, 2), scale)  # [P, Nq, Nk]
        weights = torch.softmax(scores, dim=-1, out=_matrices(saved, piece) if differentiable else scores)
        if keep is not None:
            weights = _kept(weights, _matrices(keep, piece), out=scores)
        place = out[piece]
        place.copy_(_product(weights, v_part, keep_scale).view(place.shape))
    return out, saved


@torch.library.custom_op("maskgit_kernels::attention_in_pieces_backward", mutates_args=())
def attention_in_pieces_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: Tensor, keep: Tensor | None, keep_scale: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward pass, piece by piece:

    dV = c (P * M)^T dO,  dP = c (dO V^T) * M,  dS = P * (dP - rowsum(dP * P)),  dQ = scale dS K,  dK = scale dS^T Q.
    """
    dq, dk, dv = _gradients(grad, q, k, v)  # contiguous, so that a piece of them can be written to
    for piece in _pieces(q, k):
        q_part, k_part, v_part, grad_part = (_matrices(x, piece) for x in (q, k, v, grad))
        weights = kept = _matrices(saved, piece)  # [P, Nq, Nk]
        if keep is not None:
            kept = _kept(weights, _matrices(keep, piece), out=torch.empty_like(weights))
        _product(kept.transpose(1, 2), grad_part, keep_scale, out=_matrices(dv, piece))
        d_weights = _product(grad_part, v_part.transpose(1, 2), keep_scale)  # [P, Nq, Nk]
        if keep is not None:  # a weight of 0 that isn't dropped has no gradient either
            torch.ops.aten.threshold_backward(d_weights, kept, 0, grad_input=d_weights)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, q.dtype, grad_input=d_weights)
        _product(d_scores, k_part, scale, out=_matrices(dq, piece))
        _product(d_scores.transpose(1, 2), q_part, scale, out=_matrices(dk, piece))
    return dq, dk, dv


@attention_in_pieces.register_fake
def _outputs(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, keep_scale: float, scale: float, differentiable: bool
) -> tuple[Tensor, Tensor]:
    return heads_merged(q), q.new_empty((*q.shape[:3], k.shape[2]) if differentiable else 0)


@attention_in_pieces_backward.register_fake
def _gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, keep, ctx.keep_scale, ctx.scale, _ = inputs
    weights = output[1]
    ctx.mark_non_differentiable(weights)
    ctx.set_materialize_grads(False)  # or PyTorch makes zeros for it
    ctx.save_for_backward(q, k, v, weights, keep)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    gradients = attention_in_pieces_backward(grad, *ctx.saved_tensors, ctx.keep_scale, ctx.scale)
    return (*gradients, None, None, None, None)


attention_in_pieces.register_autograd(_differentiate, setup_context=_save)


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


def _kept(weights: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """weights * keep, both [P, Nq, Nk]."""
    bits = _BITS[weights.element_size()]  # an integer is converted to another in half the time
    torch.mul(weights.view(bits), keep, out=out.view(bits))
    return out
