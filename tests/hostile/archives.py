"""Tar archives of pictures: `ImageShards`, and every picture in it."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgit.data import ImageError, ImageShards
from maskgit.data.images import DataError

from .bending import NAMES, NESTED, TEXTS, bend_bytes, bend_json, put_odd
from .cases import Case, Content, Group, Known, expect, with_file
from .pictures import png, random_file
from .seeds import PICTURE, Seeds

Member = tuple[str, bytes, dict[str, Any]]
"""Name, content, and fields of the header; those called pax_headers among them."""


def use(spec: str = "x.tar", check: bool = True) -> Case:
    def call() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = ImageShards(spec, 16, check=check)
        names = images.class_names
        for i in range(len(images)):
            expect(0 <= images.labels[i] < max(1, len(names)), "a label of no class")
            try:
                expect(images.image(i).shape == (16, 16, 3), "a view of another size")
            except ImageError:
                expect(not check, "a damaged picture was kept")

    return Case(call, (DataError, ImageError))


def tar(members: list[Member], style: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=style) as archive:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return file.getvalue()


def patch_header(data: bytes, place: int, value: bytes, header: int = 0) -> bytes:
    """Write into a header of 512 bytes, and make its checksum fit."""
    block = bytearray(data[header : header + 512])
    block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:header] + bytes(block) + data[header + 512 :]


SAMPLES: list[Member] = [
    *((f"a/{i}.{suffix}", data, {}) for i in range(3) for suffix, data in (("png", PICTURE), ("cls", b"%d" % i))),
    ("a/2.json", b'{"label": 1}', {}),
]
SOUND = tar(SAMPLES)


def archive(content: Content) -> Callable[[Seeds], Case]:
    return with_file(lambda seeds: use(), "x.tar", content)


def member(name: str, content: bytes, **pax: str) -> Callable[[Seeds], Case]:
    """The samples and another file, with PAX headers, in whose names '__' stands for a dot."""
    headers = {key.replace("__", "."): value for key, value in pax.items()}
    return archive(tar([*SAMPLES, (name, content, {"pax_headers": headers} if pax else {})]))


def record(text: bytes) -> Callable[[Seeds], Case]:
    """A PAX record as it is, before the samples."""
    return archive(patch_header(tar([("p", text, {})])[:1024], 156, b"x") + SOUND)


KNOWN: Known = {
    "F9 GNU.sparse.map": member("b.png", PICTURE, GNU__sparse__map="a,b"),
    "F9 GNU.sparse.size": member("b.png", b"", GNU__sparse__size="abc", GNU__sparse__major="1"),
    "F9 hdrcharset": record(b"17 hdrcharset=\xff\n"),
    "F9 length of a record": record(b"99999999999999999999 path=x\n"),
    "F9 nested": member("a/3.json", NESTED),
    "F9 size of -512": archive(patch_header(SOUND, 124, b"\xff" * 10 + b"\xfe\0")),
    "F9 10^9 names": lambda seeds: use("{000000000..999999999}.tar"),
    "10^12 names": lambda seeds: use("{0000..9999}{0000..9999}{0000..9999}.tar"),
    "F10 pipe": archive(None),
    "label of 10^5000": member("a/3.cls", b"1" + b"0" * 5000),
    "177 megapixels": archive(lambda _: tar([("a.png", png(13300, 13300, 1, 0), {})])),
    "mtime of 1e308": member("b.png", PICTURE, mtime="1e308"),
    "mtime of nan": member("b.png", PICTURE, mtime="nan", size="-1"),
    "nothing": member("a/4.png", b""),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    if rng.random() < 0.05:
        numbers = ("0..3", "3..0", "0..99999999", "a,b", "", "x", "0.." + "9" * 50, "{0..2", "..", "1..2..3")
        spec = "".join(f"{{{rng.choice(numbers)}}}" for _ in range(rng.choice((1, 2, 5))))
        return use(rng.choice(("", "*", "[", "**/", "/proc/*/", "x" * 300)) + spec + ".tar")
    members = list(SAMPLES)
    for _ in range(rng.choice((0, 1, 1, 2))):
        texts = [text for text in TEXTS if "\ud800" not in text]
        fields: dict[str, Any] = rng.choice(
            (
                {},
                {"type": bytes([rng.choice(b"123567SLKxgV\0")])},
                {"linkname": rng.choice(("a/0.png", "/dev/zero")), "type": rng.choice((b"1", b"2"))},
                {"pax_headers": {rng.choice(("size", "path", "mtime", "uid", "GNU.sparse.map")): rng.choice(texts)}},
                {"mode": 0, "mtime": rng.choice((0, -1, 2**40, 1.5))},
            )
        )
        name = rng.choice(
            ("a/0.png", "/a/9.png", "../9.png", ".png", "a/9", "a/", "9.PNG", "a/1.cls", "a/2.json", *NAMES)
        )
        labels = (b"0", b"-1", b"x", b"", b"1" * 30, b"\xff", b"70000", "²".encode(), b" 1\n", b"1.5", NESTED)
        tree = bend_json(rng, {"label": rng.choice((1, "x")), "more": [1, {"label": 2}]})
        content = rng.choice((PICTURE, random_file(rng), bend_bytes(rng, PICTURE), rng.choice(labels), tree, tree))
        members.insert(rng.randrange(len(members) + 1), (name, content, fields))
    try:
        data = tar(members, rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
    except (ValueError, UnicodeError, OverflowError):  # what the format has no place for
        data = SOUND
    how = rng.random()
    if how < 0.2:
        values = (b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\1", b"77777777777\0", b"-0000000001\0", b"\0" * 12, b"9" * 12)
        place = rng.choice((0, 100, 108, 124, 136, 156, 157, 257, 345))
        data = patch_header(data, place, rng.choice(values), 512 * rng.choice((0, 0, 2)))
    elif how < 0.5:
        data = bend_bytes(rng, data)
    elif how < 0.6:
        data = rng.choice(
            (gzip.compress(data), data[: rng.randrange(len(data))], data + data, data.rstrip(b"\0"), bytes(1024))
        )
    Path("x.tar").write_bytes(data)
    if how > 0.98:
        put_odd(rng, Path("x.tar"))
    return use(check=rng.random() < 0.7)


GROUP = Group("tar archives", KNOWN, random_case)
