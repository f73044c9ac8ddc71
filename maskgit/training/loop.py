"""The training loop of both stages.

Every random choice of a step comes from (seed, step) alone, and every random choice of a sample from its place in the
order of the run. So a checkpoint holds no generator states, and a run resumed at a step does exactly what the unbroken
run did there.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from maskgit.files import write_atomically
from maskgit.pipeline import resolve_device
from maskgit.training.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from maskgit_kernels.backend import BACKENDS, resolve, use

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TrainingError(RuntimeError):
    """A run that can't start or go on; the message says what to change."""


def open_log(folder: Path, first_step: int) -> SummaryWriter:
    """The TensorBoard log of a run. Raises ImportError, naming the extra to install, where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("training needs TensorBoard: pip install 'maskgit-inpaint[train]'") from error
    # purge_step drops what a killed run logged after its last checkpoint: those steps are done again.
    return SummaryWriter(str(folder), purge_step=first_step)


@dataclass(frozen=True)
class LoopConfig:
    """What both stages have in common."""

    output: Path
    """Folder of the run: checkpoints, TensorBoard log, pictures, and the trained model."""
    steps: int
    """Optimizer steps in all."""
    batch_size: int
    """Images per step."""
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
    """Decay of the moving average of the weights, which is what is validated and saved; 0 for none."""
    precision: str = "bf16"
    """bf16 (autocast) or float32."""
    compile: bool = False
    """Run the networks through torch.compile: a minute or two of compilation first. On a CPU it
    speeds up the tokenizer and does nothing for the transformer."""
    one_per_family: bool = False
    """Show one image of each family of near copies in an epoch (of the emoji: skin tones, genders, directions), a
    random one each time, instead of all of them."""
    seed: int = 0
    """Seed of everything that is random in the run."""
    workers: int = 0
    """Processes that read images; 0 reads in the training process."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one."""
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
    """Checkpoints kept."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder (from the start if there is none)."""

    def __post_init__(self) -> None:
        self.require_at_least(1, "steps", "batch_size", "log_every", "validate_every", "save_every", "keep")
        self.require_at_least(0, "lr", "min_lr", "warmup", "weight_decay", "clip", "seed", "workers")
        self.require_share("beta1", "beta2", "ema")
        if self.kernels is not None and self.kernels not in BACKENDS:
            raise TrainingError(f"--kernels {self.kernels}: must be one of {', '.join(BACKENDS)}")
        if self.precision not in ("bf16", "float32"):
            raise TrainingError(f"--precision {self.precision}: must be bf16 or float32")

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

    # A resumed run may change only what has no influence on the losses.
    FREE = ("output", "device", "workers", "log_every", "validate_every", "save_every", "keep", "resume")


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine from lr to min_lr at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and convolutions only, not on gains, biases and norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # The rate is a placeholder: the loop sets it before every step.
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=True)


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto is a GPU if there is one. Raises TrainingError if it isn't available."""
    try:
        return resolve_device(None if name == "auto" else name)
    except ValueError as error:
        raise TrainingError(f"--device {name}: {error}") from error


class SampleOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (index, position): a new shuffle each epoch, from (seed, epoch), starting at any step.

    `position` counts samples from the start of the run; the augmentation of a sample is drawn from it.

    Args:
        families: int64 [n], the family of each sample; with config.one_per_family, an epoch has one of each.
    """

    def __init__(self, families: np.ndarray, config: LoopConfig, first_step: int) -> None:
        if not len(families):
            raise TrainingError("the training set is empty")
        self.families, self.config, self.first_step = families, config, first_step

    def __len__(self) -> int:
        return self.config.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        length = len(np.unique(self.families)) if self.config.one_per_family else len(self.families)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.first_step, self.config.steps):
            batch = []
            for position in range(step * self.config.batch_size, (step + 1) * self.config.batch_size):
                if position // length != epoch:
                    epoch = position // length
                    order = self._shuffled(epoch)
                batch.append((int(order[position % length]), position))
            yield batch

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.families))
        if self.config.one_per_family:
            _, first = np.unique(self.families[order], return_index=True)
            order = order[np.sort(first)]
        return order


class StageTask(abc.ABC):
    """What a stage brings to the loop: its networks, one step of training, its validation, what it leaves behind."""

    model: nn.Module
    """What is trained, averaged and saved."""
    optimizers: list[torch.optim.Optimizer]
    dataset: Dataset[Any]
    """Indexed by (index, position); see SampleOrder."""
    families: np.ndarray
    """int64 [n]: the family of each of the data set's samples, as `ImageDataset.family_numbers` gives them."""

    @abc.abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Every module with state that a checkpoint must hold, by name."""

    @abc.abstractmethod
    def training_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Forward, backward and optimizer; returns float [] figures to log, "loss" among them, without host sync."""

    @abc.abstractmethod
    def validate(self, model: nn.Module, writer: SummaryWriter, step: int, folder: Path) -> dict[str, float]:
        """Figures of `model` (the averaged one if there is one) on the validation set; writes pictures too."""

    @abc.abstractmethod
    def export(self, model: nn.Module, folder: Path, figures: dict[str, float]) -> None:
        """Write the trained model where a user picks it up."""


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else dataclasses.asdict(value)


