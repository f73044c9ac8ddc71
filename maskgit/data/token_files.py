"""The files of a token shard (see `maskgit.data.tokens`): read with care, and nobody else's replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from maskgit.data.arrays import json_bytes, npy_bytes, open_array, read_json_if_any
from maskgit.data.images import DataError, ImageDataset
from maskgit.data.parts import CLAIM
from maskgit.files import write_atomically

HIDDEN = np.uint16(2**16 - 1)
"""Stands for the tokens inside a hole."""

LOOKED_THROUGH = 2**33
"""Bytes of an array up to which all tokens are compared with the codebook when it is opened: as long as reading takes.
In larger ones those of a sample are when it is read."""

CHUNK = 2**24
"""Tokens of it that are looked at together: 32 MB."""

ARRAYS = ("tokens.npy", "holes.npy", "labels.npy")
FILES = (*ARRAYS, "names.jsonl", "tokens.json", "holes.json", "images.json")

MARKS = {
    "tokens.json": "tokenizer",
    "holes.json": "tokenizer",
    f"tokens.parts/{CLAIM}": "tokenizer",
    "images.json": "class_names",
}
"""JSON files that tell a shard from other folders, at any time of its making, and a word that each has."""


def open_stored(file: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> np.memmap:
    """One of the arrays of a shard, as `open_array`. Raises DataError."""
    try:
        return open_array(file, dtype, shape)
    except (OSError, ValueError) as error:
        reason = f"not a whole token shard: {file.name}: {error}; write it again with train.py tokens"
        raise DataError(f"{file.parent}: {reason}") from error


def look_through(folder: Path, name: str, array: np.memmap, codes: int) -> None:
    """As `check_tokens` for all of an array, unless it is so large that each sample is checked when it is read."""
    tokens = array.reshape(-1)
    if tokens.nbytes <= LOOKED_THROUGH:
        for start in range(0, len(tokens), CHUNK):
            check_tokens(folder, name, tokens[start : start + CHUNK], codes)


def check_tokens(folder: Path, name: str, tokens: np.ndarray, codes: int) -> None:
    """Raise a DataError for a token uint16 that is no code; HIDDEN is one in holes.npy."""
    wrong = tokens >= codes
    if name == "holes.npy":
        wrong &= tokens != HIDDEN
    if wrong.any():
        raise DataError(
            f"{folder / name}: damaged: holds the token {tokens[wrong][0]}, and the codebook has {codes} codes; remove "
            "it and write it again with train.py tokens"
        )


def holds(file: Path, wanted: dict[str, Any], shape: tuple[int, ...], codes: int) -> bool:
    """Whether `file` is whole and was made from just these inputs."""
    if read_json_if_any(file.with_suffix(".json")) != wanted:
        return False
    try:
        look_through(file.parent, file.name, open_array(file, np.uint16, shape), codes)
    except (OSError, ValueError):  # damaged since, so it is made anew
        return False
    return True


def check_same(file: Path, wanted: dict[str, Any]) -> None:
    """Raise a DataError if an array of other inputs is there."""
    made = read_json_if_any(file.with_suffix(".json"))
    others = [name for name in wanted if made.get(name) != wanted[name]]
    if made and others and file.exists():
        raise DataError(
            f"{file}: is there already, made with other {', '.join(others)}; choose another --output, or remove "
            f"{file.parent}"
        )


def check_owner(folder: Path) -> None:
    """Raise a DataError if a file would be replaced that no shard has written."""
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if there and not any(word in read_json_if_any(folder / name) for name, word in MARKS.items()):
        raise DataError(
            f"{folder / there[0]}: is there already, and not from a token shard; choose another --output, or remove it"
        )


def describe_images(folder: Path, images: ImageDataset) -> None:
    """Write which image each column is, where that isn't written yet."""
    files = {
        folder / "labels.npy": npy_bytes(images.labels.astype(np.int64)),
        folder / "names.jsonl": "".join(json.dumps(images.name(i)) + "\n" for i in range(len(images))).encode(),
        folder / "images.json": json_bytes({"class_names": images.class_names}),
    }
    write_atomically({path: data for path, data in files.items() if not path.is_file() or path.read_bytes() != data})
