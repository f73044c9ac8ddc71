"""The LM head and one step of iterative decoding in one."""

from maskgit_kernels.head_sample.op import head_sample

__all__ = ["head_sample"]
