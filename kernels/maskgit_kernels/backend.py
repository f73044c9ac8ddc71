"""Which implementation of the operators runs.

`torch` is the fastest PyTorch way to the same function on the device at hand, `triton` the Triton kernels, `auto` the
better of the two that is there. The environment variable MASKGIT_KERNELS sets it for a process, `use` overrides that,
and an operator's own `backend` argument overrides both.
"""

from __future__ import annotations

import os

BACKENDS = ("auto", "triton", "torch")

_requested = os.environ.get("MASKGIT_KERNELS", "auto")


def use(backend: str) -> None:
    """Choose the implementation for the rest of the process: "auto", "triton" or "torch".

    Raises:
        ValueError: no such implementation.
        RuntimeError: "triton", where it cannot run.
    """
    global _requested
    resolve(backend)
    _requested = backend


def resolve(backend: str | None = None) -> str:
    """The implementation that `backend` (by default what `use` or MASKGIT_KERNELS asked for) stands for.

    Raises:
        ValueError: no such implementation.
        RuntimeError: "triton", where it cannot run: never a silent fallback.
    """
    wanted = _requested if backend is None else backend
    if wanted not in BACKENDS:
        source = "MASKGIT_KERNELS" if backend is None else "backend"
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {wanted!r}")
    if wanted == "triton":
        raise RuntimeError(
            "backend 'triton' was asked for, but this version of maskgit_kernels has no Triton kernels: "
            "use 'auto' or 'torch'"
        )
    return "torch"
