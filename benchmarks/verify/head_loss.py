"""Checks of head_loss: loss, hits and gradients against the reference in float64, beside plain PyTorch's."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.verify.measure import DTYPES, Measurement, RoundingToTf32, multiplying, poisoned, rms
from maskgit_kernels.head_loss.op import head_loss
from maskgit_kernels.head_loss.reference import head_loss_reference

FLOOR = 3e-7  # of the size of a result: what rounding it may leave where plain PyTorch is exact
_GRADIENTS = ("hidden", "weight", "bias")


def check_head_loss(
    arithmetic: str,
    size: tuple[int, int],
    num_codes: int,
    width: int,
    bias: str,
    label_smoothing: float,
    counts: tuple[int, ...],
    device: torch.device,
) -> Iterator[Measurement]:
    """The worst of some numbers of counted positions, for the loss, the hits and each gradient.

    Args:
        size: images and positions. bias: "none", "code" or "position".
    """
    worst: dict[str, tuple[float, Measurement]] = {}
    batch, length = size
    case = f"{arithmetic}, V={num_codes}, D={width}, B={batch}, N={length}, bias: {bias}, smoothing {label_smoothing:g}"
    for count in counts:
        given = _problem(arithmetic, size, num_codes, width, bias, count)
        for name, error, reference_error, limit in _errors(given, arithmetic, label_smoothing, device):
            note = f"worst of {len(counts)} numbers of rows"
            found = Measurement("head_loss", f"{name}, {case}", error, reference_error, limit, note)
            badness = 0.0 if found.passes and not limit else error / limit if limit and error == error else math.inf
            if name not in worst or badness > worst[name][0]:
                worst[name] = badness, found
    yield from (found for _, found in worst.values())


def _problem(
    arithmetic: str, size: tuple[int, int], num_codes: int, width: int, bias: str, count: int
) -> dict[str, Any]:
    """What isn't counted holds NaN, and targets beyond the codes."""
    batch, length = size
    generator = torch.Generator().manual_seed(count)
    order = torch.rand(batch * length, generator=generator).argsort()
    counted = (order < count).view(size)
    targets = torch.randint(num_codes, size, generator=generator)
    biases = torch.randn(length, num_codes, generator=generator)
    hidden = torch.randn(*size, width, generator=generator).masked_fill(~counted[..., None], torch.nan)
    return dict(
        hidden=hidden.to(DTYPES[arithmetic]),
        weight=(3 * torch.randn(num_codes, width, generator=generator) / width**0.5).to(DTYPES[arithmetic]),
        bias={"none": None, "code": biases[0], "position": biases}[bias],
        targets=targets.masked_fill(~counted, num_codes),
        counted=counted,
    )


def _errors(
    given: dict[str, Any], arithmetic: str, label_smoothing: float, device: torch.device
) -> Iterator[tuple[str, float, float, float]]:
    """Name, our error, PyTorch's and the limit of each result."""
    there: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in given.items()}
    options: dict[str, Any] = dict(label_smoothing=label_smoothing)
    with multiplying(arithmetic):
        with poisoned():
            ours = _with_gradients(functools.partial(head_loss, backend="triton", **options), there)
    with RoundingToTf32() if arithmetic == "tf32" else contextlib.nullcontext():
        plain = _with_gradients(functools.partial(_plain, **options), there)
    in_float64: dict[str, Any] = {
        name: x.double() if x is not None and x.is_floating_point() else x for name, x in there.items()
    }
    truth = _with_gradients(functools.partial(head_loss_reference, **options), in_float64)
    exact_losses = _plain(**in_float64, **options)[0]
    count = len(exact_losses)
    # As many rounding errors as there are positions add up, in PyTorch's sum perhaps to nothing.
    loss_error = rms(plain[0], exact_losses) * count**0.5 if count else 0.0
    yield "loss", rms(ours[0], truth[0]), loss_error, 2 * loss_error + FLOOR * float(truth[0])

    logits = _plain_logits(**in_float64)  # [count, V]
    rounding = float((_plain_logits(**there).double() - logits).abs().max()) if count else 0.0
    best = logits.topk(min(2, logits.shape[1])).values
    ties = int((best[:, 0] - best[:, -1] <= 2 * rounding).sum()) * (logits.shape[1] > 1)
    yield "hits", abs(int(ours[1] - truth[1])), abs(int(plain[1] - truth[1])), float(ties)
    for name, x, y, exact in zip(_gradients(given), ours[2:], plain[2:], truth[2:], strict=True):
        limit = 2 * rms(y, exact) + FLOOR * rms(exact, torch.zeros_like(exact))
        yield f"d{name}", rms(x, exact), rms(y, exact), limit


def _gradients(given: dict[str, Any]) -> list[str]:
    return [name for name in _GRADIENTS if given[name] is not None]


def _with_gradients(function: Callable[..., tuple[Tensor, Tensor]], given: dict[str, Any]) -> list[Tensor]:
    """[loss, hits, gradients of hidden, weight and bias] of function(**given), if the loss counts a quarter."""
    leaves = {name: given[name].detach().clone().requires_grad_() for name in _gradients(given)}
    loss, hits = function(**given | leaves)
    with torch.autograd.set_multithreading_enabled(False):  # what is set for this thread holds backward too
        return [loss.detach(), hits, *torch.autograd.grad(loss.sum() * 0.25, list(leaves.values()))]


def _plain_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, counted: Tensor, **_: Any) -> Tensor:
    """Of the counted positions, [count, V]; a product in the inputs' precision."""
    logits = (hidden[counted] @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    if bias is None:
        return logits
    return logits + (bias[counted.nonzero()[:, 1]] if bias.dim() == 2 else bias)


def _plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, counted: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The losses of the counted positions, [count], and the hits."""
    logits = _plain_logits(hidden, weight, bias, counted)
    losses = F.cross_entropy(logits, targets[counted], reduction="none", label_smoothing=label_smoothing)
    return losses, (logits.argmax(-1) == targets[counted]).sum()
