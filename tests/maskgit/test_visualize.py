"""Strips and grids."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskgit import visualize
from maskgit.pipeline import InpaintResult, Step


def result(width: int, height: int, steps: int = 3) -> InpaintResult:
    mask = np.zeros((height, width), dtype=bool)
    mask[: height // 2] = True
    masked = np.zeros((4, 4), dtype=bool)
    masked[:2] = True
    states = []
    for number in range(steps):
        left = masked.copy()
        left.ravel()[: (number + 1) * 8 // steps] = False
        states.append(Step(Image.new("RGB", (16, 16), (0, 0, 255)), left))
    red, green = (Image.new("RGB", (width, height), colour) for colour in ((255, 0, 0), (0, 255, 0)))
    return InpaintResult(green, red, mask, masked, states)


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.asarray(image).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("size, cell", [((64, 64), (128, 128)), ((30, 50), (90, 150)), ((1000, 400), (256, 102))])
@pytest.mark.parametrize("steps", [0, 3])
def test_strip_shows_everything(size: tuple[int, int], cell: tuple[int, int], steps: int) -> None:
    picture = visualize.strip(result(*size, steps=steps))
    columns = 3 + steps
    assert picture.width >= columns * cell[0] and 2 * cell[1] < picture.height < 2 * cell[1] + 60
    seen = colours(picture)
    assert {(255, 0, 0), (0, 255, 0), visualize.GIVEN, visualize.OPEN} <= seen
    assert ({(0, 0, 255), visualize.FRESH, visualize.DECIDED} <= seen) == (steps > 0)


def test_strip_of_an_empty_mask() -> None:
    one = result(64, 64, steps=0)
    one.mask[:], one.masked[:] = False, False
    assert visualize.OPEN not in colours(visualize.strip(one))


def test_masked_picture_shows_the_smallest_hole() -> None:
    one = result(2000, 2000, steps=0)
    one.mask[:] = False
    one.mask[1000, 1000] = True
    picture = np.asarray(visualize.masked_picture(one))
    assert (picture != (255, 0, 0)).any(-1).sum() == 1


def test_triples_and_grid() -> None:
    picture = visualize.triples([result(64, 64) for _ in range(5)], columns=2)
    assert picture.width > 6 * 128 and 3 * 128 < picture.height < 4 * 128
    assert {(255, 0, 0), (0, 255, 0)} <= colours(picture)
    one = Image.new("RGB", (10, 10), "red")
    narrow = visualize.grid([one, None, one], 2, ["a long caption", ""])
    assert narrow.width > 2 * 60
    wrong = (([[], 1], "at least one image"), ([[one], 0], "one column"), ([[one], 1, "ab"], "2 captions"))
    for arguments, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            visualize.grid(*arguments)
    with pytest.raises(ValueError, match="at least one image"):
        visualize.triples([])
