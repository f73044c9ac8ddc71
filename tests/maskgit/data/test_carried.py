"""What a picture carries: upright, known pixels bit by bit, profile and EXIF; what is lost is said."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from maskgit.data.carried import carry, fill_in, read_picture, turn_mask
from maskgit.data.reading import ImageError, to_rgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = ExifTags.Base.Orientation


def noise(mode: str, width: int = 7, height: int = 5) -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    if mode in ("1", "P"):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        return image.convert("1") if mode == "1" else image.quantize(9)
    bands = len(Image.new(mode, (1, 1)).getbands())
    data = rng.integers(0, 256, height * width * bands, dtype=np.uint8).tobytes()
    return Image.frombytes(mode, (width, height), data)


def reopened(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def oriented(image: Image.Image, orientation: int, kind: str = "PNG") -> Image.Image:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[ExifTags.Base.Make] = "a phone"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: b"in a sub-folder"}
    return reopened(image, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


KINDS = [("PNG", "RGBA"), ("PNG", "I;16"), ("WEBP", "RGB"), ("TIFF", "L")]
HOLE = np.zeros((5, 7), dtype=bool)
HOLE[1:4, 2:5] = True


# --- known pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_known_pixels_keep_mode_and_bits(mode: str) -> None:
    stored = noise(mode)
    picture, lost = carry(stored)
    assert picture.mode == mode and lost == ()
    fill = noise("RGB").transpose(Image.Transpose.ROTATE_180)
    result = fill_in(picture, fill, HOLE)
    assert result.mode == mode and np.array_equal(np.asarray(reopened(result)), np.asarray(result))
    before, after = np.asarray(stored), np.asarray(result)
    assert after.dtype == before.dtype and np.array_equal(after[~HOLE], before[~HOLE])
    if mode in ("LA", "RGBA"):
        assert (after[HOLE][:, -1] == 255).all()
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(after[HOLE][:, :3], np.asarray(fill)[HOLE])
    else:  # ITU-R 601
        grey = np.asarray(fill)[HOLE] @ (0.299, 0.587, 0.114)
        filled = after[HOLE][:, 0] if mode == "LA" else after[HOLE] / (257 if mode == "I;16" else 1)
        assert np.abs(filled - grey).max() <= 1


@pytest.mark.parametrize("mode, becomes", [("1", "L"), ("P", "RGB"), ("RGBX", "RGB")])
def test_other_modes_keep_their_colors(mode: str, becomes: str) -> None:
    stored = noise(mode)
    picture, lost = carry(stored)
    assert picture.mode == becomes and lost == ()
    assert [picture.getpixel((x, 2)) for x in range(7)] == [stored.convert(becomes).getpixel((x, 2)) for x in range(7)]


def test_a_transparent_color_becomes_alpha() -> None:
    for stored, key, other, mode in (
        (noise("P"), 3, 4, "RGBA"),
        (noise("L"), 7, 9, "LA"),
        (noise("RGB"), (1, 2, 3), (3, 2, 1), "RGBA"),
    ):
        stored.putpixel((2, 1), key)
        stored.putpixel((3, 1), other)
        picture, lost = carry(reopened(stored, transparency=key))
        assert picture.mode == mode and lost == ()
        assert picture.getpixel((2, 1))[-1] == 0 and picture.getpixel((3, 1))[-1] == 255
        colors = stored.convert("RGB")
        assert picture.convert("RGB").getpixel((2, 1)) == colors.getpixel((2, 1))
        assert picture.convert("RGB").getpixel((3, 1)) == colors.getpixel((3, 1))


def test_the_view_is_the_one_of_the_reader() -> None:
    """The model is shown what `read_image` gives, whatever the mode."""
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"):
        assert to_rgb(carry(noise(mode)).image).tobytes() == to_rgb(noise(mode)).tobytes(), mode


def test_sixteen_bits_of_every_kind() -> None:
    values = np.array([[0, 300, 65535]], dtype=np.uint16)
    for image in (
        Image.fromarray(values.astype(np.int32)),
        Image.fromarray(values.astype(">u2")),
        reopened(Image.fromarray(values), "TIFF"),
        reopened(Image.fromarray(values)),
    ):
        picture, lost = carry(image)
        assert picture.mode == "I;16" and np.asarray(picture).tolist() == [[0, 300, 65535]] and lost == ()
    dark = carry(reopened(Image.fromarray(values.clip(0, 200))))  # in a PNG of 16 bits that is nearly black
    assert dark.image.mode == "I;16" and np.asarray(dark.image).tolist() == [[0, 200, 200]] and not dark.lost
    picture, lost = carry(Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)))
    assert np.asarray(picture).tolist() == [[0, 65535]] and lost == ("values outside of 16 bits",)
    picture, lost = carry(Image.fromarray(np.array([[0.5, np.nan, 2.0]], dtype=np.float32)))
    assert np.asarray(picture).tolist() == [[32768, 0, 65535]] and "floating-point" in lost[0]


def test_a_fill_around_a_picture() -> None:
    for mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        picture, fill = carry(noise(mode)).image, noise("RGB", 12, 9)
        result = fill_in(picture, fill, corner=(3, 1))
        assert result.size == (12, 9) and result.mode == mode
        assert result.crop((3, 1, 10, 6)).tobytes() == picture.tobytes()
        assert abs(to_rgb(result).convert("L").getpixel((11, 8)) - fill.convert("L").getpixel((11, 8))) <= 1


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind, mode", KINDS)
def test_every_orientation(orientation: int, kind: str, mode: str) -> None:
    expected = ImageOps.exif_transpose(oriented(noise(mode), orientation, kind))
    image = oriented(noise(mode), orientation, kind)
    picture, lost = carry(image)
    assert picture.size == expected.size == ((7, 5) if orientation < 5 else (5, 7))
    assert np.array_equal(np.asarray(picture), np.asarray(expected)) and lost == ()
    exif = reopened(picture, exif=picture.info["exif"]).getexif()
    assert ORIENTATION not in exif and exif[ExifTags.Base.Make] == "a phone"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] == b"in a sub-folder"
    if kind != "TIFF":  # which Pillow turns by itself
        assert image.getexif()[ORIENTATION] == orientation and image.size == (7, 5), "the caller's image was changed"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_stored_size_is_turned(orientation: int) -> None:
    image = oriented(noise("L"), orientation)
    image.load()
    upright = carry(image).image
    shown = np.asarray(upright) == int(np.asarray(image)[1, 5])  # wherever this pixel went
    stored = np.asarray(image) == int(np.asarray(image)[1, 5])
    sizes = image.size, orientation, upright.size
    assert np.array_equal(turn_mask(shown, *sizes), shown)
    assert np.array_equal(turn_mask(stored, *sizes), shown if orientation >= 5 else stored)


# --- profile, EXIF ----------------------------------------------------------------------------------------------------


def test_the_profile_stays_where_it_fits(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA", "P"):
        picture, lost = carry(reopened(noise(mode), icc_profile=SRGB))
        assert lost == () and reopened(picture).info["icc_profile"] == SRGB
        assert reopened(fill_in(picture, noise("RGB"), HOLE)).info["icc_profile"] == SRGB
    grey = bytearray(SRGB)
    grey[16:20] = b"GRAY"
    for mode in ("L", "I;16"):
        assert carry(reopened(noise(mode), icc_profile=bytes(grey))).image.info["icc_profile"] == bytes(grey)
    noise("CMYK").save(tmp_path / "a.jpg", icc_profile=SRGB[:16] + b"CMYK" + SRGB[20:])
    picture, lost = read_picture(tmp_path / "a.jpg")
    assert picture.mode == "RGB" and picture.info == {}
    assert lost == ("the exact colors of CMYK, which become RGB", "its color profile, which isn't for RGB")


def test_an_unusual_gamma_is_said() -> None:
    for gamma, lost in ((45455, ()), (55556, ("its gamma of 0.55556",))):
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"gAMA", gamma.to_bytes(4, "big"))
        assert carry(reopened(noise("RGB"), pnginfo=chunks)).lost == lost
        assert carry(reopened(noise("RGB"), pnginfo=chunks, icc_profile=SRGB)).lost == ()


def test_the_thumbnail_of_the_original_is_not_kept() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a phone"
    block = bytearray(
        exif.tobytes()
    )  # "Exif\0\0", then a TIFF header and one directory whose last 4 bytes name the next
    thumbnail = b"\xff\xd8 THE ORIGINAL \xff\xd9"
    end = 6 + 8 + 2 + 12
    assert block[end : end + 4] == bytes(4)
    start = len(block) - 6
    block[end : end + 4] = start.to_bytes(4, "big")
    entries = ((513, 4, 1, start + 2 + 24 + 4), (514, 4, 1, len(thumbnail)))
    block += len(entries).to_bytes(2, "big")
    for tag, kind, count, value in entries:
        block += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + count.to_bytes(4, "big") + value.to_bytes(4, "big")
    block += bytes(4) + thumbnail
    image = reopened(noise("RGB"), "JPEG", exif=bytes(block))
    assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[514] == len(thumbnail)
    kept = carry(image).image.info["exif"]
    assert b"a phone" in kept and b"THE ORIGINAL" not in kept


def test_damage_is_an_image_error_or_an_image(tmp_path: Path) -> None:
    files = [oriented(noise(mode), 6, kind).fp.getvalue() for kind, mode in KINDS]
    exif = oriented(noise("RGB"), 6).info["exif"].removeprefix(b"Exif\0\0")
    plain = reopened(noise("RGB")).fp.getvalue()
    rng = np.random.default_rng(0)
    for number in range(400):
        data = exif if number % 2 else files[number // 2 % len(files)]
        damaged = np.frombuffer(data, dtype=np.uint8).copy()
        damaged[rng.integers(len(damaged), size=4)] = rng.integers(256, size=4)
        if number % 2:  # with a right checksum, or Pillow won't look at it
            damaged = np.frombuffer(plain[:33] + chunk(b"eXIf", damaged.tobytes()) + plain[33:], dtype=np.uint8)
        (tmp_path / "a").write_bytes(damaged.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow has some of its own
            try:
                assert png(read_picture(tmp_path / "a").image)
            except ImageError as error:
                assert str(error).startswith(f"{tmp_path / 'a'}: ")


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.info.get("exif"))
    return file.getvalue()


# --- what is lost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_are_said(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:])
    picture, lost = read_picture(tmp_path / "a")
    assert lost == ("all frames or pages but number 1",)
    assert np.abs(np.array(picture.getpixel((0, 0))[:3]) - (255, 0, 0)).max() <= 3
    frames[0].save(tmp_path / "a", kind)
    assert read_picture(tmp_path / "a").lost == ()


def sixteen_bit_png(color_type: int, channels: int) -> bytes:
    row = b"\0" + bytes(range(2 * channels * 3))
    header = struct.pack(">IIBBBBB", 3, 2, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")


def test_colors_of_sixteen_bits_are_said(tmp_path: Path) -> None:
    files = {"rgb": sixteen_bit_png(2, 3), "rgba": sixteen_bit_png(6, 4), "grey and alpha": sixteen_bit_png(4, 2)}
    files["ppm"] = b"P6 2 1 65535 " + bytes(12)
    files["ppm of 10 bits"] = b"P6 2 1 1023 " + bytes(12)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert read_picture(tmp_path / name).lost == ("16 bits a channel, of which Pillow reads 8",), name
    (tmp_path / "grey").write_bytes(sixteen_bit_png(0, 1))
    assert read_picture(tmp_path / "grey").lost == ()
    (tmp_path / "ppm").write_bytes(b"P6 2 1 255 " + bytes(6))
    assert read_picture(tmp_path / "ppm").lost == ()
