"""run.json: everything that a run was started with, written into its folder and read back by `--config`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import torch

FILE = "run.json"
_PACKAGES = ("maskgit-inpaint", "accelerate", "numpy", "safetensors", "triton")
_OF_ONE_START = ("resume",)  # whether a start goes on with a run is no setting of the run

ConfigT = TypeVar("ConfigT")


class RunFileError(ValueError):
    """A file that can't be read as a run's settings; the message names the file and what is wrong with it."""


def describe_run(config: Any) -> dict[str, Any]:
    """What run.json holds, in JSON form: all settings (the seed among them), versions, git revision, device.

    Args:
        config: a stage's settings, a dataclass.
    """
    return {
        "stage": stage_of(type(config)),
        "settings": settings_to_json(config),
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git_revision(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def stage_of(kind: type) -> str:
    """The name of a stage, from the class of its settings."""
    return kind.__name__.removesuffix("Training").lower()


def settings_to_json(config: Any) -> dict[str, Any]:
    """All fields of a dataclass of settings, nested ones too, as JSON has them: paths as strings, tuples as lists."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in _OF_ONE_START}
    return json.loads(json.dumps(values, default=str))


def settings_from_json(kind: type[ConfigT], values: dict[str, Any]) -> tuple[ConfigT, list[str]]:
    """The inverse of `settings_to_json`.

    Returns:
        The settings, and the names of fields that `values` doesn't have (another release wrote it): at their defaults.

    Raises:
        ValueError: fields that don't exist, values of the wrong type, or whatever the settings themselves refuse.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise ValueError(f"there is no setting {', '.join(unknown)} in this release")
    missing = [name for name in names if name not in values and name not in _OF_ONE_START]
    return kind(**{name: _typed(name, hints[name], value) for name, value in values.items()}), missing


def _typed(name: str, hint: Any, value: Any) -> Any:
    """A JSON value as what the type hint of its field says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        (hint,) = (kind for kind in inner if kind is not types.NoneType)
        return _typed(name, hint, value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return settings_from_json(typing.cast(type, hint), value)[0]
    if origin is tuple and isinstance(value, list) and len(value) == len(inner):
        return tuple(_typed(name, kind, item) for kind, item in zip(inner, value, strict=True))
    if origin is typing.Literal and value in inner:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} is {_shortened(value)}, which is too large") from None
    if type(value) is hint:
        return value
    raise ValueError(f"{name} is {_shortened(value)}, which is not of type {getattr(hint, '__name__', hint)}")


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_run(path: Path) -> tuple[str, dict[str, Any]]:
    """Stage and settings of a run.json. Raises RunFileError."""
    if not path.is_file():  # to read a pipe would wait for a writer
        raise RunFileError(f"--config {path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise RunFileError(f"--config {path}: can't be read: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise RunFileError(f"--config {path}: can't be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict) or "stage" not in content:
        raise RunFileError(f"--config {path}: not a run.json (it needs a stage and its settings)")
    return str(content["stage"]), content["settings"]


def git_revision() -> str | None:
    """Revision of the repository that this package runs from, with "-dirty" for uncommitted changes; None if none."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it is the repository of whoever installed the package
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__)}  # says which build it is, too
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from its folder, or not needed
            continue
    return found
