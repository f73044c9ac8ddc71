"""Masks: files of them for pictures of any size, folders of them, and made ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskgit.data import ImageError
from maskgit.data.masks import MAKERS, MaskError, find_mask_for, load_mask, make_mask

from .bending import NAMES, bend_bytes, put_odd
from .cases import Case, Group, Known, expect, with_file
from .pictures import PATH, SUFFIXES, png, random_file, random_png
from .seeds import Seeds, as_png


def _fits(mask: Any, size: tuple[int, int]) -> None:
    expect(isinstance(mask, np.ndarray) and mask.dtype == bool, "a mask that isn't of bool")
    expect(mask.shape == size[::-1], "a mask of another size than its picture")


def load(seeds: Seeds, size: tuple[int, int] = (16, 16), invert: bool = False) -> Case:
    """Read a mask for a picture of that size."""
    return Case(lambda: load_mask(PATH, size, invert), (ImageError, MaskError), lambda mask: _fits(mask, size))


def make(kind: str, height: int, width: int, seed: int = 0) -> Case:
    return Case(lambda: make_mask(kind, height, width, seed), (MaskError,), lambda mask: _fits(mask, (width, height)))


def find(rng: random.Random) -> Case:
    """Look for a mask by its picture's name among odd files."""
    folder, name = Path("masks"), rng.choice(NAMES)
    folder.mkdir()
    for suffix in rng.sample(SUFFIXES, 2):
        path = folder / f"{name}{suffix}"
        path.write_bytes(as_png(Image.new("L", (16, 16))))
        if rng.random() < 0.5:
            put_odd(rng, path)
    picture = rng.choice((f"{name}.png", f"{name}.jpg.png", "..", "", "masks"))
    return Case(lambda: find_mask_for(picture, folder), (MaskError,), lambda path: expect(path.is_file(), "no file"))


KNOWN: Known = {
    "F1 177 megapixels": with_file(load, "x.png", lambda _: png(13300, 13300, 1, 0)),
    "F10 pipe": with_file(load, "x.png", None),
    "picture without pixels": lambda seeds: make("center", 0, 16),
    "strokes without pixels": lambda seeds: make("strokes", 16, 0),
    "16 bits": with_file(load, "x.png", png(16, 16, 16, 0)),
    "palette that is too short": with_file(load, "x.png", png(16, 16, 8, 3)),
    "other proportions": with_file(load, "x.png", png(16, 17)),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    how = rng.random()
    if how < 0.2:
        sides = [rng.choice((0, -1, 1, 2, 5, 16, 24)) for _ in range(2)]
        return make(rng.choice((*MAKERS, "", "Center", "\x1b[31m")), *sides, rng.choice((0, -1, 2**63, 2**64, 10**30)))
    if how < 0.35:
        return find(rng)
    data = random_png(rng) if how < 0.5 else random_file(rng)
    PATH.write_bytes(bend_bytes(rng, data) if rng.random() < 0.4 else data)
    if how > 0.97:
        put_odd(rng, PATH)
    sizes = ((1, 1), (1, 40), (33, 2), (16, 16), (24, 20), (48, 40), (4000, 1), (12, 10))
    return load(seeds, rng.choice(sizes), rng.random() < 0.5)


GROUP = Group("masks", KNOWN, random_case)
