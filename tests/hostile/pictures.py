"""Picture files: read in both ways, as RGB and as they are stored, and then filled."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from maskgit import InpaintResult
from maskgit.data import ImageError, read_image
from maskgit.data.carried import read_picture

from .bending import NESTED, bend_bytes, put_odd
from .cases import Case, Group, Known, expect, with_file
from .seeds import Seeds

MODES = "1 L P PA LA La RGB RGBA RGBa CMYK YCbCr LAB HSV I F I;16 I;16B".split()
FORMATS = "PNG JPEG WEBP BMP GIF TIFF PPM AVIF TGA ICO PCX SGI DDS JPEG2000 IM".split()
PATH = Path("x.png")
SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".ppm", ".avif")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) show\nshowpage\n%%EOF\n"


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """A chunk of a PNG file, whose length may lie."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: int | None = None, extra: bytes = b"") -> bytes:
    """A PNG of zeros, made without a picture in memory. Colour 0 is gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.

    Args:
        rows: how many there are in the stream; None for all.
        extra: chunks before the pixels.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    rows, packer = height if rows is None else rows, zlib.compressobj(9)
    row = b"\0" * (1 + -(-width * channels * depth // 8) if rows else 0)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


BOMB = chunk(b"zTXt", b"text\0\0" + zlib.compress(bytes(20_000_000), 9))


def random_chunks(rng: random.Random) -> bytes:
    """Chunks of a PNG that describe the picture wrongly."""
    made = (
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(rng.randbytes(rng.choice((0, 10, 3000))))),
        BOMB.replace(b"zTXt", b"iCCP"),
        BOMB,
        chunk(b"eXIf", rng.choice((b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0", b"Exif\0\0", b"")) + rng.randbytes(60)),
        chunk(b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 300)))),
        chunk(b"gAMA", rng.randbytes(rng.choice((0, 4)))),
        chunk(b"acTL", struct.pack(">II", rng.choice((0, 2, 2**31)), 0)),
        chunk(b"fcTL", rng.randbytes(26)),
        chunk(b"pHYs", rng.randbytes(9)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
        chunk(b"zzZz", b"", rng.choice((2**31, 2**32 - 1, 7))),
    )
    return b"".join(rng.sample(made, rng.choice((1, 1, 2, 4))))


def random_image(rng: random.Random) -> Image.Image:
    """An image of any mode, some pixels large."""
    mode = rng.choice(MODES)
    size = rng.choice(((1, 1), (1, 40), (33, 2), (16, 16), (24, 20)))
    if mode == "F":
        values = np.frombuffer(rng.randbytes(4 * size[0] * size[1]), np.float32).reshape(size[::-1])
        return Image.fromarray(values)
    image = Image.new(mode, size)
    image.frombytes(rng.randbytes(len(image.tobytes())))
    if mode in ("P", "PA"):
        image.putpalette(rng.randbytes(3 * rng.choice((1, 16, 256))))
    return image


def random_file(rng: random.Random) -> bytes:
    """A picture file as some format stores it, with what formats allow beside the pixels."""
    for _ in range(20):
        image, file, form = random_image(rng), io.BytesIO(), rng.choice(FORMATS)
        options: dict[str, object] = {}
        if rng.random() < 0.3:
            exif = Image.Exif()
            exif[0x0112] = rng.choice((1, 2, 6, 8, 0, 9, 65535))
            options["exif"] = rng.choice((exif, bend_bytes(rng, exif.tobytes()), b"Exif\0\0" + rng.randbytes(60)))
        if rng.random() < 0.2:
            options["icc_profile"] = rng.randbytes(rng.choice((4, 128, 3000)))
        if form != "AVIF" and rng.random() < 0.2:  # writing frames of different kinds crashes Pillow 13
            options |= {"save_all": True, "append_images": [random_image(rng) for _ in range(rng.randrange(3))]}
        if rng.random() < 0.1:
            options["transparency"] = rng.choice((0, 255, b"\0\x80", (1, 2, 3)))
        try:
            image.save(file, form, **options)
            return file.getvalue()
        except Exception:  # a mode that this format doesn't have
            continue
    return b""


def random_png(rng: random.Random) -> bytes:
    """A PNG whose header, chunks and pixels don't agree."""
    sides = (0, 1, 2, 7, 16, 100, 2**31 - 1, 2**31, 2**32 - 1)
    width, height = (rng.choice(sides) for _ in range(2))
    small = rng.choice((1, 16, 40))
    data = png(small, small, rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1)), extra=random_chunks(rng))
    if rng.random() < 0.3:  # another size than there are pixels, or Adam7
        header = struct.pack(
            ">IIBBBBB", width, height, rng.choice((1, 8, 16)), rng.choice((0, 2, 6)), 0, 0, rng.randrange(3)
        )
        data = data[:8] + chunk(b"IHDR", header) + data[33:]
    return data


