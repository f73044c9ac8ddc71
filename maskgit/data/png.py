"""PNG files: made in memory, and those whose pixels end early though the file is whole.

Pillow reads the latter, the missing rows black.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import IO, Any

import numpy as np
from PIL import Image

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_WHOLE = ((0, 0, 1, 1),)
# The PNG specification, section 8.2: where each pass starts (x, y), and its steps.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PART = 2**14  # bytes at once, which may inflate to a thousand times as many


def png_bytes(picture: Image.Image, **options: Any) -> bytes:
    """A picture as a PNG file; options are those of Pillow's encoder."""
    data = io.BytesIO()
    picture.save(data, "PNG", **options)
    return data.getvalue()


def png_ends_early(file: IO[bytes], image: Image.Image) -> bool:
    """Whether a PNG has fewer pixels than its header says.

    Where the last rows of what Pillow made of it aren't zero, none are missing, and the file isn't read again.
    """
    last = np.asarray(image.crop((0, max(0, image.height - 2), *image.size)))  # in two rows, as passes take turns
    if last.reshape(len(last), -1).any(1).all():
        return False
    file.seek(8)
    inflate = zlib.decompressobj()
    missing = 0
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            missing = _raw_size(*struct.unpack(">IIBBBBB", file.read(13)))
            length -= 13
        while kind == b"IDAT" and length > 0 and missing > 0:
            part = file.read(min(length, _PART))
            if not part or inflate.eof:
                return True
            length -= len(part)
            missing -= len(inflate.decompress(part))
        file.seek(length + 4, 1)  # the checksum too
    return missing > 0


def _raw_size(width: int, height: int, depth: int, color: int, _: int, __: int, interlaced: int) -> int:
    """Bytes of the pixels before compression, from what the header holds: a filter's number leads each row."""
    total = 0
    for left, top, x_step, y_step in _ADAM7 if interlaced else _WHOLE:
        columns, rows = -(-(width - left) // x_step), -(-(height - top) // y_step)
        if columns > 0:
            total += max(0, rows) * (1 + -(-columns * _CHANNELS[color] * depth // 8))
    return total
