"""Opening .npy files that anything may have happened to: nothing is believed that hasn't been checked."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from maskgit.files import open_regular


def open_array(file: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> np.memmap:
    """Memory-map a .npy file, read-only. Only its header is read, so the size doesn't matter.

    Args:
        dtype: what its values must be.
        shape: what it must be; None stands for any length but 0.

    Raises:
        OSError: it can't be opened, or is no regular file.
        ValueError: it is no such array, or not all of it is there.
    """
    with open_regular(file) as opened:
        try:
            version = np.lib.format.read_magic(opened)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, columns_first, kind = read(opened)
        except Exception as error:  # damage makes NumPy's parser raise nearly anything (SyntaxError, TokenError, ...)
            reason = str(error).partition("\n")[0]  # without NumPy's advice, which is for those who trust the file
            raise ValueError(f"no .npy header: {reason or type(error).__name__}") from error
        fits = len(found) == len(shape) and all(n > 0 and n == (m or n) for n, m in zip(found, shape, strict=True))
        if kind != dtype or columns_first or not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(f"holds {kind} {list(found)}, not {np.dtype(dtype)} [{wanted}]")
        start = opened.tell()
        size, there = start + math.prod(found) * kind.itemsize, opened.seek(0, os.SEEK_END)
        if size != there:
            raise ValueError(f"has {there:,} bytes, and by its header {size:,}")
        return np.memmap(opened, kind, "r", start, found)
