"""Outpainting: a larger canvas around an image, whose margins are a hole like any other.

Chang et al., "MaskGIT", CVPR 2022, section 4.3, where one window does for half a picture more. Here the margins are of
any size (see `maskgit.canvas.windows`).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from maskgit.memory import MOST_PIXELS

Margins = tuple[int, int, int, int]
"""Pixels to add on the left, at the top, on the right, at the bottom."""


def enlarged(image: Image.Image, margins: Margins) -> tuple[Image.Image, np.ndarray]:
    """An RGB image with margins, and what is hidden of it: bool [H, W], True in the margins.

    Raises ValueError: a negative margin, or margins so large that they aren't filled.
    """
    if min(margins) < 0:
        raise ValueError(f"margins must be at least 0, got {margins}")
    left, top, right, bottom = margins
    width, height = left + image.width + right, top + image.height + bottom
    if not width * height <= MOST_PIXELS:  # true of NaN too
        raise ValueError(f"margins {margins} make {width}x{height} pixels; at most {MOST_PIXELS:,} are filled")
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, (left, top))
    hidden = np.ones((height, width), dtype=bool)
    hidden[top : top + image.height, left : left + image.width] = False
    return canvas, hidden
