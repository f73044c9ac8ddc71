"""The public `attention` and `attention_packed`: validation, and the choice between implementations."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit_kernels.attention.eager import in_pieces, written_out
from maskgit_kernels.attention.reference import drops_in_256
from maskgit_kernels.attention.tiling import HEAD_DIMS
from maskgit_kernels.attention.triton_op import attention_forward, parts
from maskgit_kernels.backend import resolve
from maskgit_kernels.common import math_for

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Bidirectional multi-head attention, softmax(q k^T * scale) v, without a causal mask.

    Any strides are read in place. Merging the heads afterwards, `out.transpose(1, 2).flatten(2)`, needs no copy. For
    queries, keys and values that lie in one tensor, `attention_packed` has the gradient in one tensor too. Under
    autocast the inputs are first cast to its dtype, as `scaled_dot_product_attention` does.

    Triton's kernels take float32, float16 and bfloat16 and a D of 16, 32, 48, ... 128; "auto" computes everything else
    with PyTorch, and so it does exact float32 without dropout, where that is faster. They multiply float32 as PyTorch
    is set to (`torch.set_float32_matmul_precision`); for tf32, every factor is rounded to the nearest. They give the
    same bits every time, and have no second derivatives. With MASKGIT_AUTOTUNE=1 in the environment they are tuned when
    they first meet a size, which must not be while a CUDA graph is captured.

    Args:
        q: [B, H, Nq, D], float32, float16, bfloat16 or float64.
        k, v: [B, H, Nk, D] of q's dtype and device; Nk may differ from Nq.
        dropout_p: probability in [0, 1) with which each attention weight is dropped, taken as the nearest multiple of
            1/256 below 1: a random byte decides. What is kept is scaled by exactly what that leaves.
        seed: int64 (an int, or a tensor of one element, best on q's device) that decides which weights are dropped,
            needed when dropout_p > 0. The same seed drops the same weights on every device and with every backend; give
            every layer and every training step its own. The PyTorch path spells the generator out, so dropout is slow
            there.
        scale: factor on the scores; D ** -0.5 by default.
        backend: "auto", "triton" or "torch" for this call; see `maskgit_kernels.backend`.

    Returns:
        [B, H, Nq, D] in q's dtype.

    Raises:
        ValueError: a shape, dtype, device or probability that does not fit; a missing seed.
        RuntimeError: `backend` is "triton", where it cannot run, or with a D or dtype that its kernels do not take.
    """
    return _attention(q, k, v, dropout_p, seed, scale, backend).transpose(1, 2)


