"""Settings that both stages have in common, and what a run remembers of them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from maskgit.data.shards import is_shards
from maskgit_kernels.backend import BACKENDS

PRECISIONS = ("bf16", "fp16", "float32")
MOST = 10**9 - 1
"""The largest step that the name of a checkpoint has room for; more than anything else that is counted will be."""
MOST_SEED = 10**13
"""PyTorch takes a seed of 64 bits, and each step needs some of its own."""


class TrainingError(RuntimeError):
    """A run that can't start or go on; the message says what to change."""


def require_between(option: str, value: float, least: float, most: float) -> None:
    """Raise a TrainingError if the value of an option isn't in [least, most]."""
    if not value >= least:
        raise TrainingError(f"{option} {value}: must be at least {least}")
    if value > most:
        raise TrainingError(f"{option} {value}: must be at most {most}")


@dataclass(frozen=True)
class LoopConfig:
    """What both stages have in common."""

    output: Path
    """Folder of the run: checkpoints, logs, pictures, and the trained model."""
    steps: int
    """Optimizer steps in all."""
    batch_size: int
    """Images per step, over all processes."""
    lr: float
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup: int = 100
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """AdamW's decay of the mean of the gradients."""
    beta2: float = 0.99
    """AdamW's decay of the mean of their squares."""
    weight_decay: float = 1e-4
    """AdamW's weight decay, on matrices and convolutions only."""
    clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is what is validated and saved; 0 for none. It grows to that
    value, (1 + step) / (10 + step) at most, so that a short run's average isn't its random start."""
    precision: str = "bf16"
    """bf16 or fp16 (autocast; fp16 with a scaled loss, on a GPU only), or float32."""
    accumulate: int = 1
    """Equal parts that each process's images of a step are worked on in, one after the other: less memory for the same
    step."""
    compile: bool = False
    """Run the networks through torch.compile: a minute or two of compilation first. On a CPU it speeds up the
    tokenizer; the transformer gains a few percent."""
    val_fraction: float = 0.1
    """Share of the images that is held out to validate on, chosen by their names. Give both stages the same, or the
    second validates on images that the first has seen."""
    one_per_family: bool = False
    """Show one image of each family of near copies in an epoch (of the emoji: skin tones, genders, directions), a
    random one each time, instead of all of them."""
    seed: int = 0
    """Seed of everything that is random in the run."""
    workers: int = 0
    """Processes that read images, for each process that trains; 0 reads in the training process."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one. Under torchrun each process takes its own GPU."""
    kernels: str | None = None
    """Implementation of attention: triton, torch, or auto, the better of them that can run. By default what the
    environment variable MASKGIT_KERNELS says, or auto."""
    log_every: int = 20
    """Steps between two lines of the log."""
    validate_every: int = 500
    """Steps between two validations, each with a picture."""
    save_every: int = 250
    """Steps between two checkpoints."""
    keep: int = 2
    """Newest checkpoints kept, beside the one of the best validation."""
    wandb: bool = False
    """Log to Weights & Biases as well as to TensorBoard. Its own environment variables apply: WANDB_PROJECT,
    WANDB_MODE=offline, ..."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder (from the start if there is none)."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "log_every", "validate_every", "save_every", "keep")
        self.require_at_least(1, *counts)
        self.require_at_least(0, "lr", "min_lr", "warmup", "weight_decay", "clip", "seed", "workers")
        self.require_share("beta1", "beta2", "ema")
        if not 0 < self.val_fraction < 1:
            raise TrainingError(f"--val-fraction {self.val_fraction}: must be between 0 and 1")
        for name, allowed in (("kernels", (None, *BACKENDS)), ("precision", PRECISIONS)):
            if (value := getattr(self, name)) not in allowed:
                listed = ", ".join(known for known in allowed if known is not None)
                raise TrainingError(f"--{name} {value}: must be one of {listed}")

    def require_at_least(self, minimum: int, *names: str) -> None:
        """Raise a TrainingError if one of the named settings is smaller than `minimum`, or too large."""
        for name in names:
            value = getattr(self, name)
            most = MOST_SEED if name == "seed" else MOST if isinstance(value, int) else sys.float_info.max
            require_between(f"--{name.replace('_', '-')}", value, minimum, most)

    def require_share(self, *names: str) -> None:
        """Raise a TrainingError if one of the named settings is outside [0, 1)."""
        for name in names:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise TrainingError(f"--{name.replace('_', '-')} {value}: must be in [0, 1)")

    # A resumed run may change only what has no influence on the losses. How the batch is split has one with dropout,
    # whose noise differs then, and in the last digits without; but a run must be able to move to other machines.
    FREE: ClassVar[tuple[str, ...]] = (
        *("output", "device", "workers", "accumulate"),
        *("log_every", "validate_every", "save_every", "keep", "wandb", "resume"),
    )
    PLACES: ClassVar[tuple[str, ...]] = ("data", "tokens", "tokenizer", "init", "decoder_of")
    """Settings that are paths; `data` may also be "emoji"."""


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine from lr to min_lr at the last step: the same for any number of processes."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else dataclasses.asdict(value)


def run_settings(config: LoopConfig) -> dict[str, Any]:
    """The settings that decide a run's losses, in JSON form."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in config.FREE}
    return json.loads(json.dumps(values, default=_plain))


def changed_settings(theirs: dict[str, Any], config: LoopConfig, folder: Path = Path()) -> list[str]:
    """What `config` changes of the `run_settings` of another run, as "name (was a, now b)"; more steps are no change.

    A setting that didn't exist yet when that run was started had what is its default now. Paths are the same if they
    lead to the same place. A place that is gone counts as moved to where it is said to be now, with a warning.

    Args:
        folder: where that run was started: its relative paths begin there.
    """
    ours = run_settings(config)
    defaults = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(config)
        if field.name in ours and field.name not in theirs
    }
    no_default = {name for name, value in defaults.items() if value is dataclasses.MISSING}
    theirs = theirs | json.loads(
        json.dumps({name: value for name, value in defaults.items() if name not in no_default}, default=_plain)
    )
    theirs, ours = _flat(theirs), _flat(ours)
    changes = []
    for name in {**ours, **theirs}:
        old, new = theirs.get(name), ours.get(name)
        if name == "steps" and isinstance(old, int) and old <= config.steps:
            continue
        embedded = name == "data" and "emoji" in (old, new)
        if name in config.PLACES and isinstance(old, str) and isinstance(new, str) and not embedded:
            old_place, new_place = (folder / old).resolve(), Path(new).resolve()
            if old_place == new_place:
                continue
            if not _exists(old_place):
                option = f"--{name.replace('_', '-')}"
                warnings.warn(f"{option}: {old_place} is gone; going on with {new_place} in its place", stacklevel=2)
                continue
            old, new = old_place, new_place
        if old != new:
            changes.append(f"{name} (was {old}, now {new})")
    return changes


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """{"augment": {"flip": 0.5}} -> {"augment.flip": 0.5}, as options are called."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": x for inner, x in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _exists(place: Path) -> bool:
    return (place.parent if is_shards(place) else place).exists()  # of archives, only a pattern is known
