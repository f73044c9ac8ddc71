"""Results know that they are ones: so they are told from inputs in the same folder, and may be replaced."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maskgit.data.png import png_bytes
from maskgit.files import open_regular, write_atomically

_KEY = "maskgit-result"  # of the text in a result's PNG


def write_results(pictures: Mapping[Path, Image.Image], output: Path) -> None:
    """Write pictures, all or none, as results of a run with this output folder. Raises OSError."""
    files = {}
    for path, picture in pictures.items():
        mark = PngInfo()
        mark.add_text(_KEY, _place(path, output) or "")
        # Pillow writes the color profile by itself, EXIF only when told to. This level takes half the time of the
        # default, for a few percent more.
        files[path] = png_bytes(picture, compress_level=4, pnginfo=mark, exif=picture.info.get("exif"))
    write_atomically(files)


def is_result(path: Path, output: Path) -> bool:
    """Whether a file is the result of an earlier run with this output folder, and lies where that run put it."""
    if path.suffix.lower() != ".png" or (place := _place(path, output)) is None:
        return False
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return image.info.get(_KEY) == place
    except Exception:  # a damaged file makes Pillow raise nearly anything, and is no result
        return False


def _place(path: Path, output: Path) -> str | None:
    """A digest of where a file lies below a folder; None outside it. Not of links that the file itself may be."""
    try:
        relative = (path.parent.resolve() / path.name).relative_to(output.resolve())
    except ValueError:
        return None
    # Some file systems take names for equal that differ in case or in how accents are encoded.
    name = unicodedata.normalize("NFC", relative.as_posix()).casefold()
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
