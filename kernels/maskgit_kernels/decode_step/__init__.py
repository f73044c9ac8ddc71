"""One step of iterative decoding."""

from maskgit_kernels.decode_step.op import check_draw, decode_step

__all__ = ["check_draw", "decode_step"]
