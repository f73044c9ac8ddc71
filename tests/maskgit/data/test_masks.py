"""Masks: makers, files, finding the mask of an image."""

import os

import numpy as np
import pytest
from PIL import Image

from maskgit.data import ImageError
from maskgit.data.masks import (
    MAKERS,
    MaskError,
    center_box,
    find_mask_for,
    half,
    load_mask,
    make_mask,
    random_boxes,
    strokes,
)


@pytest.fixture
def rng():
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)  # shown by pytest when a test fails
    return np.random.default_rng(seed)


# --- makers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_makers_fill_something_at_any_size_and_are_replayed_by_the_seed(kind, rng):
    sizes = [(1, 1), (1, 40), (40, 1), (2, 2), (64, 64), (3, 200)] + [tuple(rng.integers(1, 99, 2)) for _ in range(20)]
    for height, width in sizes:
        seed = int(rng.integers(2**62))
        mask = make_mask(kind, int(height), int(width), seed)
        assert mask.shape == (height, width) and mask.dtype == bool and mask.any()
        np.testing.assert_array_equal(mask, make_mask(kind, int(height), int(width), seed))


@pytest.mark.parametrize("kind", ["boxes", "strokes", "half"])
def test_random_makers_differ_between_seeds_and_leave_something(kind):
    masks = [make_mask(kind, 64, 64, seed) for seed in range(50)]
    assert len({mask.tobytes() for mask in masks}) > (1 if kind == "half" else 45)
    assert all(0.005 < mask.mean() < 0.95 for mask in masks)
    assert np.any(masks, axis=0).mean() > 0.95  # nearly every place is reached by some mask


def test_center_box():
    mask = center_box(8, 12)
    expected = np.zeros((8, 12), dtype=bool)
    expected[2:6, 3:9] = True
    np.testing.assert_array_equal(mask, expected)
    assert center_box(5, 9, 1.0).all()
    assert center_box(100, 100, 0.001).sum() == 1


def test_half():
    for side, filled in [("left", np.s_[:, :3]), ("right", np.s_[:, 2:]), ("top", np.s_[:2]), ("bottom", np.s_[2:])]:
        expected = np.zeros((4, 5), dtype=bool)
        expected[filled] = True
        np.testing.assert_array_equal(half(4, 5, side), expected)


def test_one_random_box_keeps_to_its_range(rng):
    for _ in range(100):
        mask = random_boxes(40, 80, rng, count=(1, 1), fraction=(0.25, 0.5))
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # one full rectangle
        assert 10 <= rows.sum() <= 20 and 20 <= columns.sum() <= 40


def test_thicker_strokes_cover_more():
    def thin_and_thick(seed):
        return [strokes(64, 64, np.random.default_rng(seed), (2, 2), (width, width)).sum() for width in (0.03, 0.2)]

    assert all(thin < thick for thin, thick in map(thin_and_thick, range(20)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda rng: make_mask("centre", 8, 8), "unknown mask 'centre'.*center, boxes"),
        (lambda rng: make_mask("boxes", 8, 8, -1), "seed -1"),
        (lambda rng: make_mask("center", 0, 8), "8x0"),
        (lambda rng: center_box(8, 8, 0), "fraction 0"),
        (lambda rng: center_box(8, 8, 1.5), "fraction 1.5"),
        (lambda rng: half(8, 8, "middle"), "unknown side 'middle'"),  # type: ignore[arg-type]
        (lambda rng: random_boxes(8, 8, rng, count=(0, 3)), r"count=\(0, 3\)"),
        (lambda rng: random_boxes(8, 8, rng, fraction=(0.5, 0.2)), "fraction"),
        (lambda rng: strokes(8, 8, rng, count=(3, 2)), "count"),
        (lambda rng: strokes(8, 8, rng, thickness=(0, 0.1)), "thickness"),
    ],
)
def test_wrong_arguments_are_named(make, words, rng):
    with pytest.raises(MaskError, match=words):
        make(rng)


# --- files ------------------------------------------------------------------------------------------------------------


def save(path, mask):
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_load_mask_reads_white_as_fill(tmp_path, rng):
    mask = rng.random((7, 11)) < 0.5
    path = save(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(load_mask(path, (11, 7)), mask)
    np.testing.assert_array_equal(load_mask(path, (11, 7), invert=True), ~mask)
    assert load_mask(path, (11, 7)).dtype == bool


def test_load_mask_threshold_and_modes(tmp_path):
    Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8)).save(tmp_path / "gray.png")
    assert load_mask(tmp_path / "gray.png", (4, 1)).tolist() == [[False, False, True, True]]
    for mode in ("1", "P", "RGB", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.tif"
        Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert(mode).save(path)
        assert load_mask(path, (2, 1)).tolist() == [[False, True]], mode
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert load_mask(tmp_path / "deep.png", (2, 1)).tolist() == [[False, True]]


def test_transparent_parts_of_a_mask_are_filled(tmp_path):
    erased = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    erased.putpixel((1, 2), (0, 0, 0, 0))
    erased.save(tmp_path / "m.png")
    assert np.argwhere(load_mask(tmp_path / "m.png", (4, 4))).tolist() == [[2, 1]]


@pytest.mark.parametrize("factor", [2, 3, 10])
def test_a_smaller_mask_is_enlarged_by_repeating_pixels(tmp_path, rng, factor):
    mask = rng.random((6, 9)) < 0.5
    path = save(tmp_path / "m.png", mask)
    expected = mask.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(load_mask(path, (9 * factor, 6 * factor)), expected)


def test_a_larger_mask_keeps_its_finest_lines(tmp_path, rng):
    mask = np.zeros((640, 960), dtype=bool)
    row, column = rng.integers(640), rng.integers(960)
    mask[row, column] = True
    shrunk = load_mask(save(tmp_path / "m.png", mask), (12, 8))
    assert np.argwhere(shrunk).tolist() == [[row // 80, column // 80]]
    odd = load_mask(tmp_path / "m.png", (333, 222))
    assert odd.any() and odd.sum() <= 4


def test_rounded_proportions_are_accepted_others_are_not(tmp_path):
    path = save(tmp_path / "m.png", np.ones((333, 500), dtype=bool))
    assert load_mask(path, (1000, 667)).all() and load_mask(path, (1000, 666)).all()
    for size in [(500, 334), (499, 333), (333, 500), (1000, 670), (400, 400), (501, 332)]:
        with pytest.raises(MaskError, match=f"500x333.*{size[0]}x{size[1]}"):
            load_mask(path, size)


def test_unreadable_masks_are_image_errors(tmp_path):
    (tmp_path / "m.png").write_text("hello")
    for name in ("m.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            load_mask(tmp_path / name, (4, 4))


def test_find_mask_for(tmp_path):
    masks = tmp_path / "masks"
    with pytest.raises(MaskError, match="no such folder"):
        find_mask_for("cat.jpg", masks)
    masks.mkdir()
    for name in ("cat.png", "dög 犬.GIF", "two.png", "two.bmp", "notes.txt", "v1.2.png"):
        (masks / name).touch()
    assert find_mask_for("somewhere/cat.jpg", masks) == masks / "cat.png"
    assert find_mask_for("dög 犬.webp", masks) == masks / "dög 犬.GIF"
    assert find_mask_for("v1.2.jpg", masks).name == "v1.2.png"
    with pytest.raises(MaskError, match=r"two\.bmp, two\.png"):
        find_mask_for("two.jpg", masks)
    for missing in ("fish.jpg", "notes.png", "Cat.jpg"):
        with pytest.raises(MaskError, match="no mask named"):
            find_mask_for(missing, masks)
