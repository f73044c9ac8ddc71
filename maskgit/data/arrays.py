"""Opening .npy and .json files that anything may have happened to: nothing is believed that hasn't been checked."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from maskgit.console import first_line
from maskgit.data.images import DataError
from maskgit.files import open_regular


def open_array(file: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> np.memmap:
    """Memory-map a .npy file that must be of a dtype and a shape, in which None stands for any length but 0.

    It is read-only. Only its header is read, so the size doesn't matter.

    Raises:
        OSError: it can't be opened, or is no regular file.
        ValueError: it is no such array, or not all of it is there.
    """
    with open_regular(file) as opened:  # np.load would wait for a pipe's writer
        there = opened.seek(0, os.SEEK_END)
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except OSError:
        raise
    except Exception as error:  # damage makes NumPy raise nearly anything (SyntaxError, TokenError, ...)
        raise ValueError(f"no whole .npy file: {first_line(error)}") from error
    found = array.shape
    fits = len(found) == len(shape) and all(n > 0 and n == (m or n) for n, m in zip(found, shape, strict=True))
    if array.dtype != dtype or not array.flags.c_contiguous or not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"holds {array.dtype} {list(found)}, not {np.dtype(dtype)} [{wanted}]")
    if (size := array.offset + array.nbytes) != there:
        raise ValueError(f"has {there:,} bytes, and by its header {size:,}")
    return array


def npy_bytes(values: np.ndarray) -> bytes:
    """An array as a .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def read_json(path: Path) -> dict[str, Any]:
    """One of the JSON files of a token shard. Raises DataError."""
    try:
        with open_regular(path) as file:
            content = json.load(file)
    except FileNotFoundError:
        where = "is not there" if path.parent.is_dir() else f"is not there: there is no folder {path.parent}"
        raise DataError(f"{path} {where}; write a token shard with train.py tokens") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: can't be read: {error}; remove it and write it again with train.py tokens") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; remove it and write it again with train.py tokens")
    return content


def read_json_if_any(path: Path) -> dict[str, Any]:
    """As `read_json`; empty where there is no such file, or none that could be read."""
    try:
        return read_json(path)
    except DataError:
        return {}


def json_bytes(content: dict[str, Any]) -> bytes:
    """A JSON file that people can read."""
    return (json.dumps(content, indent=2) + "\n").encode()
