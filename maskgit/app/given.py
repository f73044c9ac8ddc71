"""What people hand in on the page: pictures, and what of them is to be filled."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskgit.app import door
from maskgit.data.carried import Carried, carry
from maskgit.data.masks import MaskWarning, load_mask, to_mask
from maskgit.data.reading import ImageError, read_as, to_rgb

_SMALLEST, _LARGEST = 512, 1024
"""The longer side of what is painted on: small pictures are enlarged, as the brush is too coarse for them, and large
ones would make it slow."""


def open_picture(path: str | None) -> Carried:
    """The picture of a file, as its result will be.

    Raises ValueError: there is none, it can't be read, or it has more than `MOST_PIXELS`.
    """
    if not path:
        raise ValueError("put in a picture first")
    return read_as(path, lambda image: carry(_small_enough(image, path)))


def _small_enough(image: Image.Image, path: str) -> Image.Image:
    try:
        check_size(*image.size)
    except ValueError as error:
        raise ImageError(path, str(error)) from None
    return image


def check_size(width: int, height: int) -> None:
    """Raise ValueError for a picture that is too large for this page."""
    if width * height > door.MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels are too many, this page takes {door.MOST_PIXELS:,}: scale it down")


def shown(picture: Image.Image) -> Image.Image:
    """What the page shows of a picture: RGB, of a size that is good for a brush."""
    view = to_rgb(picture).copy()
    view.info = {}
    larger = max(1, -(-_SMALLEST // max(view.size)))
    view = view.resize((view.width * larger, view.height * larger), Image.Resampling.NEAREST)
    view.thumbnail((_LARGEST, _LARGEST))
    return view


def hole(
    size: tuple[int, int], layers: Sequence[Image.Image], mask: str | None, invert: bool
) -> tuple[np.ndarray, list[str]]:
    """What is to be filled of a picture of this size (W, H): what has been painted, and what a mask's file says.

    Args:
        size: of the picture.
        layers: what has been painted over it, at any scale; where nothing is, they are transparent.
        mask: a file, as `load_mask` takes it.
        invert: whether the file says what is to stay instead.

    Returns:
        bool [H, W], True = fill; and what is odd about the mask, in words.

    Raises ValueError: the mask can't be read or is none of this picture, or there is nothing to fill.
    """
    found = np.zeros(size[::-1], dtype=bool)
    odd: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MaskWarning)
        if mask:
            found |= load_mask(mask, size, invert)
            odd = [f"{one.message}." for one in caught if one.category is MaskWarning]
        for layer in layers:
            opaque = np.asarray(layer.convert("RGBA"))[..., 3] > 0
            if opaque.any():
                found |= to_mask(Image.fromarray(opaque), size, name="what is painted")
    if not found.any():
        raise ValueError(" ".join(odd) or "paint over what is to be filled, or put in a mask")
    return found, odd


def box(size: tuple[int, int], left: float, top: float, width: float, height: float) -> tuple[int, int, int, int]:
    """A box in percent of a picture's size (W, H), in its pixels: left, top, right, bottom.

    Raises ValueError: nothing of it is in the picture.
    """
    across, down = size
    x, y = (max(0, round(side * share / 100)) for side, share in zip(size, (left, top), strict=True))
    right, bottom = round(across * (left + width) / 100), round(down * (top + height) / 100)
    if x >= min(right, across) or y >= min(bottom, down):
        raise ValueError(f"a box at {left:g}%, {top:g}% of {width:g}% x {height:g}%: nothing of the picture is in it")
    return x, y, min(right, across), min(bottom, down)


def number(value: float | str | None, name: str) -> float | None:
    """What a field for a number holds; None where it is empty. Raises ValueError: it is something else."""
    if value is None or value == "":
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} {str(value)[:40]!r}: must be a number") from None


def whole(value: float | str | None, name: str) -> int | None:
    """As `number`, of whole ones."""
    found = number(value, name)
    if found is not None and not found.is_integer():
        raise ValueError(f"{name} {value}: must be a whole number")
    return None if found is None else int(found)


def named(text: str, *paths: str | None) -> str:
    """A message in which files have their names instead of the paths where the page keeps them."""
    for path in filter(None, paths):
        text = text.replace(str(path), Path(path).name)
    return text
