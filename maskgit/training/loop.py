"""The training loop of both stages.

Every random choice of a step comes from (seed, step) alone, and every random choice of a sample from its place in the
order of the run. So a checkpoint holds no generator states, and a run resumed at a step does exactly what the unbroken
run did there.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from maskgit.data.arrays import json_bytes
from maskgit.files import write_atomically
from maskgit.training import checkpoint
from maskgit.training.engine import AGAINST_NAN, Engine, Figures
from maskgit.training.going_on import Saved, newest, say_longer
from maskgit.training.graphs import StepGraph
from maskgit.training.health import Checked, length_warnings, out_of_memory_said, overfitting
from maskgit.training.optimizer import AveragedWeights, growing_decay, learning_rate, set_rate
from maskgit.training.run_file import FILE, describe_run, revision_of, run_settings
from maskgit.training.samples import SampleOrder, as_batch
from maskgit.training.settings import LoopConfig, TrainingError
from maskgit.training.signals import Stopped, StopSignals, leave_signals_to_parent
from maskgit.training.tracking import Speed, Tracker, peak_flops
from maskgit_kernels.backend import resolve, use

ON_THE_BAR = ("loss", "accuracy", "images_per_second")


class StageTask(abc.ABC):
    """What a stage brings to the loop: its networks, one step of training, its validation, what it leaves behind."""

    model: nn.Module
    """What is trained, averaged and saved."""
    optimizers: list[torch.optim.Optimizer]
    """Made by `prepare`."""
    dataset: Any  # Dataset, and Sized, which can't be said together
    """Has a length; indexed by (index, position); see SampleOrder."""
    tokens_per_image: int = 0
    """For the throughput; 0 where tokens aren't what is trained on."""
    graphs: bool = False
    """Whether steps are to be CUDA graphs; their batches are TokenSamples then."""
    judged_by: str
    """The figure of `validate` whose least value makes the best checkpoint."""
    learned_by: str = "loss"
    """The figure of `training_step` that falls while the run learns."""
    against_overfitting: str
    """Advice."""
    picture: str
    """The file of the run's folder in which `validate` and `show` put pictures."""

    @abc.abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Every module with state that a checkpoint must hold, by name."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make the optimizers, and what the processes need around the networks, whose weights are divided by now."""

    @abc.abstractmethod
    def flops_per_image(self) -> float:
        """Floating-point operations of a training step for each image, forward and backward."""

    @abc.abstractmethod
    def training_step(self, batch: Any, step: int) -> Figures:
        """Forward, backward and optimizer for this process's share of a batch.

        Returns:
            Figures of the whole batch to log, float [] each, "loss" among them, without waiting for the device.
        """

    @abc.abstractmethod
    def validate(self, model: nn.Module, tracker: Tracker, step: int) -> dict[str, float]:
        """Figures of `model` (the averaged one if there is one) on the validation set; shows pictures, warns too."""

    @abc.abstractmethod
    def show(self, model: nn.Module, tracker: Tracker, step: int, most: int) -> None:
        """Show pictures of at most so many images, as `validate` does, in the time of a few steps of as many images."""

    @abc.abstractmethod
    def export(self, model: nn.Module, folder: Path, figures: dict[str, float]) -> None:
        """Write the trained model to `folder`/model, where a user picks it up."""


Watch = Callable[[int, float, dict[str, float]], bool]
"""Is told after each validation, in the main process, the steps done, the seconds trained so far, without validations
and the checkpoints behind them, and the figures; says whether the run is to end there."""


