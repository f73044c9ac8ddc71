"""Where the settings of a start come from: a recipe or an earlier run, and then the options of the command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskgit.training.recipes import RECIPES
from maskgit.training.run_file import FILE, RunFileError, read_run, settings_from_json
from maskgit.training.settings import TrainingError
from maskgit.training.tokenizer import TokenizerTraining
from maskgit.training.transformer import TransformerTraining

STAGES: dict[str, type[Any]] = {"tokenizer": TokenizerTraining, "transformer": TransformerTraining}

HELP = (
    "Three options go with both stages, anywhere on the line. "
    "--config FILE: start from the settings in a run's run.json (or its folder); options override them. "
    f"--recipe NAME: likewise, from how a source trains its transformer: {', '.join(RECIPES)}. "
    "--dry-run: check the data, say how large model, memory and run will be, and write nothing."
)


class Start(NamedTuple):
    """What is told apart from the settings of a stage."""

    defaults: dict[str, Any]
    """Settings that options override, by stage."""
    dry_run: bool
    rest: list[str]
    """The other words of the command line; the stage comes first."""


def read_start(words: Sequence[str]) -> Start:
    """Take --config, --recipe and --dry-run out of a command line. A run.json says its stage itself.

    Raises:
        RunFileError: the file can't be used.
        TrainingError: both --config and --recipe, or one that isn't of the stage.
    """
    parser = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--recipe")
    parser.add_argument("--dry-run", action="store_true")
    options, rest = parser.parse_known_args(words)
    stage = rest[0] if rest and not rest[0].startswith("-") else None
    defaults: dict[str, Any] = {name: None for name in STAGES}
    if options.config is not None and options.recipe is not None:
        raise TrainingError(f"--recipe {options.recipe}: not together with --config, which has all settings")
    if options.recipe is not None:
        if options.recipe not in RECIPES:
            raise TrainingError(f"--recipe {options.recipe}: must be one of {', '.join(RECIPES)}")
        if stage != "transformer":
            raise TrainingError(f"--recipe {options.recipe}: is for `train.py transformer`")
        defaults["transformer"] = RECIPES[options.recipe]
    if options.config is not None:
        theirs, config = load_settings(options.config)
        if stage not in (None, theirs):
            raise TrainingError(f"--config {options.config}: holds the settings of `{theirs}`, not of `{stage}`")
        rest = rest if stage else [theirs, *rest]
        defaults[theirs] = config
    if options.dry_run and stage is not None and stage not in STAGES:
        raise TrainingError(f"--dry-run: is for {' and '.join(STAGES)}, not for `{stage}`")
    return Start(defaults, options.dry_run, rest)


def load_settings(path: Path) -> tuple[str, Any]:
    """Stage and settings that a run wrote down, from its run.json or its folder.

    Settings that this release has and the file doesn't are named, and at their defaults.

    Raises:
        RunFileError: the file is missing or isn't one, or this release can't use its settings.
    """
    path = path / FILE if path.is_dir() else path
    stage, values = read_run(path)
    if stage not in STAGES:
        raise RunFileError(f"--config {path}: stage {stage!r} is none of {', '.join(STAGES)}")
    try:
        config, missing = settings_from_json(STAGES[stage], values)
    except RecursionError:
        raise RunFileError(f"--config {path}: nested too deeply") from None
    except (TypeError, ValueError, TrainingError) as error:
        raise RunFileError(f"--config {path}: {error}") from error
    if missing:
        print(f"{path} doesn't say {', '.join(missing)}: at the defaults of this release")
    return stage, dataclasses.replace(config, resume=False)
