"""Reading an image file, of any format and mode, as it is shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskgit.data.png import png_ends_early
from maskgit.files import open_regular
from maskgit.memory import MOST_PIXELS

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""What is read, by Pillow's names. Not all that Pillow can: some formats (EPS) would start other programs."""


class ImageError(ValueError):
    """A file that can't be read as an image. The message names the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[Any, ...]:  # so that it can come out of another process
        return ImageError, (self.path, self.reason)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> RGB: transparency on white, 16-bit values by their high byte, floats as [0, 1].

    An image that is RGB is returned as it is.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling. Mode "I" is how older Pillows open 16-bit files; an
        # image that uses only the lowest 8 bits of it is taken as 8-bit.
        values = np.asarray(image).clip(0, 2**16 - 1).astype(np.uint32)
        if image.mode != "I" or values.max() > 255:
            values = (values + 128) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image)).clip(0, 1)
        return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def turn_upright(image: Image.Image, lost: list[str] | None = None) -> Image.Image:
    """A copy, turned as the EXIF orientation says; where EXIF data is damaged, as it is stored, and `lost` says so."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged data makes Pillow raise nearly anything
        if lost is not None:
            lost.append("its orientation, as its EXIF data is damaged")
        return image.copy()  # which raises whatever else is wrong


def to_shown(image: Image.Image) -> Image.Image:
    """As it is shown: the EXIF orientation applied, RGB."""
    return to_rgb(turn_upright(image))


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file of any common format (`FORMATS`) and mode as RGB.

    The EXIF orientation is applied; transparent images are composited on white; of animations the first frame is taken.

    Raises:
        ImageError: the file is missing, is no image, is truncated or damaged, or has more than `MOST_PIXELS`.
    """
    return read_as(path, to_shown)


def read_as(path: str | os.PathLike[str], convert: Callable[[Image.Image], T]) -> T:
    """What `convert` makes of an image file as Pillow opens it; errors as those of `read_image`."""
    try:
        with open_regular(path) as file:
            return decode_as(file, path, convert)
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except IsADirectoryError:
        raise ImageError(path, "is a folder, not an image") from None
    except OSError as error:
        raise ImageError(path, f"can't be read: {error.strerror}") from error


def decode_as(file: IO[bytes], path: str | os.PathLike[str], convert: Callable[[Image.Image], T]) -> T:
    """As `read_as`, from an open file that errors call `path`."""
    Image.init()
    try:
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            if image.width * image.height > MOST_PIXELS:
                reason = f"too large: {image.width}x{image.height} pixels, at most {MOST_PIXELS:,} are read"
                raise ImageError(path, f"{reason}; scale it down")
            converted = convert(image)
            if image.format == "PNG" and png_ends_early(file, image):
                raise ImageError(path, "can't be decoded: its pixels end early")
            return converted
    except ImageError:
        raise
    except UnidentifiedImageError:
        empty = file.seek(0, os.SEEK_END) == 0
        known = f"not an image in a known format ({', '.join(FORMATS)})"
        raise ImageError(path, "the file is empty" if empty else known) from None
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"too large: {error}") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything (SyntaxError, struct.error)
        raise ImageError(path, f"can't be decoded: {error or type(error).__name__}") from error
