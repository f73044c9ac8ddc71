"""The canvas of outpainting, and where its windows lie."""

import numpy as np
import pytest
from PIL import Image

from maskgit.canvas.outpainting import enlarged
from maskgit.canvas.windows import windows
from maskgit.memory import MOST_PIXELS

SHAPES = {
    "right": ((16, 16), (0, 0, 8, 0)),
    "far to the left": ((16, 16), (70, 0, 0, 0)),
    "all sides": ((20, 20), (7, 9, 11, 30)),
    "wide": ((40, 12), (5, 5, 5, 5)),
    "tall": ((9, 33), (21, 0, 4, 13)),
    "a pixel": ((1, 1), (3, 0, 2, 1)),
    "nothing": ((8, 8), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("size, margins", SHAPES.values(), ids=SHAPES)
def test_the_image_is_in_its_place(size, margins):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    canvas, hidden = enlarged(Image.fromarray(pixels), margins)
    left, top, right, bottom = margins
    assert canvas.size == (left + size[0] + right, top + size[1] + bottom) == hidden.shape[::-1]
    inside = (slice(top, top + size[1]), slice(left, left + size[0]))
    assert np.array_equal(np.asarray(canvas)[inside], pixels)
    assert not hidden[inside].any()
    assert hidden.sum() == hidden.size - size[0] * size[1]


def test_half_a_picture_more_is_one_window():
    def number(margins):
        return len(windows(enlarged(Image.new("RGB", (64, 64)), margins)[1], 64))

    assert [number(margins) for margins in ((0, 0, 32, 0), (32, 0, 32, 0), (0, 0, 0, 0))] == [1, 2, 0]


def test_margins_that_make_no_sense():
    with pytest.raises(ValueError, match="margins must be at least 0"):
        enlarged(Image.new("RGB", (8, 8)), (0, -1, 0, 0))
    with pytest.raises(ValueError, match=f"make 8x10000000008 pixels; at most {MOST_PIXELS:,} are filled"):
        enlarged(Image.new("RGB", (8, 8)), (0, 0, 0, 10**10))
