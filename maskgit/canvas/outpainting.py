"""Outpainting: a larger canvas around an image, filled window by window from the image outwards.

Chang et al., "MaskGIT", CVPR 2022, section 4.3, where one window does for half a picture more. Here the margins are of
any size: each window shows the model what is known by then in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from maskgit.memory import MOST_PIXELS

Margins = tuple[int, int, int, int]
"""Pixels to add on the left, at the top, on the right, at the bottom."""


class Window(NamedTuple):
    """A square of the canvas that is filled at once."""

    left: int
    top: int
    size: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom, as Pillow has them."""
        return self.left, self.top, self.left + self.size, self.top + self.size


class Canvas:
    """An RGB image with margins, and the windows that will fill them.

    Raises ValueError: a negative margin, or margins so large that they aren't filled.
    """

    def __init__(self, image: Image.Image, margins: Margins) -> None:
        if min(margins) < 0:
            raise ValueError(f"margins must be at least 0, got {margins}")
        left, top, right, bottom = margins
        width, height = left + image.width + right, top + image.height + bottom
        if not width * height <= MOST_PIXELS:  # true of NaN too
            raise ValueError(f"margins {margins} make {width}x{height} pixels; at most {MOST_PIXELS:,} are filled")
        self.image = Image.new("RGB", (width, height))
        self.image.paste(image, (left, top))
        self.hidden = np.ones((self.image.height, self.image.width), dtype=bool)
        """bool [H, W]: pixels that are not there yet."""
        self.hidden[top : top + image.height, left : left + image.width] = False
        self.windows = _windows(self.hidden, (left, top, left + image.width, top + image.height))

    def view(self, window: Window) -> tuple[Image.Image, np.ndarray]:
        """What the model is to fill: the window's picture and its hole, bool [size, size]."""
        left, top, right, bottom = window.box
        return self.image.crop(window.box), self.hidden[top:bottom, left:right]

    def fill(self, window: Window, picture: Image.Image) -> None:
        """Put the filled window, `view`'s picture without its hole, in its place."""
        left, top, right, bottom = window.box
        self.image.paste(picture, (left, top))
        self.hidden[top:bottom, left:right] = False


def _windows(hidden: np.ndarray, known: tuple[int, int, int, int]) -> list[Window]:
    """Windows that cover all hidden pixels, nearest to the image first.

    They are as large as the image's shorter side and overlap by half, so each has something known to go by.
    """
    height, width = hidden.shape
    size = min(known[2] - known[0], known[3] - known[1])
    places = [
        (_distance(left, size, known[0], known[2]), _distance(top, size, known[1], known[3]), top, left)
        for top in _offsets(known[1], known[3], size, height)
        for left in _offsets(known[0], known[2], size, width)
    ]
    left_over = hidden.copy()
    windows = []
    # Straight out of the image's sides first: a corner then has two known sides.
    for _, _, top, left in sorted(places, key=lambda place: (place[0] + place[1], max(place[:2]), *place[2:])):
        part = left_over[top : top + size, left : left + size]
        if part.any():
            windows.append(Window(left, top, size))
            part[:] = False
    return windows


def _offsets(start: int, end: int, size: int, length: int) -> list[int]:
    """Where windows begin along an axis: every half window from the known part's start, and flush with both ends."""
    stride = max(1, size // 2)
    before = range(start, -1, -stride)
    after = range(start, length - size + 1, stride)
    return sorted({0, length - size, end - size, *before, *after})


def _distance(offset: int, size: int, start: int, end: int) -> int:
    """By how much a window reaches beyond the known part along an axis."""
    return max(start - offset, offset + size - end, 0)
