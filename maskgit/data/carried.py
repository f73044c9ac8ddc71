"""What a picture carries besides the colors that a model sees, and how a result comes to carry it too.

The model takes 8-bit RGB. The result is the original with the fill put in: known pixels keep their bits, depth and
alpha, the picture its color profile and EXIF. What can't be kept is said.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from maskgit.data.reading import read_as, turn_upright

_EXACT = ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA")  # modes whose colors need no rounding below

_GAMMA = 1 / 2.2  # what a picture without profile is shown with

# Of EXIF, what describes the file that it was in, its rows, tiles and thumbnail; a TIFF has all of its own there.
_LAYOUT = frozenset(
    (*range(254, 267), *range(273, 282), *range(284, 293), 317, *range(320, 348), *range(512, 533), 700, 34377, 34675)
)


class Carried(NamedTuple):
    """A picture as its result will be."""

    image: Image.Image
    """Upright, in mode L, LA, RGB, RGBA or I;16, all of which a PNG can hold. `info` has "icc_profile" and "exif"
    (without orientation and thumbnail) where there are any, and nothing else."""
    lost: tuple[str, ...]
    """What it doesn't have any more, in words."""


def carry(image: Image.Image) -> Carried:
    """An image of any mode, turned upright as its EXIF orientation says. The image itself stays as it is.

    Raises ValueError: a mode whose colors Pillow can't convert (LAB).
    """
    lost: list[str] = []
    if _has_deep_colors(image):  # which only an image that isn't loaded yet can tell
        lost.append("16 bits a channel, of which Pillow reads 8")
    upright = turn_upright(image, lost)
    if _has_frames(image):
        lost.append(f"all frames or pages but number {image.tell() + 1}")
    if upright.mode.startswith("I") or upright.mode == "F":
        converted = _to_sixteen_bits(upright, image.format == "PNG", lost)
    else:
        converted = _to_eight_bits(upright, lost)

    profile = image.info.get("icc_profile")
    info: dict[str | tuple[int, int], bytes] = {}  # Pillow's type
    space = b"GRAY" if converted.mode in ("L", "LA", "I;16") else b"RGB "
    if profile and profile[16:20] == space:  # as its header says
        info["icc_profile"] = profile
    elif profile:
        lost.append(f"its color profile, which isn't for {space.decode().strip()}")
    elif "srgb" not in image.info and abs(image.info.get("gamma", _GAMMA) - _GAMMA) > 0.01:  # a PNG's
        lost.append(f"its gamma of {image.info['gamma']:g}")
    try:
        if exif := _exif(image):
            info["exif"] = exif
    except Exception:  # damaged data makes Pillow raise nearly anything
        lost.append("its EXIF data, which is damaged")
    converted.info = info
    return Carried(converted, tuple(lost))


def read_picture(path: str | os.PathLike[str]) -> Carried:
    """As `maskgit.data.reading.read_image`, with what the picture carries."""
    return read_as(path, carry)


def turn_mask(mask: np.ndarray, stored: tuple[int, int], orientation: int, upright: tuple[int, int]) -> np.ndarray:
    """A mask, bool [h, w], of the size (width, height) in which a picture was stored, where the upright one has
    another, turned as the EXIF orientation says; any other mask as it is."""
    if stored == upright or mask.shape != stored[::-1]:
        return mask
    turned = Image.fromarray(mask)  # of mode "1", and back
    turned.getexif()[ExifTags.Base.Orientation] = orientation
    return np.array(turn_upright(turned))


def fill_in(
    picture: Image.Image, fill: Image.Image, hole: np.ndarray | None = None, corner: tuple[int, int] = (0, 0)
) -> Image.Image:
    """`picture` with its hole filled, or with a fill around it; in its mode, and with what it carries.

    Args:
        picture: as `carry` gives it, of size (W, H).
        fill: RGB. What is taken from it becomes opaque; grey where `picture` is.
        hole: bool [H, W], True where the fill is wanted; None: outside `picture` only.
        corner: left and top of `picture` in `fill`, whose size the result has.
    """
    if hole is None:
        pixels = _in_mode(fill, picture.mode)
        left, top = corner
        pixels[top : top + picture.height, left : left + picture.width] = np.asarray(picture)
    else:
        pixels = np.array(picture)
        rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
        if len(rows):  # only around the hole, as the picture may be large
            left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
            inside = pixels[top:bottom, left:right]
            wanted = hole[top:bottom, left:right]
            inside[wanted] = _in_mode(fill.crop((left, top, right, bottom)), picture.mode)[wanted]
    result = Image.fromarray(pixels)
    result.info = dict(picture.info)
    return result


# --- the parts --------------------------------------------------------------------------------------------------------


def _has_deep_colors(image: Image.Image) -> bool:
    if image.mode.startswith("I"):
        return False
    decoders = [(tile[0], tile[3]) for tile in getattr(image, "tile", ())]
    return any(";16" in str(how) or (name.startswith("ppm") and how[-1] > 255) for name, how in decoders)


def _has_frames(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # the second of them is damaged
        return True


def _to_eight_bits(image: Image.Image, lost: list[str]) -> Image.Image:
    """L, LA, RGB or RGBA."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        mode += "A"
    if image.mode not in _EXACT:
        lost.append(f"the exact colors of {image.mode}, which become {mode}")
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


def _to_sixteen_bits(image: Image.Image, is_png: bool, lost: list[str]) -> Image.Image:
    """I;16 (or L: see `to_rgb`) from grey of more than 8 bits."""
    if "transparency" in image.info:
        lost.append("which grey is transparent")
    values = np.asarray(image)
    if image.mode == "F":
        lost.append("floating-point values, which become 16 bits of [0, 1]")
        values = (np.nan_to_num(values).clip(0, 1) * 65535).round()
    elif values.min() < 0 or values.max() > 65535:
        lost.append("values outside of 16 bits")
        values = values.clip(0, 65535)
    # Older Pillows open a PNG of 16 bits as "I".
    depth = np.uint8 if image.mode == "I" and values.max() <= 255 and not is_png else np.uint16
    return Image.fromarray(values.astype(depth))


def _in_mode(image: Image.Image, mode: str) -> np.ndarray:
    """The pixels of an RGB image as those of another mode, opaque."""
    if mode == "I;16":
        return np.asarray(image.convert("L")).astype(np.uint16) * 257
    return np.array(image.convert(mode))


def _exif(image: Image.Image) -> bytes:
    """The EXIF data without what describes how the pixels were stored, nor the thumbnail, which shows the original."""
    exif, kept = image.getexif(), Image.Exif()
    for tag, value in exif.items():
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            value = dict(exif.get_ifd(tag))
            if ExifTags.IFD.Interop in value:
                value[ExifTags.IFD.Interop] = exif.get_ifd(ExifTags.IFD.Interop)
        if tag not in _LAYOUT:
            kept[tag] = value
    return kept.tobytes() if len(kept) else b""
