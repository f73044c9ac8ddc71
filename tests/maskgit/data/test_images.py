"""Reading images, folders of images, the split, augmentation."""

import io
import json
import os
import struct
import subprocess
import sys
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from maskgit.data import AugmentConfig, DataError, ImageError, ImageFolder, in_validation, load_dataset, read_image
from maskgit.data.images import center_square, find_images, random_crop, split_indices


def picture(rng, width=20, height=20):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def rng():
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)  # shown by pytest when a test fails
    return np.random.default_rng(seed)


# --- read_image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, rng, suffix):
    image = picture(rng, 13, 7)
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    read = read_image(path)
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image))


def test_transparency_is_composited_on_white(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(read_image(tmp_path / "a.png")) - expected).max() <= 1

    gray = Image.fromarray(pixels[..., 0]).convert("LA")
    gray.putalpha(0)
    gray.save(tmp_path / "gray.png")
    assert (np.asarray(read_image(tmp_path / "gray.png")) == 255).all()


def test_palette_images_with_and_without_transparency(tmp_path, rng):
    palette = picture(rng).quantize(16)
    palette.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "plain.png")), np.asarray(palette.convert("RGB")))

    index = int(np.asarray(palette)[3, 4])
    palette.save(tmp_path / "clear.png", transparency=index)
    read = np.asarray(read_image(tmp_path / "clear.png"))
    clear = np.asarray(palette) == index
    assert (read[clear] == 255).all()
    np.testing.assert_array_equal(read[~clear], np.asarray(palette.convert("RGB"))[~clear])


def test_sixteen_bit_images_keep_their_high_byte(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.asarray(read_image(tmp_path / name))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_gray_bilevel_float_and_cmyk(tmp_path, rng):
    gray = picture(rng).convert("L")
    gray.save(tmp_path / "gray.png")
    read = np.asarray(read_image(tmp_path / "gray.png"))
    np.testing.assert_array_equal(read, np.repeat(np.asarray(gray)[..., None], 3, -1))

    gray.convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(np.asarray(read_image(tmp_path / "bilevel.png")))) <= {0, 255}

    Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32)).save(tmp_path / "float.tif")
    assert np.asarray(read_image(tmp_path / "float.tif"))[0, :, 0].tolist() == [0, 128, 255, 0]

    Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    read = np.asarray(read_image(tmp_path / "cmyk.jpg")).astype(int)
    assert np.abs(read - (200, 30, 60)).max() <= 3