def expect_kept(image: Image.Image, mask: np.ndarray, result: InpaintResult) -> None:
    """The result has the size of the image, and outside the hole its pixels, if they are stored alike."""
    expect(result.image.size == image.size, "the result has another size")
    for original in (image, result.original):
        if original.mode.removesuffix("B") == result.image.mode:
            before, after = np.asarray(original), np.asarray(result.image)
            expect((before == after)[~mask].all(), "known pixels changed")


def use(seeds: Seeds, path: Path = PATH) -> Case:
    """Read a picture, and fill its lower half."""

    def call() -> None:
        for image in (read_image(path), read_picture(path).image):
            expect(min(image.size) > 0, "a picture without pixels was read")
            mask = np.zeros(image.size[::-1], dtype=bool)
            mask[image.height // 2 :] = True
            (result,) = seeds.model.inpaint([image], [mask], steps=1)
            expect_kept(image, mask, result)

    return Case(call, (ImageError,))


def refused(seeds: Seeds, path: Path = PATH) -> Case:
    """As `use`, of what is no whole picture."""
    return Case(lambda: read_image(path), (ImageError,), lambda image: expect(False, "no picture was taken for one"))


STRANGE = "e\x1b[31mvil\nname.png"

KNOWN: Known = {
    "F1 177 megapixels in 22 kB, 1 bit": with_file(use, "x.png", lambda _: png(13300, 13300, 1, 0)),
    "F1 177 megapixels, gray": with_file(use, "x.png", lambda _: png(13300, 13300, 8, 0)),
    "F10 pipe": with_file(use, "x.png", None),
    "F15 stream of 2 of 1000 rows": with_file(refused, "x.png", lambda _: png(1000, 1000, rows=2)),
    "F15 PostScript": with_file(refused, "x.png", POSTSCRIPT),
    "no width": with_file(refused, "x.png", png(0, 5)),
    "2^31 pixels wide": with_file(refused, "x.png", png(2**31 - 1, 1, rows=0)),
    "text that unpacks to 20 MB": with_file(use, "x.png", lambda _: png(5, 5, extra=BOMB)),
    "name that steers a terminal": with_file(lambda seeds: use(seeds, Path(STRANGE)), STRANGE, png(5, 5)),
    "nested": with_file(refused, "x.png", NESTED),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    path = Path(rng.choice(("x", "e\x1b[31mvil", "two\nlines", "\u202e", "x" * 240, "-", " ")) + rng.choice(SUFFIXES))
    how = rng.random()
    if how < 0.05:
        put_odd(rng, path)
        return use(seeds, path)
    if how < 0.051:  # as many as are read at most
        path.write_bytes(png(8192, 8192, 1, 0))
        return use(seeds, path)
    data = random_png(rng) if how < 0.35 else random_file(rng)
    path.write_bytes(bend_bytes(rng, data) if rng.random() < 0.6 else data)
    return use(seeds, path)


GROUP = Group("pictures", KNOWN, random_case)
