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

from .bending import NESTED, as_json, bend_bytes, bend_json, put_odd
from .cases import Case, Content, Group, Known, with_file
from .configurations import FOLDER, use
from .seeds import Seeds

FILES = ("tokenizer.safetensors", "transformer.safetensors")
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
Table = dict[str, Tensor]


def damage(rng: random.Random, table: Table) -> None:
    """Change a tensor so that it is no weight of its place any more, or hardly."""
    name = rng.choice(sorted(name for name, tensor in table.items() if tensor.numel()))  # some are damaged already
    tensor = torch.atleast_1d(table[name])
    flat = tensor.clone().flatten()
    flat[rng.randrange(len(flat))] = rng.choice((float("nan"), float("inf"), float("-inf"), 3e38, 1e-42))
    damaged: tuple[Tensor, ...] = (
        *(flat.view(tensor.shape), torch.full_like(tensor, rng.choice((float("nan"), 0.0, 3e38)))),
        *(tensor.to(rng.choice(DTYPES)), tensor[:0].clone(), tensor[None], tensor.flatten()),
        *(tensor.repeat_interleave(2, 0), torch.tensor(0.0), -1 * tensor, torch.atleast_2d(tensor).mT.contiguous()),
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


def weights_file(content: Content, file: str = FILES[0]) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        forget_digests(FOLDER)
        return use(seeds)

    return with_file(known, f"model/{file}", content, "model")


def tensor(name: str, change: Callable[[Tensor], Tensor], file: str = FILES[0]) -> Callable[[Seeds], Case]:
    def content(data: bytes) -> bytes:
        table = safetensors.torch.load(data)
        return safetensors.torch.save({**table, name: change(table[name])})

    return weights_file(content, file)


KNOWN: Known = {
    "F3 codebook of NaN": tensor("codebook.weight", lambda codes: codes * float("nan")),
    "F3 transformer of NaN": tensor("token_embedding.weight", lambda codes: codes * float("nan"), FILES[1]),
    "F3 infinite codebook": tensor("codebook.weight", lambda codes: codes * float("inf")),
    "F10 pipe": weights_file(None, FILES[1]),
    "F11 whole numbers": tensor("codebook.weight", lambda codes: codes.to(torch.int64)),
    "complex numbers": tensor("codebook.weight", lambda codes: codes.to(torch.complex64)),
    "nested header": weights_file(lambda data: with_header(NESTED, data)),
    "header of 2^63 bytes": weights_file(lambda data: with_header(b"{}", data, 2**63)),
    "header cut off": weights_file(lambda data: with_header(data[8:60], data)),
    "another save": with_file(use, f"model/{FILES[0]}", lambda data: data[:-1] + b"\1", "model"),
}


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
    return use(seeds)


GROUP = Group("safetensors", KNOWN, random_case)
