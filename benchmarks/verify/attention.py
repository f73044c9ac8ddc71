"""Checks of attention: output and gradients against the reference in float64, beside plain PyTorch's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.verify.measure import DTYPES, Measurement, RoundingToTf32, multiplying, poisoned, rms
from maskgit_kernels.attention.op import attention
from maskgit_kernels.attention.reference import attention_reference, drops_in_256, keep_mask

SEED = 2**40 + 3
FLOOR = 2e-7  # what rounding alone may leave of an output where plain PyTorch is exact


def check_attention(
    head_dim: int,
    arithmetic: str,
    dropout_p: float,
    pairs: tuple[int, int],
    lengths: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Iterator[Measurement]:
    """The worst of some lengths, for the output and each gradient.

    Args:
        pairs: images and heads. lengths: of queries and keys.
    """
    worst: dict[str, tuple[float, Measurement]] = {}
    for queries, keys in lengths:
        case = f"{arithmetic}, head_dim {head_dim}, dropout {dropout_p:g}, {queries} x {keys} tokens"
        for result, error, reference_error in _errors(pairs, queries, keys, head_dim, arithmetic, dropout_p, device):
            operator = "attention forward" if result == "out" else "attention backward"
            floor = FLOOR if result in ("out", "dv") else _cancelled(head_dim)
            limit, note = 2 * reference_error + floor, f"worst of {len(lengths)} lengths"
            found = Measurement(operator, f"{result}, {case}", error, reference_error, limit, note)
            badness = error / limit if error == error else float("inf")
            if result not in worst or badness > worst[result][0]:
                worst[result] = badness, found
    yield from (found for _, found in worst.values())


def _cancelled(head_dim: int) -> float:
    """What rounding leaves of dq and dk where they are 0, as with a single key.

    Each is a difference of two sums of D products of standard normal numbers, about D ** 0.5 in size, whose roundings
    of half a unit add up as D ** 0.5; then comes the scale, D ** -0.5. (Plain PyTorch takes both sums in one way.)
    """
    return 2**-24 * head_dim**0.5


def _errors(
    pairs: tuple[int, int],
    queries: int,
    keys: int,
    head_dim: int,
    arithmetic: str,
    dropout_p: float,
    device: torch.device,
) -> Iterator[tuple[str, float, float]]:
    """Name, our error and PyTorch's of the output and the gradients."""
    batch, heads = pairs
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    tensors = [  # views of a model's memory: [B, H, N, D] over [B, N, H, D]
        torch.randn(batch, n, heads, head_dim, generator=generator).to(device, DTYPES[arithmetic]).transpose(1, 2)
        for n in (queries, keys, keys, queries)
    ]
    options: dict[str, Any] = dict(dropout_p=dropout_p, seed=SEED)
    with multiplying(arithmetic):
        with poisoned():
            ours = _with_gradients(functools.partial(attention, backend="triton", **options), tensors)
    with RoundingToTf32() if arithmetic == "tf32" else contextlib.nullcontext():
        plain = _with_gradients(functools.partial(_plain, **options), tensors)
    truth = _with_gradients(functools.partial(attention_reference, **options), [x.double() for x in tensors])
    for name, x, y, exact in zip(("out", "dq", "dk", "dv"), ours, plain, truth, strict=True):
        yield name, rms(x, exact), rms(y, exact)


def _with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """[out, dq, dk, dv] of function(q, k, v), given q, k, v and the gradient of the output."""
    *leaves, grad = tensors
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = function(*leaves)
    with torch.autograd.set_multithreading_enabled(False):  # what is set for this thread holds backward too
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _plain(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: int) -> Tensor:
    """Matrix product, softmax, matrix product, in the inputs' precision."""
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    if dropout_p > 0:
        weights = weights * keep_mask(q, k, dropout_p, seed) / (1 - drops_in_256(dropout_p) / 256)
    return weights @ v