@dataclass
class _Run:
    """A run under way."""

    config: LoopConfig
    engine: Engine
    task: StageTask
    averaged: AveragedWeights | None
    whole_model: nn.Module | None
    """With the weights divided among the processes: where they are put together for a validation."""
    watch: Watch | None = None
    best: dict[str, float] | None = None
    """Step and value of the best validation so far."""
    checked: list[Checked] = dataclasses.field(default_factory=list)
    """The validations since this start."""

    @property
    def checkpoints(self) -> Path:
        return self.config.output / "checkpoints"

    def modules(self) -> dict[str, nn.Module]:
        return self.task.modules() | ({"ema": self.averaged} if self.averaged is not None else {})

    def step(self, batch: Any, step: int, rate: float | Tensor, decay: float | Tensor) -> Figures:
        """All that the device does in a step. The numbers may be tensors on the device, for a CUDA graph."""
        for optimizer in self.task.optimizers:
            set_rate(optimizer, rate)
        figures = self.task.training_step(batch, step)
        if self.averaged is not None:
            self.averaged.update(self.task.model, decay, self.engine.broken)
        self.engine.count_step()
        return figures

    def trained_model(self) -> nn.Module:
        """What is validated and saved: the averaged weights if there are any. All processes must call this."""
        model = self.task.model if self.averaged is None else self.averaged.module
        if self.whole_model is None:
            return model
        self.whole_model.load_state_dict(checkpoint.gathered(model.state_dict()))
        return self.whole_model


def train(
    make_task: Callable[[], StageTask], config: LoopConfig, engine: Engine, watch: Watch | None = None
) -> dict[str, float]:
    """Train to config.steps and return the figures of the last validation (in the main process; {} in the others).

    The task is made only once the output folder is known to be free or to hold this run, because making it may write.

    Raises:
        TrainingError: the output folder holds another run, the kernels can't run, the loss isn't finite, or a
            checkpoint can't be written or read.
        Stopped: SIGTERM or SIGINT came; there is a checkpoint of the last step.
    """
    config = dataclasses.replace(config, precision=engine.config.precision)  # of which `auto` is none
    if config.kernels is not None:
        try:
            resolve(config.kernels, engine.device)
        except RuntimeError as error:
            raise TrainingError(f"--kernels {config.kernels}: {error}") from error
        use(config.kernels)
    saved = newest(config)
    begins = engine.is_main and (saved is None or saved.state["settings"]["steps"] < config.steps)
    if begins and saved is None:
        write_atomically({config.output / FILE: json_bytes(describe_run(config))})
    with out_of_memory_said(config, engine.device, engine.processes):
        run = _start(make_task(), config, engine, watch)
        first_step = 0 if saved is None else saved.step
        if saved is not None:
            _restore(saved, run)
            if begins:
                write_atomically({config.output / FILE: json_bytes(describe_run(config))})
                say_longer(saved, config)
        if begins:
            for text in length_warnings(len(run.task.dataset), config):
                print(f"warning: {text}", flush=True)
        del saved  # it is as large as the model and its optimizer
        started = time.monotonic()
        try:
            steps, figures = _train(run, first_step)
        except Stopped:
            engine.close()
            raise
    model = run.trained_model()
    if engine.is_main:
        if not figures:  # resumed after its last step
            figures = json.loads((config.output / "validation.json").read_text())
            del figures["step"]
        run.task.export(model, config.output, figures)
        _say_where(run, steps, time.monotonic() - started)
    engine.close()
    return figures


def _start(task: StageTask, config: LoopConfig, engine: Engine, watch: Watch | None) -> _Run:
    averaged = AveragedWeights(task.model) if config.ema else None
    whole_model = copy.deepcopy(task.model) if engine.sharded else None
    engine.divide(task.model)
    if averaged is not None:
        engine.divide(averaged.module)
    task.prepare()
    return _Run(config, engine, task, averaged, whole_model, watch)


