"""The command of the importers: `python -m maskgit.convert`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from maskgit.console import UsageError, printable, run_command
from maskgit.convert.conversion import Conversion, Part, convert
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError


@dataclass(frozen=True)
class Options:
    """Turn other people's MaskGIT checkpoints into a model folder: first the files, last the folder to be made.

    Known are the course lab's VQGAN and transformer, taming-transformers' VQGAN, valeo.ai's MaskGIT (2023) and
    Halton-MaskGIT (2025), LlamaGen's VQ, google-research's tokenizer and transformer, and diffusers' VQModel. Which one
    a file holds is found out from the file.

    A model needs a tokenizer and a transformer: give both files, in any order. A tokenizer alone makes a folder to
    train a transformer on (train.py transformer --tokenizer). Files are nothing but data here: one that would have to
    run code to be loaded is refused.
    """

    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FILE [FILE] OUT", help_behavior_hint=""),
    ]
    """FILE: a PyTorch, safetensors or flax msgpack file, or a model folder whose tokenizer is wanted. OUT: the model
    folder to be made, which must not exist yet."""
    hints: Annotated[Hints, tyro.conf.arg(name="")] = Hints()
    class_names: Path | None = None
    """A text file with the names of the transformer's classes, one a line, from class 0 on."""


def work(options: Options) -> None:
    """Convert, and print what was found. Raises UsageError, ConvertError or OSError."""
    if len(options.paths) < 2:
        raise UsageError("name one or two checkpoints, and last the folder to be made (--help)")
    *files, output = options.paths
    names = _read_names(options.class_names) if options.class_names else []
    print(summary(convert(files, output, options.hints, names), output))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 if the files can't be converted, 2 for bad usage, 130 after Ctrl-C."""
    return run_command(Options, work, argv, prog="python -m maskgit.convert", errors=(ConvertError, OSError))


def _read_names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ConvertError(f"{path}: not a text file") from error


def summary(found: Conversion, output: Path) -> str:
    """What was found in which file, what was assumed, where the result is, and what to do with it."""
    tokenizer = found.tokenizer.network.config
    lines = [
        *_describe(
            found.tokenizer,
            "tokenizer",
            f"{tokenizer.codebook_size} codes of {tokenizer.codebook_dim}, "
            f"{tokenizer.image_size}x{tokenizer.image_size} pixels in {tokenizer.grid}x{tokenizer.grid} tokens",
        )
    ]
    if found.transformer is None:
        next_step = f"train.py transformer --tokenizer {output}"
    else:
        transformer = found.transformer.network.config
        classes = f"{transformer.num_classes} classes" if transformer.num_classes else "no classes"
        lines += _describe(
            found.transformer,
            "transformer",
            f"{transformer.depth} blocks, {transformer.dim} wide, {transformer.heads} heads, {classes}",
        )
        next_step = f"inpaint.py --model {output} --images FOLDER"
    return "\n".join(map(printable, [*lines, f"wrote {output}", f"next: python {next_step}"]))


def _describe(part: Part, what: str, sizes: str) -> list[str]:
    return [
        f"{part.path}: {what} ({part.system}), {sizes}, {_millions(part.network)} M parameters",
        *(f"  {note}" for note in part.notes),
    ]


def _millions(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.3g}"


if __name__ == "__main__":
    sys.exit(main())
