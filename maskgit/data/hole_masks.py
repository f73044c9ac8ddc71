"""Masks of one's own that holes for training are drawn from: a folder of files, kept as bits at the model's size."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgit.canvas.holes import cells_with_holes
from maskgit.console import printable
from maskgit.data.images import SUFFIXES, DataError, find_images
from maskgit.data.masks import read_mask
from maskgit.data.reading import ImageError, read_as, turn_upright

MOST_BYTES = 2**29
"""Of all masks together, which every process that tokenizes holds: a million of 64x64, 65,536 of 256x256."""


@dataclass(frozen=True)
class HoleMasks:
    """Masks to draw holes from; goes to other processes by pickle."""

    packed: np.ndarray
    """uint8 [n, ceil(size * size / 8)], a bit for each pixel."""
    size: int
    """Side of the masks in pixels."""

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, number: int) -> np.ndarray:
        """bool [size, size], True = hidden."""
        return np.unpackbits(self.packed[number], count=self.size**2).reshape(self.size, self.size).astype(bool)

    def key(self) -> str:
        """SHA-256 of what they hide, in their order, which decides which of them is drawn."""
        return hashlib.sha256(b"%d " % self.size + self.packed.tobytes()).hexdigest()


def read_hole_masks(folder: Path, size: int, grid: int) -> HoleMasks:
    """Read the masks below a folder, at any depth, as `maskgit.data.masks.to_mask` does, in the order of their paths.

    Each is squeezed to the square as inpainting squeezes a picture with its mask: all of it counts, whatever its
    proportions, and a pixel is hidden if anything that it covers is. Masks that can't be read, that hide nothing, or
    that leave no token known are named in a warning and left out; those that may not be what is meant are named too.

    Args:
        size, grid: side of the model's square in pixels and in tokens.

    Raises DataError: the folder is missing, has too many masks, or none that can be used.
    """
    paths = find_images(folder)
    if not paths:
        raise DataError(f"{folder}: no masks in this folder ({', '.join(sorted(SUFFIXES))}, at any depth)")
    most = MOST_BYTES // -(-(size**2) // 8)
    if len(paths) > most:
        raise DataError(
            f"{folder}: has {len(paths):,} masks; at most {most:,} of {size}x{size} pixels are taken: leave some out"
        )

    def read(path: Path) -> tuple[np.ndarray | None, str | None]:
        """The bits of a mask, or None; and what is wrong with it, if anything is."""
        try:
            mask, doubt = read_mask(read_as(path, turn_upright), (size, size), squeeze=True)
        except ImageError as error:
            return None, error.reason
        if not mask.any():
            return None, "hides nothing"
        if cells_with_holes(mask, grid, grid).all():
            return None, f"leaves none of the {grid}x{grid} tokens of {size}x{size} pixels known"
        return np.packbits(mask), doubt and f"the mask {doubt}"

    with ThreadPoolExecutor() as pool:
        results = tqdm(pool.map(read, paths), total=len(paths), desc="reading masks", unit="mask", disable=None)
        found = [(path, bits, why) for path, (bits, why) in zip(paths, results, strict=True)]
    left_out = [(path, why) for path, bits, why in found if bits is None]
    _warn(left_out, f"{folder}: left out {len(left_out)} of {len(paths)} masks")
    packed = [bits for _, bits, _ in found if bits is not None]
    if not packed:
        raise DataError(
            f"{folder}: none of its {len(paths)} masks can be used at {size}x{size} pixels; add some that are white "
            "where a part of a picture is to be filled"
        )
    doubtful = [(path, why) for path, bits, why in found if bits is not None and why]
    _warn(doubtful, f"{folder}: {len(doubtful)} of {len(paths)} masks may not be what is meant")
    return HoleMasks(np.stack(packed), size)


def _warn(masks: Iterable[tuple[Path, str]], what: str) -> None:
    if lines := [printable(f"{path}: {why}") for path, why in masks]:
        warnings.warn("\n  ".join([f"{what}:", *lines]), stacklevel=3)
