"""The command line of training: `train.py STAGE --options`, or `maskgit-train` once installed."""

from __future__ import annotations

import argparse
import functools
import operator
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from maskgit.config import ConfigError
from maskgit.console import help_for_as_long_as_read, printable_lines
from maskgit.data import DataError, EmptySplitError, ImageError
from maskgit.helptext import registry, whole_lines
from maskgit.network.folder import ModelError
from maskgit.training.dry_run import dry_run
from maskgit.training.recipe_file import DEFAULT, Recipe, read_recipe, recipes
from maskgit.training.run_file import read_run
from maskgit.training.settings import (
    COMMANDS,
    ModelTraining,
    TokenizerTraining,
    TokensConfig,
    TrainingError,
    TransformerTraining,
)
from maskgit.training.signals import Stopped
from maskgit.training.speedrun import SpeedrunTraining, speedrun
from maskgit.training.tokenizer import train_tokenizer
from maskgit.training.tokens import write_tokens
from maskgit.training.transformer import train_transformer
from maskgit.training.whole import train_model

HELP = """Train a MaskGIT: first the tokenizer, then the transformer; or, in a given time, all of it (`model`).
`train.py STAGE --help` shows all options."""


def _recipe_help() -> str:
    """Ours, with what each is for."""
    lines = [f"- {recipe.name} ({', '.join(recipe.tables)}): {recipe.about}" for recipe in recipes().values()]
    return "\n".join(["Start from the settings of a recipe: FILE.toml (docs/recipes.md), or one of", *lines])


@dataclass(frozen=True)
class AnyCommand:
    """Options of every command, anywhere on the line, that are read first: defaults of others depend on them."""

    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME", help=_recipe_help())] = None
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check the data, say how large model, memory and run will be, from a few steps that are timed (about a minute),
    and write nothing."""


@dataclass(frozen=True)
class AnyStage(AnyCommand):
    """And those of the two stages."""

    config: Path | None = None
    """Start from the settings in a run's run.json (or its folder); options override them."""


@dataclass(frozen=True)
class ModelCommand:
    """All of it in a given time: tokenizer, tokens, transformer, and the model folder that comes of them."""

    settings: Annotated[ModelTraining, tyro.conf.arg(name="")] = ModelTraining()
    common: Annotated[AnyCommand, tyro.conf.arg(name="")] = AnyCommand()


@dataclass(frozen=True)
class TokenizerCommand:
    """Stage 1: train the VQGAN."""

    settings: Annotated[TokenizerTraining, tyro.conf.arg(name="")] = TokenizerTraining()
    common: Annotated[AnyStage, tyro.conf.arg(name="")] = AnyStage()


@dataclass(frozen=True)
class TransformerCommand:
    """Stage 2: train the transformer."""

    settings: Annotated[TransformerTraining, tyro.conf.arg(name="")] = TransformerTraining()
    common: Annotated[AnyStage, tyro.conf.arg(name="")] = AnyStage()


@dataclass(frozen=True)
class TokensCommand:
    """Before stage 2, for large data sets: tokenize them, with many processes."""

    settings: Annotated[TokensConfig, tyro.conf.arg(name="")] = TokensConfig()
    common: Annotated[AnyCommand, tyro.conf.arg(name="")] = AnyCommand()


SHOWN: dict[str, Any] = {
    "model": ModelCommand,
    "tokenizer": TokenizerCommand,
    "transformer": TransformerCommand,
    "tokens": TokensCommand,
}
"""What `--help` shows of each command: its settings, and the options that have been read before."""

# ImportError: a package that an option needs. OSError: a folder that can't be written, a full disk.
KNOWN_ERRORS = (ConfigError, DataError, ImageError, ModelError, TrainingError, ImportError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 for a run that failed, 143 when stopped by SIGTERM, 130 by Ctrl-C."""
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    try:
        config, recipe, dry = _read(sys.argv[1:] if arguments is None else arguments)
        if dry or isinstance(config, TokensConfig):
            for line in dry_run(config, recipe) if dry else write_tokens(config):
                print(printable_lines(line), flush=True)
            return 0
        if isinstance(config, ModelTraining):
            figures = train_model(config, recipe)
        elif isinstance(config, SpeedrunTraining):
            figures = speedrun(config)
        else:
            figures = train_tokenizer(config) if isinstance(config, TokenizerTraining) else train_transformer(config)
    except KNOWN_ERRORS as error:
        more = ", or change --val-fraction" if isinstance(error, EmptySplitError) else ""
        print(printable_lines(f"error: {error}{more}"), file=sys.stderr)
        return 1
    except Stopped as stop:
        if is_main:
            print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on (`tokens`: the same command)", file=sys.stderr)
        return 130
    if is_main:
        print("\n".join(f"{name:>24} {value:.4g}" for name, value in figures.items()))
    return 0


def _read(words: Sequence[str]) -> tuple[Any, Recipe | None, bool]:
    """The settings of one of the commands, the recipe, and whether it is a dry run. A run.json says its stage itself.

    Raises TrainingError: a setting that can't be, a file that can't be used, common options that don't go together or
    with the command.
    """
    parser = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--recipe")
    parser.add_argument("--dry-run", action="store_true")
    common, rest = parser.parse_known_args(words)
    command = rest[0] if rest and not rest[0].startswith("-") else None
    # Settings that options override.
    start = {name: kind() for name, kind in COMMANDS.items()} | {"speedrun": SpeedrunTraining()}
    if common.recipe is not None and common.config is not None:
        raise TrainingError(f"--recipe {common.recipe}: not together with --config, which has all settings")
    name = DEFAULT if common.recipe is None and command == "model" else common.recipe
    recipe = None if name is None else read_recipe(name)
    if recipe is not None and command in start:
        start[command] = recipe.settings(command)
    if common.config is not None:
        stage, start_config = read_run(common.config)
        if command not in (None, stage):
            raise TrainingError(f"--config {common.config}: holds the settings of `{stage}`, not of `{command}`")
        rest = rest if command else [stage, *rest]
        start[stage] = start_config
    if common.dry_run and command is not None and command not in SHOWN:
        raise TrainingError(f"--dry-run: is for {', '.join(SHOWN)}, not for `{command}`")
    shown = {name: SHOWN[name](settings) if name in SHOWN else settings for name, settings in start.items()}
    kinds = [Annotated[type(given), tyro.conf.subcommand(name, default=given)] for name, given in shown.items()]
    kind: Any = functools.reduce(operator.or_, kinds)
    conf = (tyro.conf.OmitSubcommandPrefixes,)
    with help_for_as_long_as_read(), registry():
        chosen: Any = tyro.cli(kind, args=rest, prog="train.py", description=whole_lines(HELP), config=conf)
    return getattr(chosen, "settings", chosen), recipe, common.dry_run
