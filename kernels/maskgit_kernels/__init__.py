"""Operators for masked generative transformers: attention, a decoding step with or without the LM head, and the noise.

Needs only PyTorch, and is useful to other MaskGIT code by itself.
"""

from maskgit_kernels.attention import attention
from maskgit_kernels.decode_step import check_draw, decode_step
from maskgit_kernels.head_sample import head_sample

__all__ = ["attention", "check_draw", "decode_step", "head_sample"]
