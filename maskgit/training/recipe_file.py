"""Recipes: settings that belong together, in a TOML file, from which `--recipe` starts a command.

    about = "What they are for, in a sentence."

    [transformer]             # a table for each command: tokenizer, tokens, transformer, model
    lr = 1e-4                 # its options, with underscores; the others are at their defaults
    augment.crop_scale = [0.2, 1.0]

[model] needs [tokenizer] and [transformer] beside it, which are what `train.py model` trains with. Ours are in the
folder recipes, by name; a name that ends in .toml or has a separator in it is a file of the user's own.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgit.console import printable
from maskgit.files import open_regular
from maskgit.training.run_file import nearest, settings_from_json
from maskgit.training.settings import COMMANDS, TrainingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"
DEFAULT = "embedded"
"""What `train.py model` trains with if nothing else is said."""
MOST_BYTES = 2**14

_BEHIND = f"options come behind a line {', '.join(f'[{name}]' for name in COMMANDS)}"


@dataclass(frozen=True)
class Recipe:
    """What a file says, all of which has been checked."""

    name: str
    """As `--recipe` has it."""
    about: str
    tables: dict[str, dict[str, Any]]
    """By command, options and their values, in JSON form."""

    def settings(self, command: str) -> Any:
        """Those of a command. Raises TrainingError: the recipe isn't for it."""
        if command not in self.tables:
            own = ", ".join(f"`train.py {name}`" for name in COMMANDS if name in self.tables)
            raise TrainingError(f"--recipe {self.name}: is for {own}, not for `{command}`")
        return settings_from_json(COMMANDS[command], self.tables[command])[0]


@functools.cache
def recipes() -> dict[str, Recipe]:
    """Ours, by name."""
    return {name: read_recipe(name) for name in _names()}


def _names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """One of ours, or a file. Raises TrainingError: there is none, it can't be read, or has settings that can't be."""
    path = Path(name)
    if not (name.endswith(".toml") or os.path.basename(name) != name):
        if name not in _names():
            raise TrainingError(f"--recipe {name}: must be one of {', '.join(_names())}, or a file that ends in .toml")
        path = FOLDER / f"{name}.toml"
    try:
        with open_regular(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"has more than {MOST_BYTES:,} bytes, which is no recipe")
        about, tables = _checked(tomllib.loads(data.decode("utf-8-sig")))
    except RecursionError:
        raise TrainingError(f"--recipe {name}: nested too deeply") from None
    except OSError as error:
        raise TrainingError(f"--recipe {name}: can't be read: {error.strerror}") from error
    except (TypeError, ValueError, TrainingError) as error:  # TOML and UTF-8 that are none are a ValueError
        raise TrainingError(f"--recipe {name}: {error}") from error
    return Recipe(name, about, tables)


def _checked(content: dict[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """`about` and the tables of a file. Raises ValueError and TrainingError: what can't be in one."""
    about = content.pop("about", "")
    if not isinstance(about, str):
        raise ValueError("about is no text")
    for name, table in content.items():
        if not isinstance(table, dict):
            raise ValueError(f"{printable(name[:80])} is in no table: {_BEHIND}")
        if name not in COMMANDS:
            raise ValueError(f"there is no table [{printable(name[:80])}]; the nearest is [{nearest(name, COMMANDS)}]")
        try:
            settings_from_json(COMMANDS[name], table)
        except (TypeError, ValueError, TrainingError) as error:
            raise ValueError(f"[{name}]: {error}") from error
    if not content:
        raise ValueError(f"has no table: {_BEHIND}")
    missing = [f"[{name}]" for name in ("tokenizer", "transformer") if name not in content]
    if "model" in content and missing:
        raise ValueError(f"[model] needs {' and '.join(missing)} beside it: what its stages train with")
    return about, content
