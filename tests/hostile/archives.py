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

from .bending import NESTED, TEXTS, bend_bytes, bend_json, pipe, put_odd
from .cases import Case, Group, expect
from .pictures import png, random_file
from .seeds import Seeds

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


def samples(seeds: Seeds) -> list[Member]:
    """Three pictures with classes."""
    members: list[Member] = []
    for i in range(3):
        members += [(f"a/{i}.png", seeds.png(), {}), (f"a/{i}.cls", b"%d" % i, {})]
    return [*members, ("a/2.json", b'{"label": 1}', {})]


def written(make: Callable[[Seeds], bytes]) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        Path("x.tar").write_bytes(make(seeds))
        return use()

    return known


def with_pax(**headers: str) -> Callable[[Seeds], Case]:
    """A PAX header before the second member; '__' stands for a dot."""
    values = {name.replace("__", "."): value for name, value in headers.items()}
    return written(lambda seeds: tar([*samples(seeds), ("b.png", seeds.png(), {"pax_headers": values})]))


def with_file(name: str, content: bytes) -> Callable[[Seeds], Case]:
    return written(lambda seeds: tar([*samples(seeds), (name, content, {})]))


def _pipe(seeds: Seeds) -> Case:
    pipe(Path("x.tar"))
    return use()


def with_record(record: bytes) -> Callable[[Seeds], Case]:
    """A PAX record as it is, before a member."""
    return written(lambda seeds: patch_header(tar([("p", record, {})])[:1024], 156, b"x") + tar(samples(seeds)))


KNOWN: dict[str, Callable[[Seeds], Case]] = {
    "F9 GNU.sparse.map": with_pax(GNU__sparse__map="a,b"),
    "F9 GNU.sparse.size": with_pax(GNU__sparse__size="abc", GNU__sparse__major="1", GNU__sparse__minor="0"),
    "F9 hdrcharset": with_record(b"17 hdrcharset=\xff\n"),
    "F9 length of a record": with_record(b"99999999999999999999 path=x\n"),
    "F9 nested": with_file("a/3.json", NESTED.encode()),
    "F9 size of -512": written(lambda seeds: patch_header(tar(samples(seeds)), 124, b"\xff" * 10 + b"\xfe\0")),
    "F9 10^9 names": lambda seeds: use("{000000000..999999999}.tar"),
    "10^12 names": lambda seeds: use("{0000..9999}{0000..9999}{0000..9999}.tar"),
    "F10 pipe": _pipe,
    "label of 10^5000": with_file("a/3.cls", b"1" + b"0" * 5000),
    "177 megapixels": written(lambda seeds: tar([("a.png", png(13300, 13300, 1, 0), {})])),
    "mtime of 1e308": with_pax(mtime="1e308"),
    "mtime of nan": with_pax(mtime="nan", size="-1"),
    "nothing": with_file("a/4.png", b""),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    if rng.random() < 0.05:
        numbers = ("0..3", "3..0", "0..99999999", "a,b", "", "x", "0.." + "9" * 50, "{0..2", "..", "1..2..3")
        spec = "".join(f"{{{rng.choice(numbers)}}}" for _ in range(rng.choice((1, 2, 5))))
        return use(rng.choice(("", "*", "[", "**/", "/proc/*/", "x" * 300)) + spec + ".tar")
    members = samples(seeds)
    for _ in range(rng.choice((0, 1, 1, 2))):
        texts = [text for text in TEXTS if "\ud800" not in text]
        labels = (b"0", b"-1", b"x", b"", b"1" * 30, b"\xff", b"70000", "²".encode(), b" 1\n", b"1.5", NESTED.encode())
        fields: dict[str, Any] = rng.choice(
            (
                *(
                    {},
                    {
                        "type": rng.choice(
                            (b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"L", b"K", b"x", b"g", b"V", b"\0")
                        )
                    },
                ),
                *({"linkname": "a/0.png", "type": tarfile.SYMTYPE}, {"linkname": "/dev/zero", "type": tarfile.LNKTYPE}),
                {"pax_headers": {rng.choice(("size", "path", "mtime", "uid", "GNU.sparse.map")): rng.choice(texts)}},
                {"mode": 0, "mtime": rng.choice((0, -1, 2**40, 1.5))},
            )
        )
        name = rng.choice(
            ("a/0.png", "a/9.png", "/a/9.png", "../9.png", ".png", "a/9", "a/", "9.PNG", "9.a.png", *texts)
        )
        content = rng.choice((seeds.png(), random_file(rng), rng.choice(labels), bend_bytes(rng, seeds.png())))
        member: Member = (name, content, fields)
        if rng.random() < 0.4:
            kind = rng.choice(("cls", "json"))
            tree = {"label": rng.choice((1, "x")), "more": [1, {"label": 2}]}
            member = (
                f"a/{rng.randrange(4)}.{kind}",
                rng.choice(labels) if kind == "cls" else bend_json(rng, tree),
                fields,
            )
        members.insert(rng.randrange(len(members) + 1), member)
    try:
        data = tar(members, rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
    except (ValueError, UnicodeError, OverflowError):  # what the format has no place for
        data = tar(samples(seeds))
    how = rng.random()
    if how < 0.2:
        values = (b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\1", b"77777777777\0", b"-0000000001\0", b"\0" * 12, b"9" * 12)
        data = patch_header(
            data,
            rng.choice((0, 100, 108, 124, 136, 156, 157, 257, 345)),
            rng.choice(values),
            512 * rng.choice((0, 0, 2)),
        )
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
