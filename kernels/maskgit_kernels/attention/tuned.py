"""Tilings that were timed on a GPU, and are used on GPUs of the same name without timing anything again.

The table lies beside this file. `python -m benchmarks.tune` in the repository makes a new one; what is not in it is
`tiling.fixed`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from maskgit_kernels.attention.tiling import Tiling

TABLE = Path(__file__).with_name("tuned.json")

# By device name, a row for each kernel and size: what `key` returns, under these names, then "tiling" (fields of
# Tiling), and what was measured.
Table = dict[str, list[dict[str, Any]]]
_KEY = ("kernel", "head_dim", "math", "dropout", "length")


def bucket(length: int) -> int:
    """Lengths that share a tiling, by the shortest: multiples of 64, from 512 on four to each power of two."""
    blocks = length // 64
    coarse = max(0, blocks.bit_length() - 3)
    return (blocks >> coarse << coarse) * 64


def key(kernel: str, head_dim: int, math: str, dropout: bool, length: int) -> dict[str, Any]:
    """What a row is found by; see `tiling.fixed` for the arguments."""
    return dict(zip(_KEY, (kernel, head_dim, math, dropout, bucket(length)), strict=True))


def load(file: Path) -> Table:
    """A table from its file."""
    return json.loads(file.read_text())


def lookup(device_name: str, sought: dict[str, Any]) -> Tiling | None:
    """The tiling that was the fastest on GPUs of this name for a `key`, if that was tried."""
    found = _index(TABLE).get((device_name, *sought.values()))
    return None if found is None else Tiling(**found)


@functools.cache
def _index(file: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {
        (device_name, *(row[name] for name in _KEY)): row["tiling"]
        for device_name, rows in load(file).items()
        for row in rows
    }