def test_exif_orientation_is_applied(tmp_path, rng):
    image = picture(rng, 8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show"
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), expected)


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_files_are_an_image_error(tmp_path, rng, suffix):
    data = io.BytesIO()
    picture(rng, 90, 90).save(data, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    with pytest.raises(ImageError, match=f"a.{suffix}"):
        read_image(path)


def test_random_damage_is_an_image_error_or_an_image(tmp_path, rng):
    for suffix in ("png", "jpg", "webp", "gif", "tif"):
        data = io.BytesIO()
        picture(rng, 40, 40).save(data, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
        for _ in range(40):
            damaged = np.frombuffer(data.getvalue(), dtype=np.uint8).copy()
            damaged[rng.integers(len(damaged), size=5)] = rng.integers(256, size=5)
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(damaged.tobytes())
            try:
                assert read_image(path).mode == "RGB"
            except ImageError as error:
                assert path.name in str(error)


def test_what_is_no_image_is_named(tmp_path, monkeypatch):
    (tmp_path / "notes.png").write_text("hello")
    (tmp_path / "nothing.png").touch()
    Image.new("L", (50, 50)).save(tmp_path / "big.png")
    for name, reason in [
        ("notes.png", "not an image"),
        ("nothing.png", "empty"),
        ("missing.png", "no such file"),
        ("", "folder"),
    ]:
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="big.png: too large"):
        read_image(tmp_path / "big.png")


def test_a_small_file_of_many_pixels_is_refused_unread(tmp_path):
    """A kilobyte or so that would take more than 4 GB to fill."""
    Image.new("1", (8192, 8193)).save(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match="a.png: too large: 8192x8193 pixels, at most 67,108,864 are read; scale it down"
    ):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO", "PDF", "PCX"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, rng, kind):
    """Pillow would hand EPS to Ghostscript."""
    picture(rng).save(tmp_path / "a.png", kind)
    with pytest.raises(ImageError, match="a.png: not an image in a known format .PNG, JPEG"):
        read_image(tmp_path / "a.png")


def png_file(width, height, color_type, depth, interlaced, data):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header)] + [chunk(b"PLTE", bytes(6))] * (color_type == 3)
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    "color_type, depth, interlaced, rows",
    [
        # Bytes of each row of 5x3 pixels by hand: a filter's number, then the pixels.
        (0, 8, 0, [1 + 5] * 3),
        (2, 8, 0, [1 + 15] * 3),
        (2, 16, 0, [1 + 30] * 3),
        (3, 1, 0, [1 + 1] * 3),
        (6, 8, 0, [1 + 20] * 3),
        # Passes of 1x1, 1x1, none, 1x1, 3x1, two rows of 2, 5x1.
        (0, 8, 1, [1 + 1, 1 + 1, 1 + 1, 1 + 3, 1 + 2, 1 + 2, 1 + 5]),
    ],
)
def test_a_png_that_ends_early_is_an_image_error(tmp_path, color_type, depth, interlaced, rows):
    """Its checksums are right: whoever wrote it stopped too soon. Pillow takes the missing rows for black."""
    path = tmp_path / "a.png"
    for count in range(1, len(rows) + 1):
        path.write_bytes(png_file(5, 3, color_type, depth, interlaced, bytes(sum(rows[:count]))))
        if count == len(rows):
            assert read_image(path).size == (5, 3)  # black, and whole
        else:
            assert Image.open(path).convert("RGB").size == (5, 3)
            with pytest.raises(ImageError, match="a.png: can't be decoded: its pixels end early"):
                read_image(path)


def test_black_pngs_are_whole(tmp_path):
    """What Pillow writes isn't taken for cut off, whatever the size."""
    for mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16"):
        for size in ((1, 1), (1, 9), (9, 1), (2, 2), (300, 200)):
            Image.new(mode, size).save(tmp_path / "a.png")
            assert read_image(tmp_path / "a.png").size == size


# --- find_images, ImageFolder -----------------------------------------------------------------------------------------


def test_find_images_any_nesting_sorted_without_hidden_ones(tmp_path):
    names = [
        "b.PNG",
        "a/c.JPeG",
        "a/deep/er/d.webp",
        "z/ünï çø∂é 日本.gif",
        ".hidden.png",
        ".cache/e.png",
        "a/notes.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == sorted(["b.PNG", "a/c.JPeG", "a/deep/er/d.webp", "z/ünï çø∂é 日本.gif"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_no_images(tmp_path):
    picture(np.random.default_rng(0)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "nowhere.png"]  # which somebody may miss
    for name in ("pipe.png", "link.png"):
        with pytest.raises(ImageError, match=f"{name}: can't be read: not a file but a pipe"):
            read_image(tmp_path / name)


def test_find_images_follows_links_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").touch()
    try:
        (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "data")
    except OSError:
        pytest.skip("no symbolic links here")
    assert [path.name for path in find_images(tmp_path / "data")] == ["a.png"]


def test_missing_and_empty_folders_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(tmp_path / "nowhere", 16)
    with pytest.raises(DataError, match="no images"):
        load_dataset(tmp_path, 16)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="not a folder"):
        load_dataset(tmp_path / "a.png", 16)


