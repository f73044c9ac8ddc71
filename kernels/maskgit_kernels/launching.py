"""What launchers of kernels share: how a kernel is started, and whole numbers, with which Triton takes its time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Compiled kernels with their constexpr arguments, by everything that Triton goes by to find them.
_started: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def start(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor | None, ...],
    strides: tuple[int, ...],
    scalars: tuple[int | float, ...],
    constants: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
    max_registers: int | None = None,
) -> None:
    """Run a kernel on the current device, or in Triton's interpreter. Its arguments are these, in this order.

    To find which compiled form of a kernel a call needs takes Triton longer than anything else that the host has to do.
    So what it found is kept.

    Args:
        tensors: the first not None.
        strides: integers for whose value the kernel may be compiled.
        scalars: floats, and integers that the kernel names in do_not_specialize.
        constants: its constexpr arguments, in the same order at every call.
        max_registers: per thread; None leaves them to the compiler.
    """
    assert tensors[0] is not None
    key = (
        kernel.__name__,
        tensors[0].device,
        *strides,
        *constants.values(),
        num_warps,
        num_stages,
        max_registers,
        *[x is None or (x.dtype, x.data_ptr() % 16 == 0) for x in tensors],
        *[x >= 2**31 for x in scalars if isinstance(x, int)],
    )
    arguments = (*tensors, *strides, *scalars)
    if (kept := _started.get(key)) is not None:
        compiled, values = kept
        compiled[grid](*arguments, *values)
        return
    options = {"num_warps": num_warps, "num_stages": num_stages, "maxnreg": max_registers}
    compiled = kernel[grid](*arguments, **constants, **options)
    if compiled is not None:  # None is what the interpreter gives
        _started[key] = compiled, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])


def cdiv(number: int, by: int) -> int:
    """number / by, rounded up."""
    return -(-number // by)


def next_power_of_2(number: int) -> int:
    """The smallest that is no less, from 1."""
    return 1 << (number - 1).bit_length()
