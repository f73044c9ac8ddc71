"""Rounding to tf32, for kernels whose tensor cores multiply float32.

Tensor cores read the upper 19 bits of a float32 and take no notice of the rest, so an operand that is handed to them as
it is gets cut off: on average twice the error of rounding, and always towards zero. PyTorch's own kernels round first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels.backend import interpreting

_INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def round_to_tf32(x):
    """float32 rounded to the nearest tf32, ties away from zero, as the PTX instruction cvt.rna.tf32.f32 does it."""
    if _INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return tl.where(x == x, rounded, x)  # NaN's own bits must not be added to
    else:
        # The second operand is not read. It keeps the compiler from moving the rounding behind the load of a tensor
        # core's operand from shared memory, where every warp would round all of what the warps share.
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r,r", [x, tl.program_id(0)], dtype=tl.float32, is_pure=True, pack=1
        )