def test_classes_come_from_the_first_level(tmp_path, rng):
    for name in ["dog/1.png", "cat/x/2.png", "cat/y/3.png", "Émoji 😀/4.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(rng).save(tmp_path / name)
    data = ImageFolder(tmp_path, 8)
    assert data.class_names == sorted(["dog", "cat", "Émoji 😀"])
    assert data.labels.dtype == np.int64
    for path, label in zip(data.paths, data.labels, strict=True):
        assert path.relative_to(tmp_path).parts[0] == data.class_names[label]


def test_classes_are_the_same_on_both_sides(tmp_path, rng):
    for i in range(40):
        (tmp_path / f"class {i}").mkdir()
        picture(rng, 4, 4).save(tmp_path / f"class {i}" / "only.png")
    train, val = (ImageFolder(tmp_path, 4, split, val_fraction=0.5) for split in ("train", "val"))
    assert train.class_names == val.class_names and len(train.class_names) == 40
    assert len(train) + len(val) == 40


def test_no_classes_when_images_lie_in_the_root(tmp_path, rng):
    picture(rng).save(tmp_path / "1.png")
    data = ImageFolder(tmp_path, 8)
    assert data.class_names == [] and data.labels.tolist() == [0]
    (tmp_path / "sub").mkdir()
    picture(rng).save(tmp_path / "sub/2.png")
    with pytest.warns(UserWarning, match=r"no classes.*1\.png"):
        data = ImageFolder(tmp_path, 8)
    assert data.class_names == [] and len(data) == 2


def test_corrupt_files_are_named_counted_and_skipped(tmp_path, rng):
    for i in range(5):
        picture(rng, 60, 60).save(tmp_path / f"{i}.jpg")
    data = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "3.jpg").write_text("hello")
    with pytest.warns(UserWarning, match=r"skipped 2 unreadable") as caught:
        dataset = ImageFolder(tmp_path, 16)
    assert "1.jpg" in str(caught[0].message) and "3.jpg" in str(caught[0].message)
    assert [path.name for path in dataset.paths] == ["0.jpg", "2.jpg", "4.jpg"]
    assert [path.name for path, _ in dataset.skipped] == ["1.jpg", "3.jpg"]
    assert len(dataset) == len(dataset.labels) == 3


def test_only_corrupt_files_is_an_error_and_late_damage_is_named(tmp_path, rng):
    (tmp_path / "a.png").write_text("hello")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="1 unreadable"):
        ImageFolder(tmp_path, 16)
    with pytest.raises(ImageError, match=r"a\.png"):
        ImageFolder(tmp_path, 16, check=False).image(0)


def test_plain_view_is_the_resized_centre(tmp_path):
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = (10, 200, 30)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for size in (1, 5, 10, 23):
        view = ImageFolder(tmp_path, size).image(0)
        assert view.shape == (size, size, 3) and view.dtype == np.uint8
        assert (view == (10, 200, 30)).all()


