"""Makes Triton's interpreter (TRITON_INTERPRET=1, Triton 3.6 to 3.9) compute with bfloat16 as a GPU does.

As it comes, the interpreter holds bfloat16 as uint16, multiplies those integers in tl.dot, and cuts float32 off
instead of rounding it. That of Triton 3.6 also makes numbers of arrays in a way that NumPy has forbidden since 2.4.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from maskgit_kernels.backend import interpreting


@functools.cache
def mend() -> None:
    """Repair the interpreter, once; does nothing where kernels are compiled."""
    if not interpreting():
        return
    _mend_bfloat16()
    _mend_numbers()


def _mend_bfloat16() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    builder: Any = InterpreterBuilder
    cast, dot, fp_to_fp = builder.cast_impl, builder.create_dot, builder.create_fp_to_fp

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(_widen(np.asarray(source.data)), target.scalar)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(_round(np.asarray(source.data)), target.scalar)
        if tl.bfloat16 in kinds and kinds[0] != kinds[1]:  # by way of float32
            return cast_impl(self, cast_impl(self, source, tl.float32), target)
        return cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return cast_impl(self, source, target)
        return fp_to_fp(self, source, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, *options: Any) -> Any:
        a, b = (cast_impl(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, accumulator, *options)

    builder.cast_impl, builder.create_dot, builder.create_fp_to_fp = cast_impl, create_dot, create_fp_to_fp
    for conversion in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
        setattr(builder, f"create_{conversion}", cast_impl)


def _mend_numbers() -> None:
    """A scalar as the bound of a Python range, though it is held in an array of one dimension."""
    from triton.runtime import interpreter

    patch: Any = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_lang_tensor


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet_nan, rounded).astype(np.uint16)
