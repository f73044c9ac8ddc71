"""Reading an image file, whatever is in it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskgit.data import ImageError, read_image


def picture(rng, width=20, height=20):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


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
