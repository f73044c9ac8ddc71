"""The command line of training: `train.py STAGE --options`, or `maskgit-train` once installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from maskgit.config import ConfigError
from maskgit.data import DataError, ImageError
from maskgit.model_folder import ModelError
from maskgit.training.checkpoint import CheckpointError
from maskgit.training.loop import TrainingError
from maskgit.training.tokenizer import TokenizerTraining, train_tokenizer
from maskgit.training.transformer import TransformerTraining, train_transformer

Command = (
    Annotated[TokenizerTraining, tyro.conf.subcommand("tokenizer", description="Stage 1: train the VQGAN.")]
    | Annotated[TransformerTraining, tyro.conf.subcommand("transformer", description="Stage 2: train the transformer.")]
)


def _parse(arguments: Sequence[str] | None) -> TokenizerTraining | TransformerTraining:
    try:
        return tyro.cli(
            Command,  # type: ignore[arg-type]
            args=arguments,
            prog="train.py",
            description="Train a MaskGIT: first the tokenizer, then the transformer.",
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    except ValueError as error:  # how a dataclass of settings refuses a value
        raise TrainingError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. Returns the exit status: 0, 1 for a run that failed, 130 when interrupted."""
    try:
        config = _parse(arguments)
        figures = train_tokenizer(config) if isinstance(config, TokenizerTraining) else train_transformer(config)
    except (
        *(CheckpointError, ConfigError, DataError, ImageError, ModelError, TrainingError),
        *(ImportError, OSError),  # a package that an option needs; a folder that can't be written
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with --resume", file=sys.stderr)
        return 130
    print("\n".join(f"{name:>24} {value:.4g}" for name, value in figures.items()))
    return 0
