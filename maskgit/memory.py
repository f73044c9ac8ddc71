"""Memory: how much one picture may take, and that a long CPU job keeps what it has used once."""

from __future__ import annotations

import ctypes
import os
import platform

MOST_PIXELS = 2**26
"""Of a picture that is read: a few kilobytes can hold more than fits into memory. Filling holes takes about 50 bytes a
pixel."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, to use it again: for programs that run on a CPU for long.

    PyTorch frees the tensors of a step and allocates the same ones anew at the next. glibc gives the large ones back to
    the system in between, which then has to clear every page before it hands it out again. Other C libraries are left
    as they are, and so is glibc where its environment variables (MALLOC_..., GLIBC_TUNABLES) say something already.
    """
    told = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if told or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
