"""Where windows lie: all of a hole is filled, from what is known, at the picture's scale where it isn't too thick."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskgit.canvas.filling import Canvas
from maskgit.canvas.windows import Box, Window, parts, thickness, turns, windows

SIZE = 16


def hole(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """bool [height, width], hidden in boxes of left, top, right, bottom."""
    mask = np.zeros((height, width), dtype=bool)
    for box in boxes:
        mask[Box(*box).area] = True
    return mask


def scratch(height: int, width: int, thick: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    for row in range(height):
        left = row * (width - thick) // height
        mask[row, left : left + thick] = True
    return mask


def specks(height: int, width: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return hole(height, width, *((x, y, x + 3, y + 2) for x, y in rng.integers(0, min(height, width) - 3, (count, 2))))


HOLES = {
    "small": hole(40, 60, (20, 10, 25, 16)),
    "in a corner": hole(40, 60, (0, 0, 5, 6)),
    "larger than the model": hole(200, 300, (100, 50, 170, 120)),
    "far larger": hole(400, 400, (10, 20, 390, 300)),
    "everything": np.ones((50, 70), dtype=bool),
    "of the model's size": hole(16, 16, (4, 4, 12, 12)),
    "smaller than the model": hole(9, 30, (10, 2, 20, 9)),
    "a row of pixels": hole(1, 90, (20, 0, 70, 1)),
    "a scratch": scratch(150, 200, 3),
    "specks": specks(120, 120, 150),
    "a ring": hole(100, 100, (20, 20, 80, 80)) & ~hole(100, 100, (30, 30, 70, 70)),
    "outside": ~hole(64, 90, (30, 20, 60, 50)),
    "far to one side": hole(16, 90, (16, 0, 90, 16)),
}


@pytest.fixture(params=HOLES.values(), ids=HOLES)
def hidden(request: pytest.FixtureRequest) -> np.ndarray:
    return request.param


def test_windows_cover_the_hole_from_coarse_to_fine(hidden: np.ndarray) -> None:
    todo = windows(hidden, SIZE)
    height, width = hidden.shape
    left = hidden.copy()
    sides = []
    for box, core, again in todo:
        wide, high = box.right - box.left, box.bottom - box.top
        side = max(wide, high)
        assert (wide, high) == (min(side, width), min(side, height)) and (wide == high or side <= SIZE)
        assert min(box[:2]) >= 0 and box.right <= width and box.bottom <= height
        assert box.left <= core.left < core.right <= box.right and box.top <= core.top < core.bottom <= box.bottom
        assert hidden[core.area].any()
        assert again == (not left[core.area].any()), "a window that goes on needs something to go on from"
        left[core.area] = False
        sides.append(side)
    assert not left.any()
    # Every pixel is filled at half of the picture's scale at least in the end.
    finest = np.zeros_like(hidden)
    for box, core, _ in todo:
        if max(box.right - box.left, box.bottom - box.top) <= 2 * SIZE:
            finest[core.area] = True
    assert finest[hidden].all()
    assert windows(hidden, SIZE) == todo


def test_a_first_look_has_something_known(hidden: np.ndarray) -> None:
    if hidden.all():
        pytest.skip("nothing is known")
    canvas = Canvas(_image(hidden), hidden, windows(hidden, SIZE))
    for group in canvas.turns:
        for window in group:
            picture, target = canvas.view(window)
            assert picture.size == target.shape[::-1] and target.any()
            assert not target.all() or picture.size == (1, 1)
        for window in group:
            canvas.fill(window, _image(hidden).crop(window.box))
    assert not canvas.hidden.any()


def _image(hidden: np.ndarray) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*hidden.shape, 3), dtype=np.uint8))


def test_what_is_thin_has_no_coarse_windows() -> None:
    for name in ("small", "a scratch", "specks"):
        assert not any(window.again for window in windows(HOLES[name], SIZE)), name
    assert len(windows(hole(400, 600, (100, 100, 103, 102), (105, 101, 106, 104)), SIZE)) == 1
    assert len(windows(hole(400, 600, (100, 100, 103, 102), (205, 101, 206, 104)), SIZE)) == 2


def test_groups_dont_see_each_other(hidden: np.ndarray) -> None:
    todo = windows(hidden, SIZE)
    groups = turns(todo)
    assert sorted(map(repr, todo)) == sorted(repr(window) for group in groups for window in group)
    for group in groups:
        for one in group:
            assert not any(meet(other.core, one.box) for other in group if other is not one)
    # What meets keeps its order.
    turn = {window: i for i, group in enumerate(groups) for window in group}
    for i, later in enumerate(todo):
        for earlier in todo[:i]:
            if meet(earlier.core, later.box) or meet(later.core, earlier.box):
                assert turn[earlier] < turn[later]


def meet(a: Box, b: Box) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def test_parts() -> None:
    mask = hole(50, 50, (2, 3, 8, 9), (30, 3, 34, 20), (10, 40, 20, 44), (21, 40, 22, 44))
    assert list(parts(mask, 2, 0)) == [(2, 3, 8, 9), (30, 3, 34, 20), (10, 40, 22, 44)]
    assert list(parts(mask, 100, 0)) == [(2, 3, 34, 44)]
    assert list(parts(np.zeros((4, 5), dtype=bool), 2, 0)) == []


def test_near_parts_are_one() -> None:
    mask = hole(50, 50, (2, 3, 8, 9), (30, 3, 34, 20), (10, 40, 20, 44), (26, 40, 27, 44))
    assert list(parts(mask, 2, 17)) == [(2, 3, 8, 9), (30, 3, 34, 20), (10, 40, 27, 44)]
    assert list(parts(mask, 2, 16)) == [(2, 3, 8, 9), (30, 3, 34, 20), (10, 40, 20, 44), (26, 40, 27, 44)]
    noise = np.random.default_rng(0).random((300, 400)) < 0.1
    assert 0 < len(list(parts(noise, 1, 8))) < 300 * 400 / 16


@pytest.mark.parametrize(
    "mask, expected",
    [
        (hole(30, 40, (3, 4, 20, 9)), 5),
        (hole(30, 40, (3, 4, 20, 9), (10, 2, 18, 12)), 8),
        (scratch(60, 60, 3), 2),
        (np.ones((7, 9), dtype=bool), 7),
        (hole(5, 5, (2, 2, 3, 3)), 1),
        (np.zeros((5, 5), dtype=bool), 0),
    ],
)
def test_thickness(mask: np.ndarray, expected: int) -> None:
    assert thickness(mask) == expected


def test_only_the_core_is_filled() -> None:
    mask = hole(10, 10, (2, 2, 8, 8))
    canvas = Canvas(Image.new("RGB", (10, 10), "white"), mask, [])
    window = Window(Box(1, 1, 7, 7), Box(3, 3, 5, 6), False)
    _, target = canvas.view(window)
    assert np.array_equal(target, mask[1:7, 1:7])
    canvas.fill(window, Image.new("RGB", (6, 6), "black"))
    assert np.argwhere(np.asarray(canvas.image)[..., 0] == 0).tolist() == [[y, x] for y in (3, 4, 5) for x in (3, 4)]
    assert np.array_equal(canvas.hidden, mask & ~hole(10, 10, (3, 3, 5, 6)))
    again = Window(Box(0, 0, 7, 7), Box(1, 3, 5, 6), True)  # the core has known pixels too
    assert np.argwhere(canvas.view(again)[1]).tolist() == [[y, x] for y in (3, 4, 5) for x in (2, 3, 4)]
