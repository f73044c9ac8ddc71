"""Masks to inpaint: bool arrays [H, W], True where pixels are to be filled.

The makers give bool [H, W] with at least one pixel to fill at any image size, and the same mask for the same seed. They
raise MaskError for an image without pixels and for ranges that are empty or make no sense.
"""

from __future__ import annotations

import math
import os
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from maskgit.data.images import SUFFIXES
from maskgit.data.reading import read_as, to_rgb, turn_upright

Side = Literal["left", "right", "top", "bottom"]
SIDES: tuple[Side, ...] = ("left", "right", "top", "bottom")


# What makes a mask suspicious, and what is taken for what in it.
_BLACK, _WHITE = 32, 224  # below and from here up a channel or a gray is so, or nearly
_MIDDLE_SHARE, _MIDDLE_LEVELS = 0.2, 32  # more pixels and more grays between them: a photograph
_MOST, _MOST_TRANSPARENT = 0.95, 0.5  # more than this is filled: the wrong part? What is transparent says less.
_ONE_COLOR = 32  # a channel's range below this
_BLACK_AND_WHITE = 0.95


class MaskError(ValueError):
    """A mask that can't be made, found or used with its image."""


class MaskWarning(UserWarning):
    """A mask that may not be what is meant. The message names the file."""


# --- makers -----------------------------------------------------------------------------------------------------------


def _empty(height: int, width: int) -> np.ndarray:
    if height < 1 or width < 1:
        raise MaskError(f"a mask of {width}x{height} pixels: both sides must be at least 1")
    return np.zeros((height, width), dtype=bool)


def _length(side: int, fraction: float) -> int:
    """`fraction` of a side in whole pixels, at least one and at most all of them."""
    return min(side, max(1, round(side * fraction)))


def _check_ranges(maker: str, count: tuple[int, int], **shares: tuple[float, float]) -> None:
    if not 1 <= count[0] <= count[1]:
        raise MaskError(f"{maker}, count={count}: must be 1 <= least <= most")
    for name, (least, most) in shares.items():
        if not 0 < least <= most <= 1:
            raise MaskError(f"{maker}, {name}={(least, most)}: must be 0 < least <= most <= 1")


def center_box(height: int, width: int, fraction: float = 0.5) -> np.ndarray:
    """A centred box whose sides are `fraction` of the image's, in (0, 1]."""
    if not 0 < fraction <= 1:
        raise MaskError(f"center box of fraction {fraction}: must be above 0 and at most 1")
    mask = _empty(height, width)
    box_height, box_width = _length(height, fraction), _length(width, fraction)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    mask[top : top + box_height, left : left + box_width] = True
    return mask


def random_boxes(
    height: int,
    width: int,
    rng: np.random.Generator,
    count: tuple[int, int] = (1, 3),
    fraction: tuple[float, float] = (0.2, 0.5),
) -> np.ndarray:
    """`count` boxes (least, most) at random places, their sides a `fraction` (least, most) of the image's."""
    _check_ranges("random boxes", count, fraction=fraction)
    mask = _empty(height, width)
    for _ in range(rng.integers(count[0], count[1] + 1)):
        box_height, box_width = (_length(side, rng.uniform(*fraction)) for side in (height, width))
        top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
        mask[top : top + box_height, left : left + box_width] = True
    return mask


def _bounce(position: float, side: int) -> float:
    """A position outside [0, side) mirrored back into it."""
    position = -position if position < 0 else 2 * side - position
    return min(max(position, 0.0), side - 1.0)


def strokes(
    height: int,
    width: int,
    rng: np.random.Generator,
    count: tuple[int, int] = (1, 4),
    thickness: tuple[float, float] = (0.06, 0.16),
) -> np.ndarray:
    """`count` brush strokes (least, most) of a `thickness` (least, most) relative to the image's shorter side.

    They are wandering lines with round joints, after Yu et al. (2019), "Free-Form Image Inpainting with Gated
    Convolution", algorithm 1.
    """
    _check_ranges("strokes", count, thickness=thickness)
    mask = _empty(height, width)
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    diagonal = math.hypot(height, width)
    for _ in range(rng.integers(count[0], count[1] + 1)):
        brush = _length(min(height, width), rng.uniform(*thickness))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        mask[int(y), int(x)] = True  # even where the brush is too thin for Pillow to hit a pixel
        points = [(x, y)]
        angle = rng.uniform(0, 2 * math.pi)
        for _ in range(rng.integers(4, 9)):
            angle += rng.uniform(-1.2, 1.2)
            length = rng.uniform(0.08, 0.25) * diagonal
            x, y = x + length * math.cos(angle), y + length * math.sin(angle)
            # Bounce off the borders: strokes that are only stopped there would run along them.
            if not 0 <= x < width:
                x, angle = _bounce(x, width), math.pi - angle
            if not 0 <= y < height:
                y, angle = _bounce(y, height), -angle
            points.append((x, y))
        draw.line(points, fill=255, width=brush)
        for x, y in points:
            draw.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=255)
    return mask | (np.asarray(canvas) > 0)


