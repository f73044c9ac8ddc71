"""Token shards: opening them for training, and going on with one that was cut off."""

from __future__ import annotations

import inspect
import io
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgit.data import AugmentConfig, DataError, ImageFolder, parts
from maskgit.data.tokens import TokenShard, tokenize
from maskgit.training.tokens import open_tokens

from .bending import NESTED, bend_bytes, bend_json, put_odd
from .cases import Case, Content, Group, Known, expect, with_file
from .seeds import CANARY, Seeds

TRAIN = Path("tokens/train")
ARRAYS = ("tokens.npy", "holes.npy", "labels.npy")
TABLES = ("tokens.json", "holes.json", "images.json")


def read_all(seeds: Seeds, shard: TokenShard, classes: int) -> None:
    """Read each image in several views, as training does."""
    config = seeds.model.tokenizer.config
    for array in (shard.tokens, shard.holes):
        expect(array.dtype.kind in "iu", "tokens that aren't whole numbers")
    for i in range(len(shard)):
        for position in range(4):
            sample = shard[i, position]
            for part in (sample.tokens, sample.visible):
                expect(
                    part.dtype == torch.int64 and part.shape == (config.num_tokens,), "tokens of another shape or type"
                )
            for part in (sample.tokens, sample.visible[~sample.candidates]):
                expect(((part >= 0) & (part < config.codebook_size)).all(), "tokens outside the codebook")
            expect(0 <= int(sample.label) < max(1, classes), "labels of no class")


def use(seeds: Seeds) -> Case:
    """Open the shards of the folder tokens, and read all of them."""

    def call() -> None:
        shards = open_tokens(Path("tokens"), seeds.model.tokenizer, 0, 0.5)
        train, names = shards.train, shards.class_names
        expect(isinstance(names, list) and all(isinstance(name, str) for name in names), "class names that aren't text")
        read_all(seeds, train, len(names))

    return Case(call, (DataError,))


def go_on(seeds: Seeds, exact: bool = True) -> Case:
    """Tokenize pictures where part of the work is done.

    Args:
        exact: nothing but the true tokens will do; else any codes, as one that is another can't be told.
    """

    def call() -> np.ndarray:
        images = ImageFolder(seeds.folder / "pictures", 16)
        settings: dict[str, Any] = {"views": 2, "augment": AugmentConfig(), "seed": 0, "device": torch.device("cpu")}
        shard = tokenize(seeds.model.tokenizer, images, TRAIN, hole_share=1.0, holes=1, processes=0, **settings)
        read_all(seeds, shard, len(images.class_names))
        return np.array(shard.tokens)

    def check(tokens: np.ndarray) -> None:
        sound = np.load(seeds.folder / "tokens/train/tokens.npy")
        expect(tokens.shape == sound.shape and tokens.dtype == sound.dtype, "tokens of another shape or type")
        expect(not exact or np.array_equal(tokens, sound), "other tokens than those of the images")

    return Case(call, (DataError, OSError), check, keeps=True, changes="tokens")


def cut_off(seeds: Seeds) -> Path:
    """Make a run of which tokens.npy wasn't put together yet; the path of its one part of view 0."""
    seeds.take("tokens")
    sound = np.load(TRAIN / "tokens.npy")
    (TRAIN / "tokens.npy").unlink()
    description = json.loads((TRAIN / "tokens.json").read_text())
    folder = TRAIN / "tokens.parts"
    folder.mkdir()
    batch_size = inspect.signature(tokenize).parameters["batch_size"].default
    content = description | {"rows": parts.ROWS, "batch_size": batch_size}
    (folder / "parts.json").write_text(json.dumps(content, indent=2) + "\n")
    for view in range(2):
        np.save(folder / f"{view}-{0:012d}.npy", sound[view])
    return folder / f"0-{0:012d}.npy"


