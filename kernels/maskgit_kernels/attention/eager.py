"""Attention in plain PyTorch: matrix product, softmax, matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskgit_kernels.attention.reference import dropout_bytes, drops_in_256, keep_mask
from maskgit_kernels.attention.triton_op import heads_merged

# Weights that a CPU works on at a time: few enough to stay in the caches, many enough that calls cost little.
_PIECE_BYTES = 8 * 2**20

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
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    seeds = None if seed is None else torch.as_tensor(seed, dtype=torch.int64)
    out, _ = attention_in_pieces(q, k, v, seeds, dropout_p, scale, differentiable)
    return out


@torch.library.custom_op("maskgit_kernels::attention_in_pieces", mutates_args=())
def attention_in_pieces(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, dropout_p: float, scale: float, differentiable: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass, piece by piece.

    Returns:
        The output, and what the backward pass needs: the weights P, softmax(q k^T * scale), [B, H, Nq, Nk]. They are
        never negative, so those that dropout drops are marked by the sign. Empty if not `differentiable`.
    """
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    out, marked = _outputs(q, k, v, seed, dropout_p, scale, differentiable)
    for piece in _pieces(batch, heads, queries * keys * q.element_size()):
        q_part, k_part, v_part = (_matrices(x, piece) for x in (q, k, v))  # [P, N, D] each
        scores = _product(q_part, k_part.transpose(1, 2), scale)  # [P, Nq, Nk]
        weights = _matrices(marked, piece) if differentiable else torch.empty_like(scores)
        torch.softmax(scores, dim=-1, out=weights)
        if dropout_p > 0:
            assert seed is not None
            images, some_heads = piece
            _mark_dropped(weights, dropout_p, seed, first_pair=images.start * heads + some_heads.start)
            weights = torch.clamp_min(weights, 0, out=scores)
        _put(_product(weights, v_part, 1 / (1 - dropout_p)), out, piece)
    return out, marked


@torch.library.custom_op("maskgit_kernels::attention_in_pieces_backward", mutates_args=())
def attention_in_pieces_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, marked: Tensor, dropout_p: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward pass. With M what dropout keeps and c = 1 / (1 - dropout_p):

    dV = c (P * M)^T dO,  dP = c (dO V^T) * M,  dS = P * (dP - rowsum(dP * P)),  dQ = scale dS K,  dK = scale dS^T Q.
    """
    keep_scale = 1 / (1 - dropout_p)
    dq, dk, dv = (heads_merged(x) for x in (q, k, v))
    for piece in _pieces(q.shape[0], q.shape[1], q.shape[2] * k.shape[2] * q.element_size()):
        q_part, k_part, v_part, grad_part = (_matrices(x, piece) for x in (q, k, v, grad))
        weights = signed = _matrices(marked, piece)  # [P, Nq, Nk]
        if dropout_p > 0:
            weights = signed.clamp_min(0)
        _put(_product(weights.transpose(1, 2), grad_part, keep_scale), dv, piece)
        d_weights = _product(grad_part, v_part.transpose(1, 2), keep_scale)  # [P, Nq, Nk]
        if dropout_p > 0:
            torch.ops.aten.threshold_backward(d_weights, signed, 0, grad_input=d_weights)
            torch.abs(signed, out=weights)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, q.dtype, grad_input=d_weights)
        _put(_product(d_scores, k_part, scale), dq, piece)
        _put(_product(d_scores.transpose(1, 2), q_part, scale), dk, piece)
    return dq, dk, dv


@attention_in_pieces.register_fake
def _outputs(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, dropout_p: float, scale: float, differentiable: bool
) -> tuple[Tensor, Tensor]:
    return heads_merged(q), q.new_empty((*q.shape[:3], k.shape[2]) if differentiable else 0)


@attention_in_pieces_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return heads_merged(q), heads_merged(k), heads_merged(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, ctx.dropout_p, ctx.scale, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = attention_in_pieces_backward(grad, *ctx.saved_tensors, ctx.dropout_p, ctx.scale)
    return (*gradients, None, None, None, None)


attention_in_pieces.register_autograd(_differentiate, setup_context=_save)


def _pieces(batch: int, heads: int, head_bytes: int) -> Iterator[Piece]:
    image_bytes = heads * head_bytes
    if image_bytes <= _PIECE_BYTES:
        images = _PIECE_BYTES // max(1, image_bytes)
        yield from ((slice(i, min(i + images, batch)), slice(0, heads)) for i in range(0, batch, images))
    else:
        some = -(-heads // round(image_bytes / _PIECE_BYTES))
        yield from (
            (slice(i, i + 1), slice(h, min(h + some, heads))) for i in range(batch) for h in range(0, heads, some)
        )


def _matrices(x: Tensor, piece: Piece) -> Tensor:
    """A piece of [B, H, ...] as [P, ...], in one run of memory: a view of x if it lies there so."""
    return x[piece].flatten(0, 1).contiguous()


def _put(matrices: Tensor, x: Tensor, piece: Piece) -> None:
    """Copy [P, N, D] to a piece of x [B, H, N, D]."""
    place = x[piece]
    place.copy_(matrices.view(place.shape))


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor a b for [P, M, K] and [P, K, N]."""
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


def _mark_dropped(weights: Tensor, dropout_p: float, seed: int | Tensor, first_pair: int) -> None:
    """Set the signs of what dropout drops of [P, Nq, Nk], whose pairs of an image and a head have numbers in a row."""
    count, queries, keys = weights.shape
    noise = dropout_bytes(seed, range(first_pair, first_pair + count), queries, keys, weights.device)
    bits = weights.view(_BITS[weights.element_size()])
    dropped = noise.lt_(drops_in_256(dropout_p)).to(bits.dtype)
    bits.bitwise_or_(dropped.bitwise_left_shift_(8 * weights.element_size() - 1))
