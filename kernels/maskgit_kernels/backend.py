"""Which implementation of the operators runs.

`torch` is the fastest PyTorch way to the same function on the device at hand, `triton` the Triton kernels, `auto` the
better of the two that is there: Triton on an NVIDIA GPU of compute capability 8.0 or later, PyTorch elsewhere. The
environment variable MASKGIT_KERNELS sets it for a process, `use` overrides that, and an operator's own `backend`
argument overrides both.

With TRITON_INTERPRET=1 in the environment, `triton` also runs on a CPU, through Triton's interpreter: slow, and meant
for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

BACKENDS = ("auto", "triton", "torch")
OLDEST_CAPABILITY = 80  # see `capability_of`; Ampere, the first with bfloat16 matrix instructions

_requested = os.environ.get("MASKGIT_KERNELS", "auto")


def use(backend: str) -> None:
    """Choose the implementation for the rest of the process: "auto", "triton" or "torch".

    Raises:
        ValueError: no such implementation.
        RuntimeError: "triton", where it can't run.
    """
    global _requested
    resolve(backend)
    _requested = backend


def resolve(
    backend: str | None = None,
    device: torch.device | str | None = None,
    unsupported: str | None = None,
    slower: bool = False,
) -> str:
    """The implementation, "torch" or "triton", that `backend` stands for.

    Args:
        backend: by default what `use` or MASKGIT_KERNELS asked for.
        device: where the tensors are; None asks for the GPU if there is one, else for the CPU.
        unsupported: why the Triton kernel can't take the arguments at hand, if it can't: "auto" then means PyTorch.
        slower: whether it is slower than PyTorch's with them: "auto" then means PyTorch too.

    Raises:
        ValueError: no such implementation.
        RuntimeError: "triton", where it can't run: never a silent fallback.
    """
    wanted = _requested if backend is None else backend
    if wanted not in BACKENDS:
        source = "MASKGIT_KERNELS" if backend is None else "backend"
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {wanted!r}")
    if wanted == "torch":
        return wanted
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if wanted == "auto":
        better = device.type == "cuda" and not unsupported and not slower and why_not_triton(device) is None
        return "triton" if better else "torch"
    reason = why_not_triton(device) or unsupported
    if reason is not None:
        raise RuntimeError(f"backend 'triton' was asked for, but {reason}: use 'auto' or 'torch'")
    return wanted


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def why_not_triton(device: torch.device) -> str | None:
    """Why the Triton kernels can't run on `device`, or None if they can."""
    return _why_not_triton(device, interpreting())


# For torch.compile it is a constant: older versions of it can't trace what is asked here. This is the mark that
# torch.compiler.assume_constant_result leaves; calling that would import Triton along with the compiler.
why_not_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache  # asked at every call of an operator, and looking for a package takes longer than launching a kernel
def _why_not_triton(device: torch.device, interpreted: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreted:
        return None
    if device.type != "cuda" or torch.version.hip or not torch.cuda.is_available():
        return (
            f"it needs an NVIDIA GPU, and the tensors are on {device.type} "
            "(TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
        )
    capability = capability_of(device)
    if capability < OLDEST_CAPABILITY:
        oldest, this = OLDEST_CAPABILITY / 10, capability / 10
        return f"it needs a GPU of compute capability {oldest} or later, and {device} has {this}"
    return None


@functools.cache
def capability_of(device: torch.device) -> int:
    """Ten times the compute capability; where kernels are interpreted, that of the oldest GPU that will do."""
    if interpreting():
        return OLDEST_CAPABILITY
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