def half(height: int, width: int, side: Side = "right") -> np.ndarray:
    """One half of the image (the larger one, where a side is odd)."""
    if side not in SIDES:
        raise MaskError(f"unknown side {side!r}: choose one of {', '.join(SIDES)}")
    mask = _empty(height, width)
    lines = mask.T if side in ("left", "right") else mask  # columns or rows, all of the same mask
    if side in ("left", "top"):
        lines[: (len(lines) + 1) // 2] = True
    else:
        lines[len(lines) // 2 :] = True
    return mask


MAKERS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "center": lambda height, width, rng: center_box(height, width),
    "boxes": random_boxes,
    "strokes": strokes,
    "half": lambda height, width, rng: half(height, width, SIDES[rng.integers(len(SIDES))]),
    "left": lambda height, width, rng: half(height, width, "left"),
    "right": lambda height, width, rng: half(height, width, "right"),
    "top": lambda height, width, rng: half(height, width, "top"),
    "bottom": lambda height, width, rng: half(height, width, "bottom"),
}


def make_mask(kind: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A mask by the name of its maker, one of `MAKERS` ("half" is a random one); bool [H, W].

    Raises MaskError: an unknown kind, a negative seed, an image without pixels.
    """
    if kind not in MAKERS:
        raise MaskError(f"unknown mask {kind!r}: choose one of {', '.join(MAKERS)}")
    if seed < 0:
        raise MaskError(f"mask seed {seed}: must be at least 0")
    return MAKERS[kind](height, width, np.random.default_rng(seed))


# --- files ------------------------------------------------------------------------------------------------------------


def load_mask(path: str | os.PathLike[str], size: tuple[int, int], invert: bool = False) -> np.ndarray:
    """Read the mask of an image of that size from a file: as `to_mask`, whose warnings and errors name the file.

    Raises ImageError (the file can't be read as an image) and MaskError.
    """
    return to_mask(read_as(path, turn_upright), size, invert, os.fspath(path))


def to_mask(
    image: Image.Image, size: tuple[int, int] | None = None, invert: bool = False, name: str = "mask"
) -> np.ndarray:
    """What people mean by a picture of a mask.

    - White is filled: 128 and above, as grayscale. Edges are hard: a pixel of a soft edge is filled or it isn't.
    - A mask of two values, 0 and another, is filled where the other is, however dark (0 and 1, a label's color).
    - Of a mask that is transparent in part, the strokes are filled where there are any: what is opaque and of one
      color, dark ones excepted, or the white of what is black and white. Anything else, such as a black layer or a
      photograph, has had a hole erased into it: what is transparent is filled.

    A mask of another size than `size` is accepted if it has the proportions, to half a pixel. Enlarged, it takes the
    nearest pixel; shrunk, a pixel is filled if anything that it covers was to be, so that a thin line isn't lost.

    Args:
        image: of any mode; its EXIF orientation is applied.
        size: (width, height) of the picture that it is for; None: its own.
        invert: fill the rest instead.
        name: what warnings and errors call it.

    Returns:
        bool [height, width], True = fill.

    Warns with a MaskWarning: it covers nothing or nearly everything, or looks like a photograph.

    Raises MaskError: its proportions aren't those of `size`.
    """
    mask, doubt = read_mask(turn_upright(image), size, invert, name)
    if doubt:
        warnings.warn(f"{name}: the mask {doubt}", MaskWarning, stacklevel=2)
    return mask


def read_mask(
    image: Image.Image,
    size: tuple[int, int] | None = None,
    invert: bool = False,
    name: str = "mask",
    squeeze: bool = False,
) -> tuple[np.ndarray, str | None]:
    """As `to_mask`, of an upright image, and what is suspicious about the mask instead of a warning.

    Args:
        squeeze: bring it to `size` whatever its proportions.
    """
    layer = _with_transparency(image)
    mask = _painted(image) if layer is None else _drawn(layer)
    size = size or image.size
    if not squeeze:
        _check_proportions(mask, size, name)
    mask = _resized(mask ^ invert, size)
    share = mask.mean()
    doubt = None
    if layer is None and (middle := _middle_share(image)):
        doubt = f"looks like a photograph ({middle:.0%} neither black nor white): is it swapped with the image?"
    elif share == 0:
        doubt = "covers nothing"
    elif share > (_MOST if layer is None else _MOST_TRANSPARENT):
        # Rounded down, as all of it is more than nearly all.
        doubt = f"covers {math.floor(100 * share)}% of the picture; if that is the wrong part, invert the mask"
    return mask, doubt


def _with_transparency(image: Image.Image) -> Image.Image | None:
    """RGBA of an image that is transparent in part, else None."""
    if not image.has_transparency_data or image.mode.startswith("I"):  # Pillow has no 16 bits with transparency
        return None
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return image if np.asarray(image)[..., 3].min() < 255 else None


def _painted(image: Image.Image) -> np.ndarray:
    """bool [H, W] of a picture without transparency."""
    if len(image.getbands()) == 1 and image.mode != "P":
        values = np.nan_to_num(np.asarray(image))  # as they are: of 16 bits, 1 would be rounded off
    else:
        values = np.asarray(to_rgb(image).convert("L"))
    if ((values == 0) | (values == values.max())).all():
        return values > 0
    return np.asarray(to_rgb(image).convert("L")) >= 128


def _middle_share(image: Image.Image) -> float:
    """How much of a photograph is neither black nor white; 0 for what looks like a mask."""
    gray = np.asarray(to_rgb(image).convert("L"))
    middle = gray[(gray >= _BLACK) & (gray < _WHITE)]
    share, levels = middle.size / gray.size, np.count_nonzero(np.bincount(middle))
    return share if share > _MIDDLE_SHARE and levels > _MIDDLE_LEVELS else 0.0


def _drawn(layer: Image.Image) -> np.ndarray:
    """bool [H, W] of RGBA that is transparent in part."""
    pixels = np.asarray(layer)
    opaque = pixels[..., 3] >= 128
    colors = pixels[opaque, :3]  # [n, 3]
    if not len(colors):  # an empty layer
        return opaque
    if np.ptp(colors, axis=0).max() < _ONE_COLOR:
        return opaque if colors.max() >= 128 else ~opaque
    black, white = colors.max(1) < _BLACK, colors.min(1) >= _WHITE
    if (black | white).mean() > _BLACK_AND_WHITE:
        return opaque & (pixels[..., :3].min(-1) >= 128)
    return ~opaque


def _check_proportions(mask: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Raise a MaskError if a mask, bool [H, W], doesn't have the proportions of a size (width, height)."""
    (width, height), (mask_height, mask_width) = size, mask.shape
    # Rounding the smaller one's sides to whole pixels explains a difference of half a pixel.
    factor = min(mask_width, width) / max(mask_width, width)
    if abs(min(mask_height, height) - factor * max(mask_height, height)) > 0.5 or (
        (mask_width - width) * (mask_height - height) < 0
    ):
        raise MaskError(
            f"{name}: the mask is {mask_width}x{mask_height}, the image {width}x{height}; "
            "they must have the same size, or at least the same proportions"
        )


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask, bool [H, W], at a size (width, height)."""
    if mask.shape == size[::-1]:
        return mask
    # In floats, as a single pixel's share of a large area would round to 0 in 8 bits.
    shares = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(shares) > 0


def find_mask_for(image_path: str | os.PathLike[str], mask_folder: str | os.PathLike[str]) -> Path:
    """The mask of an image in a folder of masks: the image file with the same name, whatever the suffix.

    Raises MaskError: there is no such folder, no such mask, or more than one.
    """
    folder = Path(mask_folder)
    if not folder.is_dir():
        raise MaskError(f"{folder}: no such folder of masks")
    stem = unicodedata.normalize("NFC", Path(image_path).stem)
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and unicodedata.normalize("NFC", path.stem) == stem and path.is_file()
    )
    if not found:
        raise MaskError(f"{os.fspath(image_path)}: no mask named {stem}.png (or another image suffix) in {folder}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise MaskError(f"{os.fspath(image_path)}: more than one mask in {folder}: {names}; keep one")
    return found[0]
