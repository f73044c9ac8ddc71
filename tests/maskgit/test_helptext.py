"""`--help` of every command: whole lines, no None, and every option in it."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from maskgit.console import flag
from maskgit.helptext import descriptions, registry, whole_lines
from maskgit.training.cli import main as train
from maskgit.training.recipe_file import recipes
from maskgit.training.settings import COMMANDS
from maskgit.training.speedrun import SpeedrunTraining

COMMAND_MODULES = ("cli.inpaint", "app.__main__", "convert.__main__", "metrics.__main__", "metrics.card.__main__")
COMMAND_MODULES += ("pictures.__main__", "sweep.__main__")
EVERY_COMMAND = {**COMMANDS, "speedrun": SpeedrunTraining}
STAGE_OPTIONS = {"tokenizer": ["--dry-run", "--config"], "transformer": ["--dry-run", "--config"]}


def shown(main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command's --help prints."""
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


def run_training(words: list[str]) -> int:
    """`train.py --help` ends as tyro ends it."""
    try:
        return train(words)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which every description is one line, so that those in two were broken by something else."""
    monkeypatch.setenv("COLUMNS", "2000")


def check(text: str, options: list[str]) -> None:
    assert "default: None" not in text and "{None" not in text and "(default: )" not in text
    rows = [line.strip("│ ") for line in text.splitlines() if line.startswith(("│", " "))]  # with a frame, or without
    assert rows
    for before, row in zip(rows, rows[1:], strict=False):
        # A group's title, an option's name, or an item of a list begins a line; the rest of a sentence doesn't.
        title = re.fullmatch(r"(\w+ )?(options|arguments)", row)
        assert title or not re.match(r"[a-z]", row) or before.startswith("-"), row
    for option in options:
        assert re.search(rf"^[│ ] (-\w, )?{re.escape(option)}[ ,]", text, re.MULTILINE), option


@pytest.mark.parametrize("name", COMMAND_MODULES)
def test_help_of_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"maskgit.{name}")
    check(shown(module.main, [], capsys), ["--help"])


@pytest.mark.parametrize("stage", EVERY_COMMAND)
def test_help_of_training_has_every_option(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = [flag(name) for each in dataclasses.fields(EVERY_COMMAND[stage]) if (name := each.name) != "augment"]
    text = shown(run_training, [stage], capsys)
    check(text, [*own, *(["--recipe"] if stage in COMMANDS else []), *STAGE_OPTIONS.get(stage, [])])
    for recipe in recipes().values():
        assert (f"- {recipe.name} (" in text and recipe.about in text) == (stage in COMMANDS)


def test_help_of_stages_shows_where_they_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(run_training, ["transformer", "--recipe", "valeo"], capsys)
    assert re.search(r"--schedule STR +.*\(default: arccos\)", text)


# --- how it is made ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """Of the inside."""

    depth: int = 3
    """How far
    down."""


@dataclass(frozen=True)
class Parent:
    first: str
    """Is inherited, and
    broken."""


@dataclass(frozen=True)
class Options(Parent):
    """Do it."""

    path: Path | None = None
    """Where to,
    if anywhere:
    - here;
    - or there, which is
    farther.

    Or nowhere."""
    kind: Literal["a", "b"] | None = None
    undescribed: int = 4
    sizes: tuple[int, ...] = ()
    """Sizes."""
    named: Annotated[float | None, tyro.conf.arg(metavar="SIGMA", help="Said.", help_behavior_hint="(free)")] = None
    """Not this."""
    inner: Inner = field(default_factory=Inner)


def test_descriptions() -> None:
    assert descriptions(Options) == {
        "first": "Is inherited, and broken.",
        "path": "Where to, if anywhere:\n- here;\n- or there, which is farther.\n\nOr nowhere.",
        "sizes": "Sizes.",
        "named": "Not this.",
    }
    assert whole_lines("\n    One\n    two.\n\n      Three\n      four\n    ") == "One two.\n\n  Three\n  four"


def help_of(kind: Any, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    with registry(), pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"], **options)
    return capsys.readouterr().out


def test_options_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(Options, capsys)
    for row in (
        r"--first STR +Is inherited, and broken\. \(required\)",
        r"--path PATH +Where to, if anywhere:",
        r"- or there, which is farther\.",
        r"--undescribed INT +\(default: 4\)",
        r"--sizes .*Sizes\. *[│\n]",
        r"--named SIGMA +Said\. \(free\)",
        r"--inner\.depth INT +How far down\. \(default: 3\)",
    ):
        assert re.search(row, text), row


def test_options_as_read() -> None:
    given = Options("x", path=Path("p"), sizes=(1, 2), inner=Inner(7))
    with registry():
        assert tyro.cli(Options, args=["--first", "y"]) == Options("y")
        assert tyro.cli(Options, args=["--path", "None"], default=given) == dataclasses.replace(given, path=None)
        assert tyro.cli(Options, args=["--inner.depth", "1"], default=given) == dataclasses.replace(
            given, inner=Inner(1)
        )
        with pytest.raises(SystemExit):
            tyro.cli(Options, args=[], console_outputs=False)
