"""Other people's networks once more: random checkpoints in their layout, and what such a checkpoint computes.

Each function is written from the system's definition, in plain tensor operations on its own state dict, and knows
nothing of our networks. Loaded by its file, as a package named `originals`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from originals.google import google_tokenizer, google_transformer
from originals.lab import lab_transformer, lab_vqgan
from originals.parts import Maker, Tensors, Tokenizer, Transformer
from originals.taming import DIFFUSERS_ATTENTION, DIFFUSERS_ATTENTION_OF_OLD, diffusers, llamagen, taming
from originals.valeo import halton, valeo_maskgit

__all__ = [
    "DIFFUSERS_ATTENTION",
    "DIFFUSERS_ATTENTION_OF_OLD",
    "TOKENIZERS",
    "TRANSFORMERS",
    "Maker",
    "Tokenizer",
    "diffusers",
    "google_tokenizer",
    "google_transformer",
    "halton",
    "lab_transformer",
    "lab_vqgan",
    "llamagen",
    "taming",
    "valeo_maskgit",
    "write",
    "write_flax",
]

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "lab": lab_vqgan,
    "taming": taming,
    "llamagen": llamagen,
    "diffusers": lambda: diffusers(DIFFUSERS_ATTENTION),
    "google": google_tokenizer,
}

TRANSFORMERS: dict[str, Callable[[], Transformer]] = {
    "lab": lab_transformer,
    "valeo": valeo_maskgit,
    "halton": halton,
    "google": google_transformer,
}


def write(tensors: Tensors, path: object) -> None:
    """In the file format that the tensors' system uses."""
    if any(name.endswith(("kernel", "codebook")) for name in tensors):
        write_flax(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)  # type: ignore[arg-type]


def write_flax(tensors: Tensors, path: object) -> None:
    """What flax.serialization.to_bytes makes of {"params": ...}."""
    import msgpack

    tree: dict = {}
    for name, tensor in tensors.items():
        *folders, leaf = name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        dtype = str(tensor.dtype).removeprefix("torch.")
        data = tensor.flatten().view(torch.uint8).numpy().tobytes()
        place[leaf] = msgpack.ExtType(1, msgpack.packb((tuple(tensor.shape), dtype, data)))
    with open(path, "wb") as file:  # type: ignore[call-overload]
        file.write(msgpack.packb({"params": tree}))
