"""`train.py speedrun`: how long this machine trains until a fixed loss is reached: does a change to training help?

The task is fixed: the embedded avatars and tokenizer, and a loss on held-out images. The clock runs while the
transformer trains; not while tokens are made, for validations, and for the checkpoints behind them. Each run, also one
that fails, appends a line to a table of runs.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from maskgit.console import flag
from maskgit.data.tokens import fingerprint
from maskgit.files import EMBEDDED, write_atomically
from maskgit.machine import device_name, git_revision
from maskgit.training.engine import pick_device
from maskgit.training.settings import MOST, TokensConfig, TrainingError, TransformerTraining
from maskgit.training.tokens import tokenizer_at, write_tokens
from maskgit.training.transformer import train_transformer

GOAL = 4.2
"""Nats of a masked token: the mean over held-out images of the mean over their masked tokens."""

TASK = (
    *("tokenizer", "image_size", "data", "val_fraction", "views", "augment", "tokens", "hole_share", "holes", "init"),
    *("interpolate", "schedule", "validation_rounds", "validation_images", "resume"),
)
"""The settings that stay what they are: what is trained on, and what is measured."""

HEADER = """| date | machine | revision | task | changed | steps | loss | seconds | note |
|---|---|---|---|---|---:|---:|---:|---|
"""


@dataclass(frozen=True)
class SpeedrunTraining(TransformerTraining):
    """Train the transformer until a fixed loss is reached: what does a change to training do?"""

    output: Path = Path("runs/speedrun")
    """Folder of the tokens, and of the runs by their numbers."""
    record: Path = Path("benchmarks/speedrun.md")
    """Markdown file whose last table gets a line of the run; it is made if it isn't there."""
    note: str = ""
    """What was changed, where the settings don't say it."""
    tokenizer: Path = EMBEDDED
    steps: int = 300
    batch_size: int = 16
    warmup: int = 50
    ema: float = 0.95
    views: int = 1
    dropout: float | None = 0.0
    log_every: int = 10
    validate_every: int = 25
    validation_rounds: int = 1
    validation_images: int = 256
    save_every: int = MOST


class Mark(NamedTuple):
    """A validation: steps done, seconds trained, loss."""

    step: int
    seconds: float
    loss: float


def speedrun(config: SpeedrunTraining) -> dict[str, float]:
    """Train until the goal is reached or to the last step, and append a line to the record.

    Returns the figures of the last validation, with "seconds" if the goal was reached. Raises TrainingError: a setting
    that is the task's, a record that can't be gone on with; and what a run raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("train.py speedrun: start it without torchrun, for one GPU at most")
    default = SpeedrunTraining()
    for name in TASK:
        if getattr(config, name) != getattr(default, name):
            raise TrainingError(
                f"{flag(name)} {getattr(config, name)}: is the speedrun's task, which stays {getattr(default, name)}"
            )
    _read(config.record)
    device, load = pick_device(config.device), os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    if load > 0.5:
        print(f"warning: other programs are running here (load average {load:.1f}), so the seconds will say little")
    tokens = config.output / "tokens"
    shared = {name: getattr(config, name) for name in ("tokenizer", "data", "views", "device")}
    write_tokens(TokensConfig(output=tokens, **shared))
    folder = next(path for number in range(1, 10**6) if not (path := config.output / f"{number}").exists())
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(TransformerTraining)}
    marks: list[Mark] = []

    def watch(step: int, seconds: float, figures: dict[str, float]) -> bool:
        marks.append(Mark(step, seconds, figures["loss"]))
        return marks[-1].loss <= GOAL

    figures = train_transformer(TransformerTraining(**values | {"output": folder, "tokens": tokens}), watch)
    reached = seconds_to(GOAL, marks)
    task = f"{fingerprint(tokenizer_at(config.tokenizer, None))[:7]}: {GOAL}"
    machine = f"{device_name(device)}, {torch.get_num_threads()} threads, load {load:.1f}"
    revision, *dirty = (git_revision() or "unknown").split("-")
    line = [str(date.today()), machine, "-".join([revision[:9], *dirty]), task, changes(config), str(marks[-1].step)]
    line += [f"{marks[-1].loss:.3f}", "not reached" if reached is None else f"{reached:.0f}", config.note]
    row = "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in line) + " |\n"
    write_atomically({config.record: (_read(config.record) + row).encode()})
    print(f"appended to {config.record}:\n{row}", end="")
    return figures | ({} if reached is None else {"seconds": reached})


def seconds_to(goal: float, marks: list[Mark]) -> float | None:
    """When the loss was `goal`, between the last two validations as if on a line; None: it isn't yet.

    Validations are 25 steps apart by default, which would be too coarse to compare runs by.
    """
    if not marks[-1].loss <= goal:  # it may be NaN
        return None
    if len(marks) == 1:
        return marks[-1].seconds
    before, last = marks[-2:]
    return before.seconds + (last.seconds - before.seconds) * (before.loss - goal) / (before.loss - last.loss)


def changes(config: SpeedrunTraining) -> str:
    """The settings that aren't the speedrun's own, as "lr 0.002, steps 300"."""
    default = SpeedrunTraining()
    names = [field.name for field in dataclasses.fields(TransformerTraining) if field.name not in ("output", "device")]
    return ", ".join(
        f"{name} {getattr(config, name)}" for name in names if getattr(config, name) != getattr(default, name)
    )


def _read(record: Path) -> str:
    """The record so far, which ends with a line of its table. Raises TrainingError: it is something else."""
    if not record.exists():
        return HEADER
    try:
        text = record.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"--record {record}: can't be read: {error}") from error
    if not text.endswith("|\n") or HEADER not in text:
        raise TrainingError(f"--record {record}: doesn't end with the table of runs; name another file")
    return text
