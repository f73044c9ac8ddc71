"""Checkpoints of a tokenizer and of a transformer, put together and written as a model folder."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from maskgit.convert.formats import TokenizerFormat, TransformerFormat, find_parts
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError, read_checkpoint
from maskgit.convert.weights import Weights
from maskgit.halton_transformer import HaltonTransformer
from maskgit.model_folder import CONFIG_FILE, Model, ModelError, load_tokenizer, save_model, save_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.transformer import Transformer

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass
class Part(Generic[NetworkT]):
    """A network, and where it comes from."""

    path: Path
    system: str
    """Whose layout the file has."""
    network: NetworkT
    """In float32 on the CPU, in evaluation mode."""
    notes: list[str]
    """What was assumed."""


@dataclass
class Conversion:
    """What was found in some checkpoints."""

    tokenizer: Part[VQGAN]
    transformer: Part[Transformer | HaltonTransformer] | None


def convert(
    files: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    hints: Hints | None = None,
    class_names: Sequence[str] = (),
) -> Conversion:
    """Write a model folder made of other people's checkpoints.

    Args:
        files, hints: as for `read_model`.
        output: the model folder; must not exist yet, or be empty.
        class_names: of the transformer's classes, in the order of their numbers; may be left out.

    Returns:
        What was found and written.

    Raises:
        ConvertError: as `read_model`; or `output` is taken, or the class names aren't as many as the classes. Nothing
            is written then.
        OSError: the folder can't be written.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConvertError(f"{output} exists already: choose another name, or delete it first")
    found = read_model(files, hints)
    if class_names and found.transformer is None:
        raise ConvertError("class names were given, but no transformer, whose classes they would name")
    try:
        if found.transformer is None:
            save_tokenizer(output, found.tokenizer.network)
        else:
            parts: tuple[Part, ...] = (found.tokenizer, found.transformer)
            origin = [{"file": part.path.name, "system": part.system, "notes": part.notes} for part in parts]
            model = Model(
                found.tokenizer.network, found.transformer.network, list(class_names), {"converted_from": origin}
            )
            save_model(output, model)
    except ModelError as error:
        raise ConvertError(str(error)) from error
    return found


def read_model(files: Sequence[str | os.PathLike[str]], hints: Hints | None = None) -> Conversion:
    """Read other people's checkpoints.

    Args:
        files: a tokenizer, or a tokenizer and the transformer over its tokens, in any order, or one file with both. A
            model folder of ours serves as a tokenizer too.
        hints: what the files leave unsaid.

    Raises:
        ConvertError: a file can't be converted, or the files don't go together; the message names the file.
    """
    hints = hints or Hints()
    tokenizers: list[Part[VQGAN]] = []
    transformers: list[tuple[Path, TransformerFormat, Weights]] = []
    for path in map(Path, files):
        with _naming(path):
            if path.is_dir():
                tokenizers.append(_own_tokenizer(path))
                continue
            for kind, weights in find_parts(read_checkpoint(path)):
                if isinstance(kind, TokenizerFormat):
                    tokenizers.append(Part(path, kind.system, kind.read(weights, hints), weights.notes))
                else:
                    transformers.append((path, kind, weights))
    for what, paths in (
        ("tokenizers", [part.path for part in tokenizers]),
        ("transformers", [path for path, _, _ in transformers]),
    ):
        if len(paths) > 1:
            raise ConvertError(f"{' and '.join(map(str, paths))} are both {what}; a model has one")
    if not tokenizers:
        path, kind, _ = transformers[0]
        raise ConvertError(f"{path} is a transformer ({kind.system}); give the file of its tokenizer too")
    tokenizer = tokenizers[0]
    if not transformers:
        return Conversion(tokenizer, None)
    path, kind, weights = transformers[0]
    with _naming(path):
        network = kind.read(weights, hints, tokenizer.network.config.codebook_size)
        _fit_image_size(tokenizer.network, network, hints)
    return Conversion(tokenizer, Part(path, kind.system, network, weights.notes))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error


def _own_tokenizer(folder: Path) -> Part[VQGAN]:
    if not (folder / CONFIG_FILE).exists():
        raise ConvertError("a folder, but not a model folder of maskgit: name the checkpoint file in it")
    try:
        return Part(folder, "maskgit", load_tokenizer(folder), [])
    except ModelError as error:
        raise ConvertError(str(error)) from error


def _fit_image_size(tokenizer: VQGAN, transformer: Transformer | HaltonTransformer, hints: Hints) -> None:
    """A VQGAN works on images of any size; the transformer over its tokens doesn't."""
    grid = math.isqrt(transformer.config.num_tokens)
    size = grid * tokenizer.config.patch
    if hints.image_size not in (None, size):
        raise ConvertError(f"its {grid}x{grid} tokens stand for {size}x{size} pixels, not {hints.image_size}")
    tokenizer.config = dataclasses.replace(tokenizer.config, image_size=size)
