"""A picture while it is filled: what is hidden yet, what each window shows, and where its fill goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from maskgit.canvas.windows import Box, Window, turns, whole


class Canvas:
    """An RGB picture, its hole, and the windows that fill it, in groups that can be filled at once.

    Args:
        image: RGB, of size (W, H); it stays as it is.
        hole: bool [H, W]: what is to be filled.
        windows: inside the picture; together they cover the hole.
    """

    def __init__(self, image: Image.Image, hole: np.ndarray, windows: Sequence[Window]) -> None:
        self.image = image.copy()
        self.hole = hole
        self.hidden = hole.copy()
        """bool [H, W]: what holds nothing to go by yet."""
        self.turns = turns(windows)

    def view(self, window: Window) -> tuple[Image.Image, np.ndarray]:
        """What the model is to work on: the window's picture and what is to be filled there, bool [h, w].

        That is all that is hidden yet, so that the model doesn't see it, core or not; and in a window that goes on from
        a coarse fill, which it does see, the core's share of the hole.
        """
        if window.again:
            target = np.zeros_like(self.hidden[window.box.area])
            target[_within(window.core, window.box).area] = self.hole[window.core.area]
        else:
            target = self.hidden[window.box.area].copy()
        return self.image.crop(window.box), target

    def continues(self, window: Window) -> bool:
        """Whether a smooth continuation of what surrounds a hole says much about it: not in a window that shows all of
        a picture, where a hole hides things, nor where there is a coarse fill to go by."""
        return not window.again and window.box != whole(self.hole.shape).box

    def fill(self, window: Window, picture: Image.Image, bare: bool = False) -> None:
        """Put the core of the filled window, `view`'s picture without its hole, in its place; known pixels too, where
        the fill is a bare decoding."""
        core = picture.crop(_within(window.core, window.box))
        hole = self.hole[window.core.area]
        mask = None if bare else Image.fromarray(hole)
        self.image.paste(core, window.core[:2], mask)
        self.hidden[window.core.area] = False


def _within(inner: Box, outer: Box) -> Box:
    """A box by its place in another."""
    left, top = outer[:2]
    return Box(inner.left - left, inner.top - top, inner.right - left, inner.bottom - top)