def test_wrong_arguments(tmp_path, rng):
    picture(rng).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="image_size=0"):
        ImageFolder(tmp_path, 0)
    with pytest.raises(DataError, match="unknown split 'test'"):
        ImageFolder(tmp_path, 8, "test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="val_fraction=1.5"):
        ImageFolder(tmp_path, 8, "val", val_fraction=1.5)
    with pytest.raises(DataError, match="'val' with val_fraction=0"):
        ImageFolder(tmp_path, 8, "val", val_fraction=0)


# --- the split --------------------------------------------------------------------------------------------------------


def test_split_is_the_same_in_another_process(rng):
    keys = [f"{rng.integers(10**9)}/ünï {i}.png" for i in range(200)]
    here = [in_validation(key, 0.3) for key in keys]
    code = (
        "import sys, json; from maskgit.data import in_validation; "
        "print(json.dumps([in_validation(k, 0.3) for k in json.loads(sys.stdin.read())]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(keys), env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == here


def test_split_is_pinned():
    """These sides must never change: models in use were trained on them."""
    keys = ["1f34e", "1f600", "cat/1.png", "日本", "a", "b", "c", "d"]
    assert [in_validation(key, 0.5) for key in keys] == [True, True, False, False, True, False, True, False]


def test_split_does_not_depend_on_the_other_files_or_the_fraction(tmp_path, rng):
    keys = [str(rng.integers(10**12)) for _ in range(4000)]
    val = split_indices(keys, "val", 0.1)
    train = split_indices(keys, "train", 0.1)
    assert sorted(val + train) == list(range(4000)) == split_indices(keys, "all", 0.1)
    assert 280 < len(val) < 520  # 400 expected, 19 standard deviation
    assert set(val) <= set(split_indices(keys, "val", 0.2))
    assert split_indices(keys, "val", 0) == split_indices(keys, "train", 1) == []
    fewer = split_indices(keys[::2], "val", 0.1)
    assert [2 * i for i in fewer] == [i for i in val if i % 2 == 0]


def test_split_is_blind_to_unicode_normal_forms():
    for i in range(50):
        composed = f"é{i}.png"
        assert in_validation(composed, 0.5) == in_validation(unicodedata.normalize("NFD", composed), 0.5)
    assert isinstance(in_validation("bad \udcff bytes.png", 0.5), bool)


# --- views ------------------------------------------------------------------------------------------------------------


def test_view_is_replayed_by_the_generator_alone(tmp_path, rng):
    for i in range(3):
        picture(rng, 30 + 10 * i, 45).save(tmp_path / f"{i}.png")
    data, seed = ImageFolder(tmp_path, 16), int(rng.integers(2**32))
    first = [data.view(i, np.random.default_rng(seed + i), AugmentConfig()) for i in range(3)]
    np.random.seed(0)
    again = [data.view(i, np.random.default_rng(seed + i), AugmentConfig()) for i in (2, 1, 0)][::-1]
    np.testing.assert_array_equal(first, again)
    other = data.view(0, np.random.default_rng(seed + 99), AugmentConfig())
    assert (other != first[0]).any()


def test_view_takes_as_many_numbers_whatever_comes_out(tmp_path, rng):
    picture(rng, 30, 40).save(tmp_path / "a.png")
    data, seed = ImageFolder(tmp_path, 8), int(rng.integers(2**32))
    after = set()
    for augment in (AugmentConfig(), AugmentConfig(flip=0), AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1))):
        generator = np.random.default_rng(seed)
        data.view(0, generator, augment)
        after.add(generator.random())
    assert len(after) == 1


def test_augmentation_off_is_the_plain_view(tmp_path, rng):
    picture(rng, 30, 20).save(tmp_path / "a.png")
    data = ImageFolder(tmp_path, 16)
    np.testing.assert_array_equal(data.view(0, rng, AugmentConfig(enabled=False)), data.image(0))


def test_flip_alone_flips(tmp_path, rng):
    picture(rng, 16, 16).save(tmp_path / "a.png")
    data = ImageFolder(tmp_path, 16)
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    np.testing.assert_array_equal(data.view(0, rng, AugmentConfig(flip=1, **whole)), data.image(0)[:, ::-1])
    np.testing.assert_array_equal(data.view(0, rng, AugmentConfig(flip=0, **whole)), data.image(0))


def test_crops_stay_inside_and_have_the_promised_area_and_ratio(rng):
    augment = AugmentConfig(crop_scale=(0.2, 0.7), crop_ratio=(0.75, 1.25))
    for _ in range(500):
        width, height = rng.integers(1, 500, size=2).tolist()
        left, top, right, bottom = random_crop(width, height, augment, rng)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        area = (right - left) * (bottom - top) / min(width, height) ** 2
        assert 0.2 - 1e-6 <= area <= 0.7 + 1e-6
        assert 0.75 - 1e-6 <= (right - left) / (bottom - top) <= 1.25 + 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_tiny_images(tmp_path, rng, size):
    picture(rng, *size).save(tmp_path / "a.png")
    data = ImageFolder(tmp_path, 8)
    assert data.image(0).shape == (8, 8, 3)
    for _ in range(20):
        assert data.view(0, rng, AugmentConfig()).shape == (8, 8, 3)


def test_center_square():
    assert center_square(10, 4) == (3, 0, 7, 4)
    assert center_square(4, 9) == (0, 2, 4, 6)


@pytest.mark.parametrize(
    "wrong", [{"crop_scale": (0, 1)}, {"crop_scale": (0.9, 0.5)}, {"crop_ratio": (2, 1)}, {"flip": 1.2}]
)
def test_wrong_augmentation_names_the_field(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentConfig(**wrong)