def attention_packed(
    qkv: Tensor,
    *,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """`attention` of one sequence to itself, from a packed projection to merged heads.

    It equals `attention(*qkv.transpose(1, 3).unbind(2)).transpose(1, 2)`, but for the backward pass: that makes three
    gradients, which autograd then copies into one. Here they are written there at once, but by SDPA, and by Triton's
    kernels for a `scale` that isn't positive.

    Args:
        qkv: queries, keys and values, [B, N, 3, H, D] with any strides; dtypes as for `attention`.
        dropout_p, seed, scale, backend: see `attention`.

    Returns:
        [B, N, H, D] in qkv's dtype, contiguous.

    Raises: as `attention`.
    """
    return _attention(qkv, None, None, dropout_p, seed, scale, backend).contiguous()


def _attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    dropout_p: float,
    seed: int | Tensor | None,
    scale: float | None,
    backend: str | None,
) -> Tensor:
    """[B, Nq, H, D], of q, k and v or of a packed q."""
    device_type = q.device.type
    autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)  # which raises for "meta"
    if autocast:
        dtype = torch.get_autocast_dtype(device_type)
        q = q.to(dtype)
        k, v = (None if x is None else x.to(dtype) for x in (k, v))
    if k is None or v is None:
        _check_packed(q)
    else:
        _check_parts(q, k, v)
    _check(q.dtype, dropout_p, seed)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dropout_p = drops_in_256(dropout_p) / 256
    # On an H200 exact products take Triton's kernels 2 to 2.7 times as long as SDPA (docs/benchmarks.md).
    slower = dropout_p == 0 and q.dtype == torch.float32 and _exact_float32()
    if resolve(backend, q.device, _why_not_triton(q.dtype, q.shape[-1]), slower) == "triton":
        return _triton(q, k, v, dropout_p, seed, scale)
    with torch.autocast(device_type, enabled=False) if autocast else contextlib.nullcontext():
        # On a CPU, SDPA in bfloat16 converts to float32 and misses the matrix instructions. Written out it takes 0.4
        # times as long forward and backward (batch 32, 8 heads of 48, 256 tokens); in float32 SDPA is the faster one.
        if dropout_p > 0 or (device_type == "cpu" and q.dtype == torch.bfloat16):
            return (in_pieces if device_type == "cpu" else written_out)(q, k, v, dropout_p, seed, scale)
        if k is None or v is None:
            q, k, v = (x.transpose(1, 2) for x in q.unbind(2))  # this way round autograd's gradient is contiguous
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def _triton(
    q: Tensor, k: Tensor | None, v: Tensor | None, dropout_p: float, seed: int | Tensor | None, scale: float
) -> Tensor:
    if scale <= 0:  # the kernels find the largest score before they scale
        q, k, v = parts(q, k, v)
        q, scale = q * scale, 1.0
    seeds = None
    if dropout_p > 0:
        assert seed is not None
        # Filled, not copied from the host: a copy waits for the GPU, and a CUDA graph can't hold it.
        seeds = seed.to(q.device) if isinstance(seed, Tensor) else q.new_full((), seed, dtype=torch.int64)
    out, _ = attention_forward(q, k, v, seeds, dropout_p, scale)
    return out


def _why_not_triton(dtype: torch.dtype, head_dim: int) -> str | None:
    """What, if anything, the kernels can't take."""
    if dtype == torch.float64:
        return "it has no kernel for float64"
    if head_dim not in HEAD_DIMS:
        return f"D must be a multiple of 16 up to {HEAD_DIMS[-1]}, not {head_dim}"
    return None


def _exact_float32() -> bool:
    return math_for(torch.float32) == "ieee"


# See `backend.why_not_triton`. Compilers see for themselves when the setting changes, and compile anew.
_exact_float32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_packed(qkv: Tensor) -> None:
    if qkv.dim() != 5 or qkv.shape[2] != 3 or qkv.shape[1] == 0:
        raise ValueError(f"qkv must be [B, N, 3, H, D] with at least one token, got shape {tuple(qkv.shape)}")


def _check_parts(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 4:
        raise ValueError(f"q must be [B, H, Nq, D], got shape {tuple(q.shape)}")
    batch, heads, _, head_dim = q.shape
    for name, x in (("k", k), ("v", v)):
        if x.dim() != 4 or x.shape[:2] != (batch, heads) or x.shape[3] != head_dim or x.shape[2] != k.shape[2]:
            raise ValueError(
                f"{name} must be [{batch}, {heads}, Nk, {head_dim}] to fit q {tuple(q.shape)} and have as many tokens "
                f"as k {tuple(k.shape)}, got {tuple(x.shape)}"
            )
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}")
    if k.shape[2] == 0:
        raise ValueError(f"k must hold at least one token to attend to, got shape {tuple(k.shape)}")


def _check(dtype: torch.dtype, dropout_p: float, seed: int | Tensor | None) -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"attention takes float32, float16, bfloat16 and float64, got {dtype}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if dropout_p > 0 and seed is None:
        raise ValueError(f"dropout_p = {dropout_p} needs a seed, so that the same weights are dropped when replayed")
    if isinstance(seed, Tensor) and (seed.numel() != 1 or seed.dtype != torch.int64):
        raise ValueError(f"seed must hold one int64, got {seed.dtype} of shape {tuple(seed.shape)}")
