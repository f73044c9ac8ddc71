"""What all groups do to sound inputs: bend bytes, JSON trees and text, and put odd things in a file's place."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**12, 10**30, 10**400),
    *(0.5, 1.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "x", "0", "1", "-1", "1e9", "false", "null", "nan", "../x", "/dev/zero", "/proc/self/mem", "a/b", "~"),
    *(
        "\x1b[31mred",
        "two\nlines",
        "\r",
        "\u202eback",
        "e\u0301",
        "\ud800",
        "²",
        "٣",
        "x" * 300,
        "9" * 5000,
        "%s",
        "{}",
    ),
)
NAMES = [text for text in TEXTS if 0 < len(text) < 300 and not set(text) & set("/\ud800")]
"""Texts that files can be called by."""
VALUES: tuple[Any, ...] = (*NUMBERS, *TEXTS, None, True, False, [], {}, [1, 2], [[]], {"a": 1}, [None] * 3)
NESTED = b"[" * 100_000 + b"]" * 100_000


def as_json(value: Any) -> bytes:
    """JSON as Python writes it: with NaN and Infinity, and lone surrogates escaped."""
    return json.dumps(value).encode()


def bend_tree(rng: random.Random, tree: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """A copy of a JSON tree in which some values are others, are gone, or have other names."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = rng.choice(places)
        how = rng.random()
        if how < 0.75:
            parent[key] = copy.deepcopy(rng.choice(values))
        elif how < 0.9:
            del parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice((*TEXTS, str(key).upper()))] = parent.pop(key)
        else:
            parent += [copy.deepcopy(parent[key])] * rng.choice((1, 1, 50))
    return tree


def _places(tree: Any) -> Any:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in list(children):
        yield tree, key
        yield from _places(child)


def bend_json(rng: random.Random, tree: Any, values: tuple[Any, ...] = VALUES) -> bytes:
    """The bytes of a JSON file: mostly a bent tree, else bent as text."""
    how = rng.random()
    if how < 0.75:
        return as_json(bend_tree(rng, tree, values))
    text = json.dumps(tree)
    edits: tuple[Callable[[], str | bytes], ...] = (
        lambda: text[: rng.randrange(len(text))],
        lambda: text + rng.choice(("}", "\0", text, "//", ",")),
        lambda: text.replace("{", '{"seed": 1, "seed": 2, ', 1),
        lambda: text.replace('"', "'"),
        lambda: text.replace(":", ":" + "[" * rng.choice((900, 1100, 50_000)), 1),
        lambda: text.replace("1", "1" + "0" * rng.choice((20, 400, 5000)), 1),
        lambda: rng.choice((NESTED, b'{"a":' * 100_000, "", "[]", "null", "1", '"x"', "{}", "NaN", "\0" * 99)),
        lambda: text.encode(rng.choice(("utf-8-sig", "utf-16", "utf-32"))),
        lambda: bend_bytes(rng, text.encode()),
    )
    made = rng.choice(edits)()
    return made.encode() if isinstance(made, str) else made


def bend_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut off, repeated, inserted or set to an extreme; damage falls on the start by half."""
    if not data:
        return data
    changed = bytearray(data)
    near = len(data) if rng.random() < 0.5 else min(len(data), 256)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place, width = rng.randrange(near), rng.choice((1, 1, 2, 4, 8, 100))
        here = bytes(changed[place : place + width])
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in here)
        extremes = b"\xff" * width, bytes(width), b"\x7f" + b"\xff" * (width - 1), bytes(width - 1) + b"\x80"
        changed[place : place + width] = rng.choice((flipped, flipped, *extremes, b"9" * width, here * 2, b""))
    if rng.random() < 0.25:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def put_odd(rng: random.Random, path: Path) -> None:
    """Something else where a file is expected: no file at all, a folder, a pipe that nobody writes, a device."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    odd: tuple[Callable[[], object], ...] = (
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/null"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(rng.randbytes(1000)),
        lambda: (path.touch(), os.truncate(path, 2**30)),
    )
    rng.choice(odd)()
