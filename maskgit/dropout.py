"""Dropout whose noise doesn't hold up a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """nn.Dropout, faster to draw on a CPU.

    PyTorch makes a random number for each element there, one after the other: a tenth of the time of a training step,
    and more in compiled code. Here 64 bits do for four elements.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype: an element becomes 0 with probability p (to 2**-16), else is divided by 1 - p."""
        if not self.training or not 0 < self.p < 1 or x.device.type != "cpu":
            return super().forward(x)
        return x * dropout_mask(torch.randint(2**62, ()), self.p, x.shape, x.dtype)


@torch.library.custom_op("maskgit::dropout_mask", mutates_args=())
def dropout_mask(seed: Tensor, p: float, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """0 with probability p, to 2**-16, else 1 / (1 - p): an operator, which compilers leave as it is.

    Args:
        seed: int64 []. The same seed, the same mask.
        p: in (0, 1).

    Returns:
        A tensor on the CPU of this shape and dtype.
    """
    mask = torch.empty(shape, dtype=dtype)
    words = np.random.SFC64(int(seed)).random_raw((mask.numel() + 3) // 4)  # of 64 bits
    numbers = torch.from_numpy(words.view(np.int16))[: mask.numel()].view(mask.shape)
    threshold = round(p * 2**16) - 2**15
    if threshold == 2**15:  # no int16
        return mask.zero_()
    if dtype.itemsize != numbers.itemsize:
        return torch.ge(numbers, threshold, out=mask).mul_(1 / (1 - p))
    # Without a conversion, which from a bool would take longer than all the rest.
    scale = torch.full((), 1 / (1 - p), dtype=dtype).view(torch.int16)
    return torch.mul(numbers.ge_(threshold), scale, out=mask.view(torch.int16)).view(dtype)


@dropout_mask.register_fake
def _(seed: Tensor, p: float, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
