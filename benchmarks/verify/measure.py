"""What the checks share: how a result is measured, and what is done to the machine meanwhile."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""By what multiplies: "fp32" and "tf32" are float32 without and with tensor cores."""


@dataclass(frozen=True)
class Measurement:
    """One line of the table: an error of ours, beside PyTorch's own and the most that ours may be."""

    operator: str
    case: str
    error: float
    reference_error: float
    limit: float
    note: str = ""

    @property
    def passes(self) -> bool:
        return self.error <= self.limit  # not so NaN


def rms(x: Tensor, y: Tensor) -> float:
    """Root mean square of the difference; NaN if any element of either is."""
    return (x.double() - y.double()).square().mean().sqrt().item()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch.empty and its kin return holds NaN, or an integer's highest value, until it is written to."""
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def multiplying(arithmetic: str) -> Iterator[None]:
    """float32 is multiplied in tf32 if that is the `arithmetic`, by PyTorch and by our kernels, and exactly if not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rounded_to_tf32(x: Tensor) -> Tensor:
    """float32 to the nearest tf32, ties away from zero, as a GPU's cvt.rna.tf32.f32 does it."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


class RoundingToTf32(TorchDispatchMode):
    """PyTorch's matrix products of float32 round their factors to tf32.

    Told to use tf32, a GPU's library still multiplies small matrices exactly, and a CPU's all.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = tuple(rounded_to_tf32(x) if x.dtype == torch.float32 else x for x in args)
        return function(*args, **(kwargs or {}))


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic of how often each of V things was drawn, both [V]; infinite if an impossible one was."""
    expected = counts.sum() * probabilities.double()
    possible = expected > 0
    if counts[~possible].any():
        return math.inf
    return ((counts - expected) ** 2 / expected)[possible].sum().item()


def chi_square_limit(freedom: int) -> float:
    """What the statistic exceeds once in a million times (Wilson & Hilferty's approximation of the quantile)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 4.75 * math.sqrt(spread)) ** 3
