"""Checkpoint files of any system as a flat table of tensors, without running anything that is in them."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's magic number, pickled
MSGPACK_MAPS = {**dict.fromkeys(range(0x81, 0x90), 1), 0xDE: 3, 0xDF: 5}  # first byte of a map: where its first key is
MSGPACK_STRINGS = tuple(bytes([byte]) for byte in (*range(0xA0, 0xC0), 0xD9))  # first bytes of a key
FLAX_ARRAY, FLAX_SCALAR = 1, 3  # msgpack extension types of flax.serialization
MAX_DEPTH = 16  # of tables in tables; a flax transformer has 6

IGNORED_CLASSES = (
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "argparse.Namespace",
)
"""Classes that trainers leave in checkpoints beside the weights. None of them is imported: an empty class stands in."""


class ConvertError(ValueError):
    """A checkpoint that can't be converted; the message says why."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a PyTorch, safetensors or flax msgpack file.

    Args:
        path: told by its first bytes, not by its name. PyTorch files are read with weights_only, and mapped into memory
            where possible.

    Returns:
        Tensors by name; the names of tables within tables are joined by dots. What isn't a tensor is left out.

    Raises:
        ConvertError: no such file, none of these formats, damaged, or holding more than data.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY_START))
    except IsADirectoryError:
        raise ConvertError("a folder, not a checkpoint file") from None
    except OSError as error:
        raise ConvertError(f"can't be read: {error.strerror}") from error
    if not start:
        raise ConvertError("an empty file")
    if start.startswith(ZIP_START) or start == LEGACY_START:
        content = _read_torch(path, mapped=start.startswith(ZIP_START))
    elif start[0] in MSGPACK_MAPS and start[MSGPACK_MAPS[start[0]] :][:1] in MSGPACK_STRINGS:
        content = _read_msgpack(path)
    elif start[8:10] == b'{"':
        content = _read_safetensors(path)
    elif start[0] == 0x80:
        raise ConvertError("a bare pickle: it may hold a program, and no checkpoint is stored that way")
    else:
        raise ConvertError("not a checkpoint: neither a PyTorch file, nor safetensors, nor flax msgpack")
    return dict(_flatten(content, "", frozenset()))


def _flatten(content: Any, name: str, above: frozenset[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        if id(content) in above or len(above) == MAX_DEPTH:
            raise ConvertError(f"damaged: tables within tables without end at {name[:80]!r}")
        for key, value in content.items():
            yield from _flatten(value, f"{name}.{key}" if name else str(key), above | {id(content)})


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def _read_torch(path: Path, mapped: bool) -> Any:
    stand_ins: list[Any] = []
    for name in IGNORED_CLASSES:
        module, _, cls = name.rpartition(".")
        stand_ins.append(type(cls, (dict,), {"__module__": module}))
    try:
        if mapped:
            _check_archive(path)
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ConvertError(f"damaged, or not a checkpoint: {_first_line(error)}") from error
        raise ConvertError(
            f"refused: loading it would import and run {found[1]}. A checkpoint needs nothing but tensors; if you made "
            "this file, save the model's state_dict() instead of the model"
        ) from error
    except ConvertError:
        raise
    except Exception as error:  # torch.load promises nothing about what it raises for broken files
        raise ConvertError(f"damaged or cut short: {_first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """PyTorch doesn't compress; read in place, compressed weights would be noise."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ConvertError("a compressed zip archive, which PyTorch never writes: unpack it and pack it without")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- safetensors ------------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise ConvertError(f"damaged or cut short: {_first_line(error)}") from error


# --- flax -------------------------------------------------------------------------------------------------------------


def _read_msgpack(path: Path) -> Any:
    try:
        import msgpack
    except ImportError:
        raise ConvertError(
            'a flax checkpoint, which takes the msgpack package to read: pip install "maskgit-inpaint[convert]"'
        ) from None
    try:
        return msgpack.unpackb(path.read_bytes(), ext_hook=_flax_value, raw=False, strict_map_key=False)
    except ConvertError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, OSError) as error:
        raise ConvertError(f"damaged, cut short or not flax msgpack: {_first_line(error)}") from error


def _flax_value(kind: int, data: bytes) -> Tensor | None:
    """The tensor of an extension value of flax.serialization; None for its other kinds of value."""
    import msgpack

    if kind not in (FLAX_ARRAY, FLAX_SCALAR):
        return None
    shape, name, values = msgpack.unpackb(data, raw=False)
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ConvertError(f"damaged: an array of type {name!r} and shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(values):
        raise ConvertError(f"damaged: {len(values)} bytes for a {name} array of shape {list(shape)}")
    if not values:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape)