def run_settings(config: LoopConfig) -> dict[str, Any]:
    """The settings that decide a run's losses, in JSON form."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in config.FREE}
    return json.loads(json.dumps(values, default=_plain))


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    write_atomically({path: (json.dumps(values, indent=2) + "\n").encode()})


def train(make_task: Callable[[], StageTask], config: LoopConfig, device: torch.device) -> dict[str, float]:
    """Train to config.steps and return the figures of the last validation.

    The task is made only once the output folder is known to be free or to hold this run, because making it may write.

    Raises:
        TrainingError: the output folder holds another run, the kernels can't run, or the loss isn't finite.
        CheckpointError: a checkpoint can't be written or read.
    """
    if config.kernels is not None:
        try:
            resolve(config.kernels, device)
        except RuntimeError as error:
            raise TrainingError(f"--kernels {config.kernels}: {error}") from error
        use(config.kernels)
    config.output.mkdir(parents=True, exist_ok=True)
    checkpoints = config.output / "checkpoints"
    saved = _newest(config, checkpoints)
    task = make_task()
    averaged = None
    if config.ema:
        averaged = AveragedModel(task.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    first_step = 0
    if saved is not None:
        first_step = saved.step
        _restore(saved, task, averaged)
    del saved  # it is as large as the model and its optimizer
    validated = averaged.module if averaged is not None else task.model

    order = SampleOrder(task.families, config, first_step)
    loader = DataLoader(
        task.dataset,
        batch_sampler=order,
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=False,
    )
    writer = open_log(config.output / "log", first_step)
    figures: dict[str, float] = {}
    started, last_log = time.monotonic(), (time.monotonic(), first_step)
    with writer, tqdm(total=config.steps, initial=first_step, unit="step", dynamic_ncols=True) as progress:
        for step, batch in enumerate(loader, start=first_step):
            torch.manual_seed(config.seed * 1_000_003 + step)
            rate = learning_rate(config, step)
            for optimizer in task.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            task.model.train()
            logged = task.training_step(batch, step)
            if averaged is not None:
                averaged.update_parameters(task.model)
            progress.update()
            done = step + 1
            logs, validates, saves = (
                done % every == 0 or done == config.steps
                for every in (config.log_every, config.validate_every, config.save_every)
            )
            # Looked at only now and then, because reading it stops a GPU's host; but never saved without a look.
            if (logs or saves) and not math.isfinite(float(logged["loss"])):
                raise TrainingError(
                    f"step {step}: the loss is {float(logged['loss'])}; start again with a lower --lr or with "
                    "--precision float32, and another --output"
                )
            if logs:
                values = {name: float(value) for name, value in logged.items()}
                now = time.monotonic()
                values["images_per_second"] = (done - last_log[1]) * config.batch_size / (now - last_log[0])
                last_log = (now, done)
                for name, value in {**values, "lr": rate}.items():
                    writer.add_scalar(f"train/{name}", value, step)
                progress.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            if validates:
                figures = _validate(task, validated, writer, done, config)
                progress.write(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
                last_log = (time.monotonic(), done)
            if saves:
                _save(task, averaged, config, checkpoints, done)
    if not figures:  # resumed after its last step
        figures = json.loads((config.output / "validation.json").read_text())
        del figures["step"]
    task.export(validated, config.output, figures)
    tqdm.write(f"trained to step {config.steps} in {(time.monotonic() - started) / 60:.1f} minutes: {config.output}")
    return figures


def _validate(
    task: StageTask, model: nn.Module, writer: SummaryWriter, step: int, config: LoopConfig
) -> dict[str, float]:
    model.eval()
    # Fixed noise: two validations differ only by the weights.
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        figures = task.validate(model, writer, step, config.output)
    for name, value in figures.items():
        writer.add_scalar(f"validation/{name}", value, step)
    write_json(config.output / "validation.json", {"step": step, **figures})
    return figures


def _state_modules(task: StageTask, averaged: AveragedModel | None) -> dict[str, nn.Module]:
    return task.modules() | ({"ema": averaged} if averaged is not None else {})


def _save(task: StageTask, averaged: AveragedModel | None, config: LoopConfig, folder: Path, step: int) -> None:
    weights = {
        f"{prefix}.{name}": tensor
        for prefix, module in _state_modules(task, averaged).items()
        for name, tensor in module.state_dict().items()
    }
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise TrainingError(
            f"step {step - 1}: {len(broken)} tensors are no longer finite, {broken[0]} among them; start again with a "
            "lower --lr or with --precision float32, and another --output"
        )
    state = {"settings": run_settings(config), "optimizers": [optimizer.state_dict() for optimizer in task.optimizers]}
    save_checkpoint(folder, step, weights, state, config.keep)


@dataclass(frozen=True)
class _Saved:
    """A checkpoint that has been read."""

    step: int
    path: Path
    weights: dict[str, Tensor]
    optimizers: list[dict[str, Any]]


def _newest(config: LoopConfig, folder: Path) -> _Saved | None:
    """Read the newest checkpoint of this run; None for a fresh start."""
    found = list_checkpoints(folder)
    if not found:
        write_json(config.output / "run.json", {"settings": run_settings(config), "torch": torch.__version__})
        return None
    if not config.resume:
        raise TrainingError(f"{config.output} already holds a run: go on with --resume, or choose another --output")
    step, path = found[-1]
    weights, state = load_checkpoint(path)
    theirs, ours = state["settings"], run_settings(config)
    changed = [name for name in ours if theirs.get(name) != ours[name]]
    if changed:
        listed = ", ".join(f"{name} (was {theirs.get(name)}, now {ours[name]})" for name in changed)
        raise TrainingError(f"{path}: this run was started with other settings: {listed}")
    return _Saved(step, path, weights, state["optimizers"])


def _restore(saved: _Saved, task: StageTask, averaged: AveragedModel | None) -> None:
    try:
        for prefix, module in _state_modules(task, averaged).items():
            start = f"{prefix}."
            module.load_state_dict({k[len(start) :]: v for k, v in saved.weights.items() if k.startswith(start)})
        for optimizer, state in zip(task.optimizers, saved.optimizers, strict=True):
            optimizer.load_state_dict(state)
    except (RuntimeError, ValueError) as error:  # another number of classes, another tokenizer
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise CheckpointError(f"{saved.path}: does not fit the networks of this run: {reason}") from error
