"""The command line of training: `train.py STAGE --options`, or `maskgit-train` once installed."""

from __future__ import annotations

import functools
import operator
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from maskgit.config import ConfigError
from maskgit.console import printable_lines
from maskgit.data import DataError, EmptySplitError, ImageError
from maskgit.network.folder import ModelError
from maskgit.training.checkpoint import CheckpointError
from maskgit.training.dry_run import dry_run
from maskgit.training.run_file import RunFileError
from maskgit.training.settings import TrainingError
from maskgit.training.signals import Stopped
from maskgit.training.start import HELP, read_start
from maskgit.training.tokenizer import TokenizerTraining, train_tokenizer
from maskgit.training.tokens import TokensConfig, write_tokens
from maskgit.training.transformer import TransformerTraining, train_transformer

COMMANDS: dict[str, tuple[type[Any], str]] = {
    "tokenizer": (TokenizerTraining, "Stage 1: train the VQGAN."),
    "transformer": (TransformerTraining, "Stage 2: train the transformer."),
    "tokens": (TokensConfig, "Before stage 2, for large data sets: tokenize them, with many processes."),
}


# ImportError: a package that an option needs. OSError: a folder that can't be written, a full disk.
KNOWN_ERRORS = (
    *(CheckpointError, ConfigError, DataError, ImageError, ModelError, RunFileError, TrainingError),
    *(ImportError, OSError),
)


def _commands(defaults: dict[str, Any]) -> Any:
    """The type of what the command line describes: the settings of one of the commands.

    Args:
        defaults: settings that options override, by command; None or nothing for those of the class.
    """
    kinds = []
    for name, (kind, description) in COMMANDS.items():
        start = {} if defaults.get(name) is None else {"default": defaults[name]}
        kinds.append(Annotated[kind, tyro.conf.subcommand(name, description=description, **start)])
    return functools.reduce(operator.or_, kinds)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage, or what comes between them.

    Returns:
        The exit status: 0, 1 for a run that failed, 143 when stopped by SIGTERM, 130 by Ctrl-C.
    """
    try:
        start = read_start(sys.argv[1:] if arguments is None else arguments)
        config = tyro.cli(
            _commands(start.defaults),
            args=start.rest,
            prog="train.py",
            description=f"Train a MaskGIT: first the tokenizer, then the transformer. {HELP}",
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
        if start.dry_run or isinstance(config, TokensConfig):
            print(printable_lines("\n".join(dry_run(config) if start.dry_run else write_tokens(config))))
            return 0
        figures = train_tokenizer(config) if isinstance(config, TokenizerTraining) else train_transformer(config)
    except KNOWN_ERRORS as error:
        more = ", or change --val-fraction" if isinstance(error, EmptySplitError) else ""
        print(printable_lines(f"error: {error}{more}"), file=sys.stderr)
        return 1
    except Stopped as stop:
        if _is_main():
            print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on (`tokens`: the same command)", file=sys.stderr)
        return 130
    if _is_main():
        print("\n".join(f"{name:>24} {value:.4g}" for name, value in figures.items()))
    return 0
