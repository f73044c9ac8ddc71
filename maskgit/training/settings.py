"""Settings that both stages have in common, and what a run remembers of them."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from maskgit_kernels.backend import BACKENDS

PRECISIONS = ("bf16", "fp16", "float32")


class TrainingError(RuntimeError):
    """A run that can't start or go on; the message says what to change."""


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
        for name, allowed in (("kernels", (None, *BACKENDS)), ("precision", PRECISIONS)):
            if (value := getattr(self, name)) not in allowed:
                listed = ", ".join(known for known in allowed if known is not None)
                raise TrainingError(f"--{name} {value}: must be one of {listed}")

    def require_at_least(self, minimum: int, *names: str) -> None:
        """Raise a TrainingError if one of the named settings is smaller than `minimum`, or isn't finite."""
        for name in names:
            value = getattr(self, name)
            if not minimum <= value < math.inf:
                raise TrainingError(f"--{name.replace('_', '-')} {value}: must be at least {minimum}")

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


def changed_settings(theirs: dict[str, Any], config: LoopConfig) -> list[str]:
    """What `config` changes of the `run_settings` of another run, as "name (was a, now b)".

    A setting that didn't exist yet when that run was started had what is its default now.
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
    return [
        f"{name} (was {theirs.get(name)}, now {ours.get(name)})"
        for name in {**ours, **theirs}
        if theirs.get(name) != ours.get(name)
    ]