def _train(run: _Run, first_step: int) -> tuple[int, dict[str, float]]:
    """From first_step to the end; returns the steps done and the figures of the last validation."""
    config, engine, task = run.config, run.engine, run.task
    loader = DataLoader(
        task.dataset,
        batch_sampler=SampleOrder(len(task.dataset), config, first_step, engine.process, engine.processes),
        num_workers=config.workers,
        collate_fn=as_batch,
        pin_memory=engine.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )
    peak = peak_flops(engine.device, config.precision, engine.processes)
    make_step = StepGraph(run.step, engine.device, config.output) if task.graphs else run.step
    speed = Speed(config.batch_size, task.tokens_per_image, task.flops_per_image(), peak, engine.device)
    figures: dict[str, float] = {}
    losses: list[float] = []  # since the last validation
    done, seconds, ends, told = first_step, 0.0, False, False
    with (
        Tracker(config, first_step, write=engine.is_main) as tracker,
        tqdm(
            total=config.steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not engine.is_main
        ) as progress,
        StopSignals(insist=engine.processes == 1) as signals,
    ):
        speed.restart(first_step)
        started = time.monotonic()
        for step, batch in enumerate(loader, start=first_step):
            engine.begin(step)
            task.model.train()
            rate = learning_rate(config, step)
            logged = make_step(batch, step, rate, growing_decay(config.ema, step))
            progress.update()
            done = step + 1
            stop = int(engine.highest(signals.received))
            logs, validates, saves = (
                done % every == 0 or done == config.steps
                for every in (config.log_every, config.validate_every, config.save_every)
            )
            looks = shows_early(done, config)
            # Reading waits for a GPU, so there it is done now and then; but nothing is saved without a look.
            if logs or saves or stop or engine.device.type == "cpu":
                skipped = engine.check_skipped(step)
            if logs or step == first_step:  # which the bar shows at once
                values = {name: float(value) for name, value in logged.items()}
                if logs:
                    losses.append(values[task.learned_by])
                    values |= speed.figures(done) | {"lr": rate, "skipped_steps": skipped}
                    tracker.add_scalars("train", values, step)
                shown = {name: f"{values[name]:.4g}" for name in ON_THE_BAR if name in values}
                progress.set_postfix(shown, refresh=False)
            if validates or looks:
                float(logged["loss"])  # which waits for a GPU to have trained so far
                seconds += time.monotonic() - started
            if validates:
                figures = _validate(run, tracker, done, losses)
                losses.clear()
                if engine.is_main:
                    progress.write(f"step {done}: " + ", ".join(f"{name} {x:.4g}" for name, x in figures.items()))
                    ends = run.watch is not None and run.watch(done, seconds, figures)
                ends = engine.highest(ends) > 0
            elif looks:
                part = config.batch_size // engine.processes // config.accumulate
                _look(run, done, functools.partial(task.show, tracker=tracker, step=done, most=part))
            if (validates or looks) and engine.is_main and not told:
                told = True
                progress.write(f"step {done}: pictures of what it can do so far: {config.output / task.picture}")
            if saves or stop or ends or (run.best is not None and run.best["step"] == done):
                _save(run, done)
            if validates or looks:
                speed.restart(done)
                started = time.monotonic()
            if ends:
                break
            if stop and done < config.steps:
                raise Stopped(
                    f"stopped by {signal.Signals(stop).name} after step {done} of {config.steps}, with a checkpoint in "
                    f"{run.checkpoints}; the same command with --resume goes on",
                    stop,
                )
    return done, figures


def shows_early(step: int, config: LoopConfig) -> bool:
    """Whether to show pictures before the first validation: after 10, 30, 100, 300, ... steps.

    At these distances, what they take stays a small share of the time, however long it is until that validation.
    """
    power = 10 ** (len(str(step)) - 1)
    return 10 <= step < min(config.validate_every, config.steps) and step in (power, 3 * power)


def _look(run: _Run, done: int, work: Callable[[nn.Module], Any]) -> Any:
    """What `work` makes of the model after `done` steps, in the main process; the others wait, for None."""
    model, seen = run.trained_model().eval(), None
    if run.engine.is_main:
        # Fixed noise: two looks differ only by the weights, also those of runs with other seeds.
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                seen = work(model)
            except FloatingPointError as error:
                said = f"step {done - 1}: the model's output is not finite: {error}"
                raise TrainingError(f"{said}; {AGAINST_NAN}") from error
    run.engine.wait()
    return seen


