"""The canvas of outpainting and the order of its windows."""

import numpy as np
import pytest
from PIL import Image

from maskgit.canvas.outpainting import Canvas

SHAPES = {
    "right": ((16, 16), (0, 0, 8, 0)),
    "far to the left": ((16, 16), (70, 0, 0, 0)),
    "all sides": ((20, 20), (7, 9, 11, 30)),
    "wide": ((40, 12), (5, 5, 5, 5)),
    "tall": ((9, 33), (21, 0, 4, 13)),
    "a pixel": ((1, 1), (3, 0, 2, 1)),
    "nothing": ((8, 8), (0, 0, 0, 0)),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def canvas(request):
    size, margins = request.param
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    canvas = Canvas(Image.fromarray(pixels), margins)
    return canvas, pixels, margins


def test_the_image_is_in_its_place(canvas):
    canvas, pixels, (left, top, right, bottom) = canvas
    height, width = pixels.shape[:2]
    assert canvas.image.size == (left + width + right, top + height + bottom)
    inside = (slice(top, top + height), slice(left, left + width))
    assert np.array_equal(np.asarray(canvas.image)[inside], pixels)
    assert not canvas.hidden[inside].any()
    assert canvas.hidden.sum() == canvas.hidden.size - width * height


def test_windows_fill_everything_from_what_is_known(canvas):
    canvas, pixels, (left, top, _, _) = canvas
    filled = np.array(canvas.image)
    for number, window in enumerate(canvas.windows):
        picture, hole = canvas.view(window)
        assert picture.size == hole.shape == (window.size, window.size) == (min(pixels.shape[:2]),) * 2
        assert hole.any()
        if window.size > 1:
            assert not hole.all(), "a window with nothing to go by"
        assert np.array_equal(np.asarray(picture)[~hole], filled[box(window)][~hole])
        filled[box(window)][hole] = number % 256, 1, 2
        canvas.fill(window, Image.fromarray(filled[box(window)]))
    assert not canvas.hidden.any()
    assert np.array_equal(np.asarray(canvas.image), filled)
    height, width = pixels.shape[:2]
    assert np.array_equal(filled[top : top + height, left : left + width], pixels)


def box(window):
    return slice(window.top, window.top + window.size), slice(window.left, window.left + window.size)


def test_half_a_picture_more_is_one_window():
    assert len(Canvas(Image.new("RGB", (64, 64)), (0, 0, 32, 0)).windows) == 1
    assert len(Canvas(Image.new("RGB", (64, 64)), (32, 0, 32, 0)).windows) == 2
    assert Canvas(Image.new("RGB", (64, 64)), (0, 0, 0, 0)).windows == []


def test_negative_margins():
    with pytest.raises(ValueError, match="margins must be at least 0"):
        Canvas(Image.new("RGB", (8, 8)), (0, -1, 0, 0))
