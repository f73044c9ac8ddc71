"""Bidirectional attention."""

from maskgit_kernels.attention.op import attention

__all__ = ["attention"]