# --- arrays -----------------------------------------------------------------------------------------------------------


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def npy_with_header(text: str, data: bytes = b"\0" * 64, version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H", len(text)) if version[0] == 1 else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + data


class Evil:
    """An object whose pickle makes the canary when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f": > ../{CANARY}",)


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, tokens=array)
    return file.getvalue()


def bend_array(rng: random.Random, path: Path) -> None:
    array = np.load(path)
    wild = array.copy()
    wild.reshape(-1)[rng.randrange(wild.size)] = rng.choice((16, 17, 1000, 65534, 65535, 3))
    signed = array.astype(np.int64)
    signed.reshape(-1)[rng.randrange(signed.size)] = rng.choice((-1, 10**9, -(2**63), 2**40, 16))
    descr = rng.choice(("'<u2'", "'|O'", "'<f4'", "'<U9'", "[('a','<u2')]", "'<m8'", "x", "'<u2', 'x': 1", "'V2'"))
    shape = rng.choice(
        ("(2, 30, 16)", "(10**15,)", "(1000000000000000, 16)", "()", "(-1, 30, 16)", "(2, 30, 16, 0)", "x")
    )
    made = (
        *(
            npy(wild),
            npy(signed),
            npy(signed),
            npy(array.astype(np.float32)),
            npy(array.astype(bool)),
            npy(array[..., :1]),
        ),
        *(npy(array[:0]), npy(array[None]), npy(array.reshape(-1)), npy(np.array(3)), npy(np.asfortranarray(array))),
        *(
            npy(np.array([Evil(), None], dtype=object), True),
            npz(array),
            b"",
            npy(array)[:50],
            npy(array.astype(">u2")),
        ),
        npy_with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"),
        npy_with_header(rng.choice(("{", "(" * 5000, "{'descr': '<u2'", "[]", "\0", "x" * 60_000))),
        *(bend_bytes(rng, npy(array)), bend_bytes(rng, npy(array)[:128])[:200] + npy(array)[128:]),
    )
    path.write_bytes(rng.choice(made))


def shard_file(name: str, content: Content) -> Callable[[Seeds], Case]:
    return with_file(use, f"tokens/train/{name}", content, "tokens")


def array(name: str, make: Callable[[np.ndarray], bytes]) -> Callable[[Seeds], Case]:
    return shard_file(name, lambda data: make(np.load(io.BytesIO(data))))


def part(make: Callable[[np.ndarray], bytes]) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        path = cut_off(seeds)
        path.write_bytes(make(np.load(path)))
        return go_on(seeds)

    return known


def _huge(values: np.ndarray) -> bytes:
    return npy_with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000000,), }\n")


def _set(value: int) -> Callable[[np.ndarray], bytes]:
    return lambda values: npy(np.where(np.arange(values.size).reshape(values.shape) == 7, value, values))


KNOWN: Known = {
    "F4 token 16 of 16 codes": array("tokens.npy", lambda values: npy(np.full_like(values, 16))),
    "F4 token -1": array("tokens.npy", lambda values: npy(np.full(values.shape, -1))),
    "F4 token 16 in a hole's": array("holes.npy", lambda values: npy(np.full_like(values, 16))),
    "F4 floats": array("tokens.npy", lambda values: npy(values.astype(np.float32))),
    "F4 label -1": array("labels.npy", _set(-1)),
    "F4 label 10^9": array("labels.npy", _set(10**9)),
    "F4 labels too few": array("labels.npy", lambda values: npy(values[:-1])),
    "F4 labels of text": array("labels.npy", lambda values: npy(values.astype(str))),
    **{f"F4 empty {name}": array(name, lambda values: b"") for name in ARRAYS},
    **{f"F4 no dimension, {name}": array(name, lambda values: npy(np.array(0))) for name in ARRAYS},
    "F4 one dimension": array("tokens.npy", lambda values: npy(values.reshape(-1))),
    "F4 broken header": array("tokens.npy", lambda values: npy_with_header("{" + "(" * 50)),
    "F4 npz": array("tokens.npy", npz),
    "F4 header of 10^15": array("labels.npy", _huge),
    "F4 holes of another shape": array("holes.npy", lambda values: npy(values[..., :3])),
    "F4 holes of another type": array("holes.npy", lambda values: npy(values.astype(np.float64))),
    "F4 class names of another type": shard_file("images.json", b'{"class_names": 7}'),
    "F4 nested": shard_file("images.json", NESTED),
    "F4 part of 0 bytes": part(lambda values: b""),
    "F4 part with a lying header": part(_huge),
    "F4 part without a dimension": part(lambda values: npy(np.array(3, dtype=np.uint16))),
    "F4 part of another shape": part(lambda values: npy(values[:1])),
    "F4 part of floats": part(lambda values: npy(values + 1.0)),
    "F10 pipe": shard_file("tokens.npy", None),
    "objects": array("labels.npy", lambda values: npy(np.array([Evil()], dtype=object), True)),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    if rng.random() < 0.25:
        path = cut_off(seeds)
        how = rng.random()
        if how < 0.6:
            bend_array(rng, path)
        elif how < 0.8:
            claim = path.with_name("parts.json")
            claim.write_bytes(bend_json(rng, json.loads(claim.read_text())))
        elif how < 0.9:
            put_odd(rng, rng.choice((path, path.with_name("parts.json"), TRAIN / "tokens.npy", TRAIN / "labels.npy")))
        else:
            shutil.rmtree(path.parent)
            put_odd(rng, path.parent)
        return go_on(seeds, exact=False)
    seeds.take("tokens")
    for name in rng.sample((*ARRAYS, *TABLES), rng.choice((1, 1, 2))):
        path = TRAIN / name
        if rng.random() < 0.1:
            put_odd(rng, path)
        elif path.suffix == ".npy":
            bend_array(rng, path)
        else:
            path.write_bytes(bend_json(rng, json.loads(path.read_text())))
    return use(seeds)


GROUP = Group("token shards", KNOWN, random_case)
