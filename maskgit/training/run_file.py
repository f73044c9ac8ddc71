"""What a run remembers of its settings: run.json, which `--config` reads back, and what `--resume` may change."""

from __future__ import annotations

import dataclasses
import difflib
import json
import platform
import types
import typing
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

from maskgit.console import flag, printable
from maskgit.data import is_shards
from maskgit.machine import git_revision, package_version
from maskgit.training.settings import STAGES, LoopConfig, TrainingError

FILE = "run.json"
_PACKAGES = ("maskgit-inpaint", "accelerate", "numpy", "safetensors", "triton")
_OF_ONE_START = ("resume",)  # whether a start goes on with a run is no setting of the run
_GONE = {"one_per_family": False}  # settings of older releases, and what all runs do now

ConfigT = TypeVar("ConfigT")

# --- writing ----------------------------------------------------------------------------------------------------------


def describe_run(config: LoopConfig) -> dict[str, Any]:
    """What run.json holds, in JSON form: all settings (the seed among them), versions, git revision, device."""
    found = {name: package_version(name) for name in _PACKAGES}
    versions = {name: version for name, version in found.items() if version is not None}
    return {
        "stage": next(name for name, kind in STAGES.items() if isinstance(config, kind)),
        "settings": settings_to_json(config),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), **versions},
        "git": git_revision(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def settings_to_json(config: Any) -> dict[str, Any]:
    """All fields of a dataclass of settings, nested ones too, as JSON has them: paths as strings, tuples as lists."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in _OF_ONE_START}
    return json.loads(json.dumps(values, default=str))


# --- reading ----------------------------------------------------------------------------------------------------------


def read_run(path: Path) -> tuple[str, Any]:
    """Stage and settings that a run wrote down, from its run.json or its folder.

    Settings that this release has and the file doesn't are named, and at their defaults. Raises TrainingError: the file
    is missing or isn't one, or this release can't use its settings.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():  # to read a pipe would wait for a writer
        raise TrainingError(f"--config {path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        stage, values = _parse(path.read_bytes())
        config, missing = settings_from_json(STAGES[stage], values)
    except RecursionError:
        raise TrainingError(f"--config {path}: can't be read: nested too deeply") from None
    except (OSError, TypeError, ValueError, TrainingError) as error:
        raise TrainingError(f"--config {path}: {error}") from error
    if missing:
        print(f"{path} doesn't say {', '.join(missing)}: at the defaults of this release")
    return stage, dataclasses.replace(config, resume=False)


def precision_of(folder: Path) -> str | None:
    """The precision of the run in a folder; None where there is no run."""
    if not (folder / "checkpoints").is_dir():
        return None
    return _written(folder).get("settings", {}).get("precision", "bf16")  # of releases without the file, the default


def revision_of(folder: Path) -> str:
    """The git revision that the run in a folder was begun with, as far as it says so."""
    return str(_written(folder).get("git") or "unknown")


def _written(folder: Path) -> dict[str, Any]:
    """A folder's run.json; empty where there is none that can be read."""
    try:
        content = json.loads((folder / FILE).read_bytes())
        return content if isinstance(content.get("settings"), dict) else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _parse(data: bytes) -> tuple[str, dict[str, Any]]:
    """Stage and settings, as they are in the file. Raises ValueError."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f"can't be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict) or "stage" not in content:
        raise ValueError("not a run.json (it needs a stage and its settings)")
    if (stage := str(content["stage"])) not in STAGES:
        raise ValueError(f"stage {stage!r} is none of {', '.join(STAGES)}")
    return stage, content["settings"]


def settings_from_json(kind: type[ConfigT], values: dict[str, Any], within: str = "") -> tuple[ConfigT, list[str]]:
    """The inverse of `settings_to_json`, and the names of fields that `values` lacks, which are at their defaults.

    Args:
        within: where the values are, for messages: "augment.".

    Raises ValueError: fields that don't exist, values of the wrong type, or whatever the settings themselves refuse.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = _without_gone(values)
    if unknown := [printable(within + name[:80]) for name in sorted(values.keys() - set(names))]:
        close = nearest(unknown[0].removeprefix(within), names)
        raise ValueError(f"there is no setting {', '.join(unknown)} in this release; the nearest is {within}{close}")
    missing = [name for name in names if name not in values and name not in _OF_ONE_START]
    return kind(**{name: _typed(within + name, hints[name], value) for name, value in values.items()}), missing


def nearest(name: str, names: Iterable[str]) -> str:
    """Which of `names` was most likely meant."""
    return difflib.get_close_matches(name[:80], names, 1, cutoff=0)[0]


def _without_gone(values: dict[str, Any]) -> dict[str, Any]:
    """Without the settings of older releases that say what all runs do now."""
    return {name: value for name, value in values.items() if name not in _GONE or value != _GONE[name]}


def _typed(name: str, hint: Any, value: Any) -> Any:
    """A JSON value as what the type hint of its field says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        (hint,) = (kind for kind in inner if kind is not types.NoneType)
        return _typed(name, hint, value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return settings_from_json(typing.cast(type, hint), value, f"{name}.")[0]
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
    text = json.dumps(value, default=str)  # TOML has dates
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- going on ---------------------------------------------------------------------------------------------------------


def run_settings(config: LoopConfig) -> dict[str, Any]:
    """The settings that decide a run's losses, in JSON form."""
    return {name: value for name, value in settings_to_json(config).items() if name not in config.FREE}


def changed_settings(theirs: dict[str, Any], config: LoopConfig, folder: Path = Path()) -> list[str]:
    """What `config` changes of the `run_settings` of another run, as "name (was a, now b)"; more steps are no change.

    A setting that didn't exist yet when that run was started had what is its default now. `folder` is where it was
    started, as for `changed_values`.
    """
    before, now = flat(run_settings(type(config)()) | _without_gone(theirs)), flat(run_settings(config))
    if before.get("init") and now.get("init"):  # which has a size and a tokenizer, whatever else names them
        before, now = ({**values, "model": None, "tokenizer": None} for values in (before, now))
    if isinstance(before["steps"], int) and before["steps"] <= config.steps:
        del before["steps"], now["steps"]
    return changed_values(before, now, config.PLACES, folder)


def changed_values(
    before: dict[str, Any], now: dict[str, Any], places: Collection[str], folder: Path = Path()
) -> list[str]:
    """What differs between settings, as "name (was a, now b)".

    Paths are the same if they lead to the same place. A place that is gone counts as moved to where it is said to be
    now, with a warning.

    Args:
        places: names of settings that are paths; `data` may also be "avatars".
        folder: where the relative paths among those of before begin.
    """
    changes = []
    for name in {**now, **before}:
        old, new = before.get(name), now.get(name)
        embedded = name == "data" and "avatars" in (old, new)
        if name in places and isinstance(old, str) and isinstance(new, str) and not embedded:
            old, new = (folder / old).resolve(), Path(new).resolve()
            known = old.parent if is_shards(old) else old  # of archives, there is only a pattern
            if old != new and not known.exists():
                warnings.warn(f"{flag(name)}: {old} is gone; going on with {new} in its place", stacklevel=3)
                continue
        if old != new:
            changes.append(f"{name} (was {old}, now {new})")
    return changes


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """{"augment": {"flip": 0.5}} -> {"augment.flip": 0.5}, as options are called."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": x for inner, x in flat(value).items()}
        else:
            found[name] = value
    return found
