"""Dropout whose noise doesn't hold up a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskgit_kernels.philox import STREAM_DROPOUT, halves_at_least


class Dropout(nn.Dropout):
    """nn.Dropout, with noise from Philox on a CPU.

    PyTorch's own generator makes one number after the other there, on one core: a tenth of the time of a training step.
    Compiled code has a faster one again.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim], each element 0 with probability p (to 2**-16), else times 1 / (1 - p)."""
        if not self.training or not 0 < self.p < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        rows = torch.arange(x.numel() // x.shape[-1])
        seed = torch.randint(2**62, ())
        kept = halves_at_least(round(self.p * 2**16), seed, rows, 0, STREAM_DROPOUT, x.shape[-1], x.dtype)
        return x * kept.view(x.shape).div_(1 - self.p)
