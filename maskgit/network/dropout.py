"""Dropout whose noise holds up neither a CPU nor what starts a GPU's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskgit_kernels.attention.reference import drops_in_256

# Of SplitMix64, as int64: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB.
_STEP, _MULTIPLIER_A, _MULTIPLIER_B = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Dropout(nn.Dropout):
    """nn.Dropout, faster to draw on a CPU.

    PyTorch makes a random number for each element there, one after the other: a tenth of the time of a training step,
    and more in compiled code. Here 64 bits do for eight elements: a byte decides, as in attention.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype: an element becomes 0 with probability p, else is divided by 1 - p.

        On a CPU p is rounded to a multiple of 1/256 (255/256 at most), unless that were 0.
        """
        drops = drops_in_256(self.p)
        if not self.training or not drops or self.p == 1 or x.device.type != "cpu":
            return super().forward(x)
        count = x.numel()
        noise = random_int64(torch.randint(2**62, ()), (count + 7) // 8).view(torch.uint8)[:count].view(x.shape)
        return x * (noise.ge_(drops) * torch.full((), 1 / (1 - drops / 256), dtype=x.dtype))


def random_int64(seed: Tensor, count: int) -> Tensor:
    """Random bits in operations that all threads share and compilers make one loop of.

    They are SplitMix64's (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): a counter
    in steps of 0x9E3779B97F4A7C15, its bits mixed.

    The same seed, int64 [], gives the same bits: the generator starts at `seed` steps. On the CPU, int64 [count].
    """
    # In this order: TorchInductor takes products of an arange for indices, in which an overflow may do anything.
    x = torch.arange(1, count + 1).add_(seed).mul_(_STEP)
    _xor_with_upper(x, 30).mul_(_MULTIPLIER_A)
    _xor_with_upper(x, 27).mul_(_MULTIPLIER_B)
    return _xor_with_upper(x, 31)


def _xor_with_upper(x: Tensor, shift: int) -> Tensor:
    """x ^ (x >> shift), in place; zeros come in from above, where int64 would repeat its sign."""
    return x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (64 - shift) - 1))


def layer_seeds(count: int, p: float, device: torch.device) -> Sequence[Tensor | None]:
    """A seed of attention dropout for each layer, int64 [], all drawn at once; None each for a `p` of 0.

    They lie 16 bytes apart: Triton compiles a kernel anew for pointers that aren't multiples of 16.
    """
    return torch.randint(2**62, (count, 2), device=device)[:, 0].unbind() if p else [None] * count
