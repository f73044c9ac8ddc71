"""Strips, grids, evolutions and animations."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from maskgit.pictures import strips
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
        states.append(Step(Image.new("RGB", (16, 16), (0, 0, 255)), left, np.zeros((4, 4), dtype=np.int64)))
    red, green = (Image.new("RGB", (width, height), colour) for colour in ((255, 0, 0), (0, 255, 0)))
    return InpaintResult(green, red, mask, masked, states)


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.asarray(image).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("size, cell", [((64, 64), (128, 128)), ((30, 50), (90, 150)), ((1000, 400), (256, 102))])
@pytest.mark.parametrize("steps", [0, 3])
def test_strip_shows_everything(size: tuple[int, int], cell: tuple[int, int], steps: int) -> None:
    picture = strips.strip(result(*size, steps=steps))
    columns = 3 + steps
    assert picture.width >= columns * cell[0] and 2 * cell[1] < picture.height < 2 * cell[1] + 60
    seen = colours(picture)
    assert {(255, 0, 0), (0, 255, 0), strips.GIVEN, strips.OPEN} <= seen
    assert ({(0, 0, 255), strips.FRESH, strips.DECIDED} <= seen) == (steps > 0)


def test_strip_of_an_empty_mask() -> None:
    one = result(64, 64, steps=0)
    one.mask[:], one.masked[:] = False, False
    assert strips.OPEN not in colours(strips.strip(one))


def test_masked_picture_shows_the_smallest_hole() -> None:
    one = result(2000, 2000, steps=0)
    one.mask[:] = False
    one.mask[1000, 1000] = True
    picture = np.asarray(strips.masked_picture(one))
    assert (picture != (255, 0, 0)).any(-1).sum() == 1


def test_triples_and_grid() -> None:
    picture = strips.triples([result(64, 64) for _ in range(5)], columns=2)
    assert picture.width > 6 * 128 and 3 * 128 < picture.height < 4 * 128
    assert {(255, 0, 0), (0, 255, 0)} <= colours(picture)
    one = Image.new("RGB", (10, 10), "red")
    narrow = strips.grid([one, None, one], 2, ["a long caption", ""])
    assert narrow.width > 2 * 60
    wrong = (([[], 1], "at least one image"), ([[one], 0], "one column"), ([[one], 1, "ab"], "2 captions"))
    for arguments, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            strips.grid(*arguments)
    with pytest.raises(ValueError, match="at least one image"):
        strips.triples([])


# --- how masks and images evolve --------------------------------------------------------------------------------------


def test_evolution_shows_each_way_to_decode() -> None:
    results = {"linear": result(64, 64, steps=4), "a rather long name of a schedule": result(64, 64, steps=2)}
    picture = np.asarray(strips.evolution(results))
    # A column of names, the start, and four steps; two rows for each result.
    width, height = 128 + 2, 128 + 2 + 16
    name_width = 1 + (picture.shape[1] - strips.GAP) // 6
    assert name_width >= width and 4 * height < picture.shape[0] < 4 * (height + 10) + 30

    # The masks of the first row: black cells, 8 of 16 tokens at the start and two fewer at each step.
    pitch = (picture.shape[1] - strips.GAP) / 6
    head = strips.GAP + strips._CAPTION
    for step in range(5):
        left, right = round(strips.GAP + (1 + step) * pitch), round((2 + step) * pitch)
        cell = picture[head : head + 130, left:right]
        black = (cell == 0).all(-1).mean() * cell.shape[0] * cell.shape[1]
        assert black == pytest.approx((8 - 2 * step) * 32 * 32, rel=0.02, abs=40)
    below = picture[head + height : head + 2 * height]  # the images: blue at every step, and the hole at the start
    assert (below == (0, 0, 255)).all(-1).sum() == 4 * 128 * 128
    second = picture[head + 2 * (height + strips.GAP) :]
    assert (second == (0, 0, 255)).all(-1).sum() == 2 * 128 * 128  # two steps only, the rest stays empty


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animation(kind: str) -> None:
    data = strips.animation({"one": result(64, 64, steps=3), "two": result(32, 64, steps=1)}, kind)
    with Image.open(io.BytesIO(data)) as moving:
        assert moving.format == kind.upper() and moving.n_frames == 5 and moving.info["loop"] == 0
        seen, durations = [], []
        for number in range(5):
            moving.seek(number)
            moving.load()
            durations.append(moving.info["duration"])
            seen.append(np.asarray(moving.convert("RGB")).astype(int))

    def share(frame: np.ndarray, color: tuple[int, int, int], columns: slice) -> float:
        return float((abs(frame[:, columns] - color).max(-1) < 12).mean())

    half = seen[0].shape[1] // 2
    first, second = slice(0, half), slice(half, None)
    blue, green, tokens_open = (0, 0, 255), (0, 255, 0), strips.OPEN
    assert durations == [strips.FRAME] * 4 + [strips.LAST_FRAME]
    assert share(seen[0], blue, first) == 0 and share(seen[0], tokens_open, first) > 0.1
    for number in (1, 2, 3):
        assert share(seen[number], blue, first) > 0.3 and share(seen[number], strips.FRESH, first) > 0.01
    opens = [share(frame, tokens_open, first) for frame in seen]
    assert opens[:3] == sorted(opens[:3], reverse=True) and opens[2] > 0.01 > 0.001 > max(opens[3:])  # but for captions
    assert share(seen[4], green, first) > 0.3
    # The one with fewer steps waits at its end.
    assert share(seen[1], blue, second) > 0.1 and all(share(frame, green, second) > 0.1 for frame in seen[2:])


def test_evolution_and_animation_need_steps() -> None:
    for make in (strips.evolution, strips.animation):
        with pytest.raises(ValueError, match="no results"):
            make({})
        with pytest.raises(ValueError, match="'cosine' were not kept"):
            make({"linear": result(64, 64), "cosine": result(64, 64, steps=0)})
    with pytest.raises(ValueError, match="gif or webp"):
        strips.animation({"one": result(64, 64)}, "mp4")  # type: ignore[arg-type]
