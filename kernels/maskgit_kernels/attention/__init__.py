"""Bidirectional attention."""

from maskgit_kernels.attention.op import attention, attention_packed

__all__ = ["attention", "attention_packed"]
