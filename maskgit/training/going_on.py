"""What a start finds in its output folder: nothing, a run to go on with, or something that it must leave alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from maskgit.console import flag
from maskgit.training import checkpoint
from maskgit.training.optimizer import learning_rate
from maskgit.training.run_file import changed_settings
from maskgit.training.settings import LoopConfig, ModelTraining, TrainingError


class Saved(NamedTuple):
    """A checkpoint that has been read."""

    step: int
    path: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]


def newest(config: LoopConfig) -> Saved | None:
    """Read the newest checkpoint of this run; None for a fresh start."""
    keep_apart(config)
    config.output.mkdir(parents=True, exist_ok=True)
    found = checkpoint.list_checkpoints(config.output / "checkpoints")
    if not found:
        return None
    if not config.resume:
        raise TrainingError(
            f"{config.output} already holds a run: go on with --resume (and more --steps, if it is through), or choose "
            "another --output"
        )
    step, path = found[-1]
    weights, state = checkpoint.load_checkpoint(path)
    if changed := changed_settings(state["settings"], config, Path(state.get("folder", ""))):
        raise TrainingError(
            f"{path}: this run was started with other settings: {', '.join(changed)}; go on with its own (--config "
            f"{config.output} --output {config.output} --resume, and more --steps if you like), or choose another "
            "--output"
        )
    return Saved(step, path, weights, state)


def keep_apart(config: LoopConfig | ModelTraining) -> None:
    """Raise a TrainingError if the pictures of the run would be among the images or the masks that it trains on."""
    output = config.output.resolve()
    for name, kind in (("data", "images"), ("hole_masks", "masks")):
        place = getattr(config, name, None)
        if place in (None, "avatars") or not Path(place).is_dir():
            continue
        if Path(place).resolve() in (output, *output.parents):
            raise TrainingError(
                f"--output {config.output}: lies in {flag(name)} {place}, where its pictures would be taken for "
                f"{kind}; choose another --output"
            )


def say_longer(saved: Saved, config: LoopConfig) -> None:
    """Say what more steps than at the start do to the learning rate."""
    before = dataclasses.replace(config, steps=saved.state["settings"]["steps"])
    print(
        f"from step {saved.step} to {config.steps} instead of {before.steps}: the learning rate goes on at "
        f"{learning_rate(config, saved.step):.3g}, where it was to be {learning_rate(before, saved.step):.3g}"
    )
