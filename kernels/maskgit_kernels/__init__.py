"""Operators for masked generative transformers: attention, one decoding step, and the noise behind them.

Needs only PyTorch, and is useful to other MaskGIT code by itself.
"""

from maskgit_kernels.attention import attention
from maskgit_kernels.decode_step import check_draw, decode_step
from maskgit_kernels.head_sample import head_sample

__all__ = ["attention", "check_draw", "decode_step", "head_sample"]
