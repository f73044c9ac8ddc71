"""Checkpoints of a tokenizer and of a transformer, put together and written as a model folder."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from maskgit.config import ConfigError
from maskgit.convert.formats import TokenizerFormat, TransformerFormat, find_parts
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError, read_checkpoint
from maskgit.convert.weights import Weights
from maskgit.network.folder import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    Model,
    ModelError,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

PARTIAL = ".partial-model"  # in the folder that is being made; what is in it moves up when all of it is there

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
    """Write a model folder made of other people's checkpoints; returns what was found in them.

    Args:
        files, hints: as for `read_model`.
        output: the model folder; must not exist yet, be empty, or hold nothing but what a conversion that was killed
            has left there.
        class_names: of the transformer's classes, in the order of their numbers; may be left out.

    Raises:
        ConvertError: as `read_model`; or `output` is taken, or the class names aren't as many as the classes. Nothing
            is written then.
        OSError: the folder can't be written.
    """
    output = Path(output)
    _check_free(output, files)
    found = read_model(files, hints)
    if class_names and found.transformer is None:
        raise ConvertError("class names were given, but no transformer, whose classes they would name")
    try:
        with _made_whole(output) as partial:
            if found.transformer is None:
                save_tokenizer(partial, found.tokenizer.network)
            else:
                parts: tuple[Part, ...] = (found.tokenizer, found.transformer)
                origin = [{"file": _text(part.path.name), "system": part.system, "notes": part.notes} for part in parts]
                metadata = {"converted_from": origin}
                save_model(partial, Model(parts[0].network, parts[1].network, list(class_names), metadata))
    except ModelError as error:
        raise ConvertError(str(error)) from error
    return found


def _text(name: str) -> str:
    """A file's name, which needs not be valid text, as what JSON can hold."""
    return name.encode(errors="backslashreplace").decode()


def _check_free(output: Path, files: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Raise a ConvertError if there is anything at `output` that isn't the rest of a conversion that was killed."""
    if not os.path.lexists(output):
        return
    for path in map(Path, files):
        if path.exists() and output.exists():
            if output.samefile(path):
                raise ConvertError(f"{output} is to be read: name the folder to be made behind the files")
            if any(output.samefile(parent) for parent in path.resolve().parents):
                raise ConvertError(
                    f"{output} exists already, and holds {path}, which is to be read: choose another name"
                )
    ours = {PARTIAL, TOKENIZER_FILE, TRANSFORMER_FILE} if (output / PARTIAL).is_dir() else set()
    if not output.is_dir() or not ours.issuperset(os.listdir(output)):
        raise ConvertError(f"{output} exists already: choose another name")


@contextmanager
def _made_whole(output: Path) -> Iterator[Path]:
    """A folder to save a model in; then its files go to `output`, all or none.

    A process that is killed leaves the folder behind, which tells the next that the files beside it are no one's.
    """
    _check_free(output)
    partial, made = output / PARTIAL, not output.exists()
    names = (TOKENIZER_FILE, TRANSFORMER_FILE, CONFIG_FILE)  # the last one makes it a model
    for name in names:  # if there, then left by a conversion that was killed
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for name in names:
            if (partial / name).exists():
                os.replace(partial / name, output / name)
    except BaseException:
        for name in names:
            (output / name).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(partial)
        if made and not os.listdir(output):
            output.rmdir()


def read_model(files: Sequence[str | os.PathLike[str]], hints: Hints | None = None) -> Conversion:
    """Read other people's checkpoints.

    Args:
        files: a tokenizer, or a tokenizer and the transformer over its tokens, in any order, or one file with both. A
            model folder of ours serves as a tokenizer too.

    Raises ConvertError: a file can't be converted, or the files don't go together; the message names the file.
    """
    hints = hints or Hints()
    tokenizers: list[Part[VQGAN]] = []
    transformers: list[tuple[Path, TransformerFormat, Weights]] = []  # read when the tokenizer is known
    for path in map(Path, files):
        with _naming(path):
            if path.is_dir():
                if not (path / CONFIG_FILE).exists():
                    raise ConvertError("a folder, but not a model folder of maskgit: name the checkpoint file in it")
                tokenizers.append(Part(path, "maskgit", load_tokenizer(path), []))
                continue
            for kind, weights in find_parts(read_checkpoint(path)):
                if isinstance(kind, TokenizerFormat):
                    tokenizers.append(Part(path, kind.system, kind.read(weights, hints), weights.notes))
                else:
                    transformers.append((path, kind, weights))
    twins = {"tokenizers": [part.path for part in tokenizers], "transformers": [path for path, *_ in transformers]}
    for what, paths in twins.items():
        if len(paths) > 1:
            raise ConvertError(f"{' and '.join(map(str, paths))} are both {what}; a model has one")
    if not tokenizers:
        path, kind, _ = transformers[0]
        raise ConvertError(f"{path} is a transformer ({kind.system}); give the file of its tokenizer too")
    (tokenizer,) = tokenizers
    if not transformers:
        return Conversion(tokenizer, None)
    ((path, kind, weights),) = transformers
    with _naming(path):
        network = kind.read(weights, hints, tokenizer.network.config.codebook_size)
        _fit_image_size(tokenizer.network, network, hints)
    return Conversion(tokenizer, Part(path, kind.system, network, weights.notes))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (ConvertError, ConfigError, ModelError) as error:
        raise ConvertError(f"{path}: {error}") from error


def _fit_image_size(tokenizer: VQGAN, transformer: Transformer | HaltonTransformer, hints: Hints) -> None:
    """A VQGAN works on images of any size; the transformer over its tokens doesn't."""
    grid = math.isqrt(transformer.config.num_tokens)
    size = grid * tokenizer.config.patch
    if hints.image_size not in (None, size):
        raise ConvertError(f"its {grid}x{grid} tokens stand for {size}x{size} pixels, not {hints.image_size}")
    tokenizer.config = dataclasses.replace(tokenizer.config, image_size=size)