def _validate(run: _Run, tracker: Tracker, step: int, losses: list[float]) -> dict[str, float]:
    """Figures of the model so far, in the main process. `losses`: those logged since the last validation."""
    task = run.task
    figures: dict[str, float] = _look(run, step, lambda model: task.validate(model, tracker, step)) or {}
    if run.engine.is_main:
        tracker.add_scalars("validation", figures, step)
        write_atomically({run.config.output / "validation.json": json_bytes({"step": step, **figures})})
        if losses:
            run.checked.append(Checked(step, figures[task.judged_by], sum(losses) / len(losses)))
            advice = task.against_overfitting
            tracker.warn({"overfitting": overfitting(run.checked, task.judged_by, advice)})
    score = -run.engine.highest(-figures.get(run.task.judged_by, math.inf))  # only the main process has one
    if score < (math.inf if run.best is None else run.best["value"]):
        run.best = {"step": step, "value": score}
    return figures


def _save(run: _Run, step: int) -> None:
    weights = checkpoint.module_states(run.modules())
    optimizers = [checkpoint.gathered(optimizer.state_dict()) for optimizer in run.task.optimizers]
    if run.engine.is_main:
        broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if broken:
            raise TrainingError(
                f"step {step - 1}: {len(broken)} tensors are no longer finite, {broken[0]} among them; {AGAINST_NAN}"
            )
        state = {
            "settings": run_settings(run.config),
            "folder": str(Path.cwd()),  # where the paths among them begin
            "architectures": checkpoint.architectures(run.task.modules()),
            "optimizers": optimizers,
            "skipped": run.engine.skipped.tolist(),
            "best": run.best,
            "scaler": run.engine.scaler.state_dict() or None,
        }
        best = None if run.best is None else int(run.best["step"])
        checkpoint.save_checkpoint(run.checkpoints, step, weights, state, run.config.keep, best)
    run.engine.wait()


def _restore(saved: Saved, run: _Run) -> None:
    try:
        checkpoint.load_module_states(run.modules(), saved.weights)
        checkpoint.check_architectures(run.task.modules(), saved.state.get("architectures"))
        for optimizer, state in zip(run.task.optimizers, saved.state["optimizers"], strict=True):
            checkpoint.load_optimizer_state(optimizer, state)
    except (RuntimeError, ValueError) as error:  # another number of classes, another tokenizer
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise checkpoint.CheckpointError(
            f"{saved.path}: does not fit the networks of this run: {reason}; give it the data and models that it was "
            f"started with, or choose another --output (its revision is {revision_of(run.config.output)}; presets of "
            "--model can be others in this one)"
        ) from error
    # The checkpoints of the first release have nothing of these.
    run.best = saved.state.get("best")
    if saved.state.get("skipped"):
        run.engine.skipped.copy_(torch.tensor(saved.state["skipped"]))
    if saved.state.get("scaler"):
        run.engine.scaler.load_state_dict(saved.state["scaler"])


def _say_where(run: _Run, steps: int, seconds: float) -> None:
    output = run.config.output
    tqdm.write(f"trained to step {steps} in {seconds / 60:.1f} minutes")
    tqdm.write(f"  model        {output / 'model'}")
    if run.best is not None and (run.checkpoints / checkpoint.BEST).exists():
        score = f"{run.task.judged_by} {run.best['value']:.4g} at step {run.best['step']:.0f}"
        tqdm.write(f"  checkpoints  {run.checkpoints} (best: {score})")
    tqdm.write(f"  pictures     {', '.join(str(path) for path in sorted(output.glob('*.png')))}")
    tqdm.write(f"  curves       tensorboard --logdir {output / 'log'}")
