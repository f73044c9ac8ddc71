"""One step of iterative decoding."""

from maskgit_kernels.decode_step.op import decode_step
from maskgit_kernels.decode_step.settings import check_draw

__all__ = ["check_draw", "decode_step"]
