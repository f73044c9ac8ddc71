"""How fast the machine copies and multiplies, measured in the run that uses the figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import Clock
from maskgit.network.copies import can_pack

ROOT = Path(__file__).resolve().parent.parent

# (rows, inner, columns) of the product that stands for what the hardware can do: on a CPU the first MLP product of
# eight images of the lab model, which is as fast as any larger one there; a GPU needs more to fill it.
CPU_PRODUCT = (2048, 768, 3072)
GPU_PRODUCT = (8192, 8192, 8192)
QUICK_PRODUCT = (64, 64, 64)

# Bytes of the buffers that are copied. A CPU's caches make small copies much faster, so a working set is held against
# a copy of its own size; a GPU's L2 is flushed before every call.
CPU_COPIES = (2**18, 2**21, 2**24, 2**27)
GPU_COPIES = (2**29,)
QUICK_COPIES = (2**16,)


@dataclass
class Peaks:
    """Measured rates."""

    copies: dict[int, float] = field(default_factory=dict)
    """Bytes of the buffer -> bytes per second, read and written together."""
    products: dict[str, float] = field(default_factory=dict)
    """ "float32 torch.mm" -> floating-point operations per second."""

    def product(self, dtype: torch.dtype) -> float:
        """The fastest measured matrix product of a dtype, in FLOP/s."""
        return max(rate for name, rate in self.products.items() if name.startswith(f"{short(dtype)} "))

    def floor(self, bytes_moved: float, flops: float, dtype: torch.dtype) -> float:
        """Seconds that the hardware needs at least, if every byte moves once and products run at the measured peak."""
        fitting = [size for size in self.copies if 2 * size >= bytes_moved]
        copy = self.copies[min(fitting) if fitting else max(self.copies)]
        return max(bytes_moved / copy, flops / self.product(dtype) if flops else 0.0)


def short(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def label(dtype: torch.dtype) -> str:
    """As in the names of comparisons: "bf16", "float32"."""
    return short(dtype).replace("bfloat", "bf")


def measure_peaks(device: torch.device, clock: Clock, quick: bool) -> Peaks:
    """Copies and products one after the other, each its fastest of several rounds."""
    peaks = Peaks()
    for size in QUICK_COPIES if quick else CPU_COPIES if device.type == "cpu" else GPU_COPIES:
        source = torch.randint(256, (size,), dtype=torch.uint8, device=device)  # zeros may be copied faster
        target = torch.empty_like(source)
        peaks.copies[size] = 2 * size / _fastest(clock, lambda s=source, t=target: t.copy_(s))  # type: ignore[misc]
    rows, inner, columns = shape = product_shape(device, quick)
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cpu" else (torch.float32, torch.float16, torch.bfloat16)
    for dtype in dtypes:
        for name, product in products(shape, dtype, device).items():
            peaks.products[name] = 2 * rows * inner * columns / _fastest(clock, product)
    return peaks


def product_shape(device: torch.device, quick: bool) -> tuple[int, int, int]:
    """Of the product whose speed stands for the hardware's."""
    return QUICK_PRODUCT if quick else CPU_PRODUCT if device.type == "cpu" else GPU_PRODUCT


def products(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """The ways to multiply [rows, inner] by [inner, columns]: torch.mm, and on a CPU oneDNN with packed weights."""
    rows, inner, columns = shape
    x = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(columns, inner, device=device).to(dtype)
    ways: dict[str, Callable[[], Tensor]] = {f"{short(dtype)} torch.mm": lambda: torch.mm(x, weight.t())}
    if device.type == "cpu" and can_pack():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        name = f"{short(dtype)} oneDNN packed"
        ways[name] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        expected = F.linear(x, weight).float()
        # How the packed product is called is PyTorch's own affair; a wrong product must not become a ceiling.
        if not torch.allclose(ways[name]().float(), expected, rtol=2**-6, atol=1e-2 * inner**0.5):
            raise RuntimeError(f"{name} of {shape} is not the product of its inputs")
    return ways


def _fastest(clock: Clock, run: Callable[[], object], rounds: int = 7) -> float:
    run()
    pace = clock.pace(clock.time(run), pause=0.0)
    return min(clock.time(run, pace.calls) for _ in range(rounds))
