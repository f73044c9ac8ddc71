"""Dropout whose noise doesn't hold up a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from maskgit_kernels.attention.reference import drops_in_256


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
        return x * dropout_mask(torch.randint(2**62, ()), drops, x.shape, x.dtype)


@torch.library.custom_op("maskgit::dropout_mask", mutates_args=())
def dropout_mask(seed: Tensor, drops: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """0 with probability p = drops / 256, else 1 / (1 - p): an operator, which compilers leave as it is.

    Args:
        seed: int64 []. The same seed, the same mask.
        drops: in [1, 255].

    Returns:
        A tensor on the CPU of this shape and dtype.
    """
    count = math.prod(shape)
    words = np.random.SFC64(int(seed)).random_raw((count + 7) // 8)  # of 64 bits
    kept = torch.from_numpy(words.view(np.uint8))[:count].view(tuple(shape)).ge_(drops)
    scale = torch.full((), 1 / (1 - drops / 256), dtype=dtype)
    if dtype.itemsize > 2:
        return kept.to(dtype).mul_(scale)
    # By the bits of the scale: that is exact, and an integer is converted in half the time.
    return kept.to(torch.int16).mul_(scale.view(torch.int16)).view(dtype)


@dropout_mask.register_fake
def _(seed: Tensor, drops: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
