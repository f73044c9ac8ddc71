"""A model's safetensors files: `MaskGIT.from_pretrained`, and then a picture from nothing."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .bending import NESTED, as_json, bend_bytes, bend_json, pipe, put_odd
from .cases import Case, Group
from .configurations import use
from .seeds import Seeds

FILES = ("tokenizer.safetensors", "transformer.safetensors")
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
Table = dict[str, Tensor]


def damage(rng: random.Random, table: Table) -> None:
    """Change a tensor so that it is no weight of its place any more, or hardly."""
    name = rng.choice(sorted(table))
    tensor = table[name]
    flat = tensor.clone().flatten()
    flat[rng.randrange(len(flat))] = rng.choice((float("nan"), float("inf"), float("-inf"), 3e38, 1e-42))
    damaged: tuple[Tensor, ...] = (
        *(flat.view(tensor.shape), torch.full_like(tensor, rng.choice((float("nan"), 0.0, 3e38)))),
        *(tensor.to(rng.choice(DTYPES)), tensor[:0].clone(), tensor[None], tensor.flatten()),
        *(tensor.repeat_interleave(2, 0), torch.tensor(0.0), -tensor, tensor.T.contiguous()),
    )
    how = rng.random()
    if how < 0.8:
        table[name] = rng.choice(damaged)
    elif how < 0.9:
        del table[name]
    else:
        table[rng.choice(("", "a" * 3000, "\x1b[31m", name + ".x", "__metadata__x"))] = tensor.clone()


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(text: bytes, rest: bytes, length: int | None = None) -> bytes:
    """The reverse; the length may lie."""
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


def forget_digests(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["sha256"]
    path.write_bytes(as_json(config))


def changed(change: Callable[[Table], object], file: str = FILES[0]) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        folder = seeds.take("model")
        table = safetensors.torch.load_file(folder / file)
        change(table)
        (folder / file).write_bytes(safetensors.torch.save(table))
        forget_digests(folder)
        return use(folder)

    return known


def rewritten(rewrite: Callable[[bytes], bytes], file: str = FILES[0]) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        folder = seeds.take("model")
        path = folder / file
        path.write_bytes(rewrite(path.read_bytes()))
        forget_digests(folder)
        return use(folder)

    return known


def _pipe(seeds: Seeds) -> Case:
    folder = seeds.take("model")
    pipe(folder / FILES[1])
    return use(folder)


def whole(name: str, value: float) -> Callable[[Table], object]:
    return lambda table: table[name].fill_(value)


KNOWN: dict[str, Callable[[Seeds], Case]] = {
    "F3 codebook of NaN": changed(whole("codebook.weight", float("nan"))),
    "F3 transformer of NaN": changed(whole("token_embedding.weight", float("nan")), FILES[1]),
    "F3 infinite codebook": changed(whole("codebook.weight", float("inf"))),
    "F10 pipe": _pipe,
    "F11 whole numbers": changed(lambda table: table.update({"codebook.weight": torch.ones(16, 4, dtype=torch.int64)})),
    "complex numbers": changed(
        lambda table: table.update({"codebook.weight": torch.ones(16, 4, dtype=torch.complex64)})
    ),
    "nested header": rewritten(lambda data: with_header(NESTED.encode(), data)),
    "header of 2^63 bytes": rewritten(lambda data: with_header(b"{}", data, 2**63)),
    "the same tensors twice": rewritten(lambda data: with_header(b"{" + data[9 : 9 + 60], data)),
    "another save": lambda seeds: _another_save(seeds),
}


def _another_save(seeds: Seeds) -> Case:
    folder = seeds.take("model")
    (folder / FILES[0]).write_bytes((folder / FILES[0]).read_bytes()[:-1] + b"\1")
    return use(folder)


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    folder, file = seeds.take("model"), rng.choice(FILES)
    path = folder / file
    how = rng.random()
    if how < 0.5:
        table = safetensors.torch.load_file(path)
        for _ in range(rng.choice((1, 1, 3))):
            damage(rng, table)
        path.write_bytes(safetensors.torch.save(table))
    elif how < 0.75:
        tree, rest = header(path.read_bytes())
        length = rng.choice((None, None, None, 0, 1, 2**31, 2**63, 2**64 - 1))
        path.write_bytes(with_header(bend_json(rng, tree), rest, length))
    elif how < 0.97:
        path.write_bytes(bend_bytes(rng, path.read_bytes()))
    else:
        put_odd(rng, path)
    if rng.random() < 0.9:
        forget_digests(folder)
    return use(folder)


GROUP = Group("safetensors", KNOWN, random_case)
