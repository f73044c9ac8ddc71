"""Masks: makers, files, finding the mask of an image."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from maskgit.data import ImageError, read_image
from maskgit.data.masks import (
    MAKERS,
    MaskError,
    MaskWarning,
    center_box,
    find_mask_for,
    half,
    load_mask,
    make_mask,
    random_boxes,
    strokes,
    to_mask,
)

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


# --- what people mean -------------------------------------------------------------------------------------------------

SPOT = np.zeros((20, 30), dtype=bool)
SPOT[5:12, 8:20] = True


def layer(color, inside=255, outside=0, around=(0, 0, 0)):
    """RGBA of 30x20: a color in SPOT, another around it, and how opaque both are."""
    pixels = np.empty((20, 30, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(SPOT[..., None], np.uint8(color), np.uint8(around))
    pixels[..., 3] = np.where(SPOT, inside, outside)
    return pixels


def meant(pixels, mode=None, **options):
    """The mask of an array of pixels, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return to_mask(Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode), **options)


@pytest.mark.parametrize("color", [(255, 255, 255), (255, 0, 0), (0, 0, 200), (130, 130, 130)])
@pytest.mark.parametrize("around", [(0, 0, 0), (255, 255, 255)])  # which nobody sees
def test_strokes_on_a_transparent_layer_are_filled(color, around):
    np.testing.assert_array_equal(meant(layer(color, around=around)), SPOT)
    np.testing.assert_array_equal(meant(layer(color, around=around), "RGBa"), SPOT)


def test_soft_strokes_are_filled_from_half_on():
    soft = np.full((1, 256, 4), 255, dtype=np.uint8)
    soft[0, :, 3] = np.arange(256)
    np.testing.assert_array_equal(meant(soft)[0], np.arange(256) >= 128)


def test_black_and_white_strokes_on_a_transparent_layer_fill_the_white():
    pixels = layer((255, 255, 255))
    pixels[5:12, 14:20, :3] = 0  # painted over
    expected = SPOT.copy()
    expected[:, 14:20] = False
    np.testing.assert_array_equal(meant(pixels), expected)


def test_holes_erased_into_pictures_are_filled(rng):
    photo = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)  # bright spots too are no hole
    photo[..., 3] = np.where(SPOT, 0, 255)
    np.testing.assert_array_equal(meant(photo), SPOT)
    np.testing.assert_array_equal(meant(layer((255, 255, 255), inside=0, outside=255)), SPOT)  # into a black layer
    gray = np.where(SPOT, 7, 0).astype(np.uint8)
    palette = Image.fromarray(gray, "L").convert("P")
    palette.info["transparency"] = 7
    np.testing.assert_array_equal(to_mask(palette), SPOT)


def test_opaque_masks_may_have_an_alpha_channel():
    np.testing.assert_array_equal(meant(layer((255, 255, 255), 255, 255)), SPOT)
    np.testing.assert_array_equal(meant(layer((255, 255, 255), 255, 255), "LA"), SPOT)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32, bool])
@pytest.mark.parametrize("value", [1, 38, 255])
def test_masks_of_two_values(tmp_path, kind, value):
    pixels = SPOT.astype(kind) if kind is bool else SPOT.astype(kind) * kind(value)
    np.testing.assert_array_equal(meant(pixels), SPOT)
    path = tmp_path / "m.tif"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(load_mask(path, (30, 20)), SPOT)
    np.testing.assert_array_equal(load_mask(path, (30, 20), invert=True), ~SPOT)
    np.testing.assert_array_equal(load_mask(path, (60, 40)), SPOT.repeat(2, 0).repeat(2, 1))


def test_label_maps_with_a_palette():
    labels = Image.fromarray(SPOT.astype(np.uint8), "P")
    labels.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # as PASCAL VOC has them
    np.testing.assert_array_equal(to_mask(labels), SPOT)


def test_masks_lie_as_they_are_shown():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image = Image.fromarray(SPOT)
    image.getexif().update(exif)
    np.testing.assert_array_equal(to_mask(image), np.rot90(SPOT, -1))


@pytest.mark.parametrize(
    ("pixels", "invert", "words"),
    [
        (np.zeros((9, 9), np.uint8), False, "covers nothing"),
        (np.full((9, 9), 255, np.uint8), True, "covers nothing"),
        (np.arange(25, dtype=np.uint8).reshape(5, 5), False, "covers nothing"),  # all of it is dark
        (np.zeros((9, 9, 4), np.uint8), False, "covers nothing"),
        (np.full((9, 9), 255, np.uint8), False, "covers 100% of the picture; .*invert"),
        (np.where(SPOT, 0, 255).astype(np.uint8), False, None),  # 86%
        (np.where(SPOT[:, 12:], 0, 255).astype(np.uint8), False, None),
        (np.where(np.arange(100) < 4, 0, 255).astype(np.uint8)[None], False, "covers 96%"),
        (layer((0, 0, 0)), False, "covers 86%"),  # black strokes: a layer with a hole, or are they?
    ],
)
def test_suspicious_masks(tmp_path, pixels, invert, words):
    path = tmp_path / "m.png"
    Image.fromarray(pixels).save(path)
    size = pixels.shape[1::-1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_mask(path, size, invert)
    assert [warning.category for warning in caught] == [MaskWarning] * (words is not None)
    if words is not None:
        assert str(caught[0].message).startswith(f"{path}: the mask covers ")
        with pytest.warns(MaskWarning, match=words):
            to_mask(Image.fromarray(pixels), invert=invert)


def test_photographs_are_no_masks(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("clouds.png", "leaves.jpg", "skin.webp"):
        rough = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))  # light and shade
        grain = rng.normal(0, 6, (64, 64, 3))
        picture = np.asarray(rough.resize((64, 64), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / name)
        with pytest.warns(MaskWarning, match=f"{name}: the mask looks like a photograph .* swapped") as caught:
            load_mask(tmp_path / name, (64, 64))
        assert len(caught) == 1
    # Compressed and blurred masks are still masks.
    image = Image.new("L", (200, 200))
    ImageDraw.Draw(image).ellipse((50, 50, 150, 150), fill=255)
    for changed in (image, image.filter(ImageFilter.GaussianBlur(5))):
        changed.save(tmp_path / "m.jpg", quality=30)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mask = load_mask(tmp_path / "m.jpg", (200, 200))
        assert mask[100, 60:140].all() and not mask[100, :40].any()


# ----------------------------------------------------------------------------------------------------------------------


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


def test_a_mask_with_damaged_exif_data_is_read_as_stored(tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "m.png", exif=b"Exif\x00\x00" + bytes(range(60, 100)))
    with pytest.raises(SyntaxError):  # of Pillow
        Image.open(tmp_path / "m.png").getexif()
    assert (load_mask(tmp_path / "m.png", (12, 8)) == (mask > 0)).all()
    assert (to_mask(Image.open(tmp_path / "m.png")) == (mask > 0)).all()
    assert np.array_equal(read_image(tmp_path / "m.png").convert("L"), mask)
