"""The LM head and the loss of masked visual token modeling in one."""

from maskgit_kernels.head_loss.op import head_loss

__all__ = ["head_loss"]
