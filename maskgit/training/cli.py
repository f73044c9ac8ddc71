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


# ImportError: a package that an option needs. OSError: a folder that can't be written, a full disk.
KNOWN_ERRORS = (CheckpointError, ConfigError, DataError, ImageError, ModelError, TrainingError, ImportError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. Returns the exit status: 0, 1 for a run that failed, 130 when interrupted."""
    try:
        config = tyro.cli(
            Command,
            args=arguments,
            prog="train.py",
            description="Train a MaskGIT: first the tokenizer, then the transformer.",
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
        figures = train_tokenizer(config) if isinstance(config, TokenizerTraining) else train_transformer(config)
    except KNOWN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with --resume", file=sys.stderr)
        return 130
    print("\n".join(f"{name:>24} {value:.4g}" for name, value in figures.items()))
    return 0
