"""Masks: files of them for pictures of any size, folders of them, and made ones."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskgit.data.images import ImageError
from maskgit.data.masks import MAKERS, MaskError, find_mask_for, load_mask, make_mask

from .bending import TEXTS, bend_bytes, pipe, put_odd
from .cases import Case, Group, expect
from .pictures import SUFFIXES, png, random_file, random_png
from .seeds import Seeds

SIDES = (1, 2, 5, 16, 20, 24, 40)


def load(size: tuple[int, int], invert: bool = False) -> Case:
    """Read the mask x.png for a picture of that size."""

    def check(mask: Any) -> None:
        expect(isinstance(mask, np.ndarray) and mask.dtype == bool, "a mask that isn't of bool")
        expect(mask.shape == size[::-1], "a mask of another size than its picture")

    return Case(lambda: load_mask(Path("x.png"), size, invert), (ImageError, MaskError), check)


def make(kind: str, height: int, width: int, seed: int) -> Case:
    def check(mask: np.ndarray) -> None:
        expect(mask.dtype == bool and mask.shape == (height, width), "a mask of another size than its picture")

    return Case(lambda: make_mask(kind, height, width, seed), (MaskError,), check)


def named(data: Callable[[], bytes], size: tuple[int, int] = (16, 16)) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        Path("x.png").write_bytes(data())
        return load(size)

    return known


def _pipe(seeds: Seeds) -> Case:
    pipe(Path("x.png"))
    return load((16, 16))


KNOWN: dict[str, Callable[[Seeds], Case]] = {
    "F1 177 megapixels": named(lambda: png(13300, 13300, 1, 0)),
    "F10 pipe": _pipe,
    "picture without pixels": lambda seeds: make("center", 0, 16, 0),
    "strokes without pixels": lambda seeds: make("strokes", 16, 0, 0),
    "16 bits": named(lambda: png(16, 16, 16, 0)),
    "palette that is too short": named(lambda: png(16, 16, 8, 3)),
    "other proportions": named(lambda: png(16, 17)),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    how = rng.random()
    if how < 0.2:
        sides = [rng.choice((*SIDES, 0, -1)) for _ in range(2)]
        return make(
            rng.choice((*MAKERS, "", "Center", "\x1b[31m")), *sides, rng.choice((0, 1, -1, 2**63, 2**64, 10**30))
        )
    if how < 0.35:
        folder = Path("masks")
        folder.mkdir()
        name = rng.choice([text for text in TEXTS if 0 < len(text) < 200 and "/" not in text and "\ud800" not in text])
        for suffix in rng.sample(SUFFIXES, 2):
            path = folder / f"{name}{suffix}"
            path.write_bytes(seeds.png(Image.new("L", (16, 16))))
            if rng.random() < 0.5:
                put_odd(rng, path)
        picture = rng.choice((f"{name}.png", f"{name}.jpg.png", "..", "", os.fspath(folder)))
        return Case(
            lambda: find_mask_for(picture, folder),
            (MaskError,),
            lambda path: expect(path.is_file(), "a mask that isn't a file"),
        )
    data = random_png(rng) if how < 0.5 else random_file(rng)
    Path("x.png").write_bytes(bend_bytes(rng, data) if rng.random() < 0.4 else data)
    if how > 0.97:
        put_odd(rng, Path("x.png"))
    sizes = ((1, 1), (1, 40), (33, 2), (16, 16), (24, 20), (48, 40), (4000, 1), (12, 10))
    return load(rng.choice(sizes), rng.random() < 0.5)


GROUP = Group("masks", KNOWN, random_case)
