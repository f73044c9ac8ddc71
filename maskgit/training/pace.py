"""How long a training step takes on this machine: what a run in a given time is planned from, and a dry run says.

`measure_pace` times a run's own steps, with the reading of its images, and a validation. `measure_cost` is content with
a few steps of a few images, so that it ends in a minute however large the network is, and counts memory too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from maskgit.training.engine import Engine
from maskgit.training.loop import StageTask
from maskgit.training.optimizer import AveragedWeights
from maskgit.training.samples import as_batch
from maskgit.training.settings import LoopConfig
from maskgit.training.signals import leave_signals_to_parent
from maskgit.training.tracking import Tracker

WARM_UP = 5  # steps that aren't counted: they compile, allocate, choose algorithms
ROUNDS = 5  # of steps, of which the median counts
ROUND_ON_CPU, ROUND_ON_GPU = 4, 40  # steps each: the GPU is waited for only behind a round


class Pace(NamedTuple):
    """Seconds."""

    step: float
    """Of a training step, with the reading of its images."""
    validation: float


def measure_pace(task: StageTask, config: LoopConfig, engine: Engine) -> Pace:
    """Time the steps of a run, and a validation, in one process. The task is of no use afterwards."""
    length = ROUND_ON_GPU if engine.device.type == "cuda" else ROUND_ON_CPU
    loader = DataLoader(
        task.dataset,
        batch_sampler=_batches(task, config, WARM_UP + ROUNDS * length),
        num_workers=config.workers,
        collate_fn=as_batch,
        pin_memory=engine.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )
    averaged = AveragedWeights(task.model) if config.ema else None
    task.prepare()  # at a learning rate of 0, which takes as long as any
    marks = []
    for step, batch in enumerate(loader):
        engine.begin(step)
        task.model.train()
        task.training_step(batch, step)
        if averaged is not None:
            averaged.update(task.model, config.ema, engine.broken)
        if step + 1 >= WARM_UP and (step + 1 - WARM_UP) % length == 0:
            marks.append(_now(engine.device))
    return Pace(float(np.median(np.diff(marks))) / length, _validation(task, config, engine))


def _batches(task: StageTask, config: LoopConfig, steps: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of (index, position) in random order, as `SampleOrder` gives them."""
    for step in range(steps):
        chosen = np.random.default_rng((config.seed, step)).integers(len(task.dataset), size=config.batch_size)
        yield [(int(index), step * config.batch_size + place) for place, index in enumerate(chosen)]


def _validation(task: StageTask, config: LoopConfig, engine: Engine) -> float:
    """Seconds of a validation, of which nothing stays: what it says of an untrained model would only confuse."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        torch.no_grad(),
        torch.random.fork_rng(),
    ):
        tracker = Tracker(dataclasses.replace(config, output=Path(folder)), 0, write=False)
        started = _now(engine.device)
        task.validate(task.model.eval(), tracker, 0)
        return _now(engine.device) - started


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- a few steps ------------------------------------------------------------------------------------------------------

BUDGET = 40.0
"""Seconds that all of them may take; the first step, of one image, takes what it takes."""
TIMED_STEPS = 3  # at most


class Cost(NamedTuple):
    """Of a training step, as far as there was time to look."""

    fixed: float
    """Seconds of a step, beside its images: the update, above all. 0 where there was time for one image only."""
    seconds: float
    """Of each image beside them."""
    activations: int
    """Bytes that a step keeps between forward and backward pass."""
    images: int
    """Of each step that the seconds are of."""
    steps: int
    """How many these were."""
    peak: int | None
    """Most bytes that were held on the GPU; None on a CPU."""

    def of_step(self, images: int) -> float:
        """Seconds."""
        return self.fixed + self.seconds * images


def measure_cost(task: StageTask, engine: Engine, samples: Sequence[Any], together: int, step: int) -> Cost:
    """Do step number `step` a few times, of one image first, then of as many as there is time for, in one process.

    Args:
        task: made for one part a step. It is of no use afterwards.
        samples: of its data set, as many as a step may have.
        together: images of the step that the activations are those of.
    """
    task.prepare()
    on_gpu = engine.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(engine.device)
    one, of_one = _watched(task, engine, samples[:1], step)
    left, activations = BUDGET - one, of_one * together
    if one <= left:  # the first one also set up what the others find
        one, _ = _watched(task, engine, samples[:1], step)
        left -= one
    images, taken = max(1, min(len(samples), int(left / one / (1 + TIMED_STEPS)))), one
    if images > 1:
        taken, kept = _watched(task, engine, samples[:images], step)
        left -= taken
        # Some of it, such as the weights in lower precision, doesn't grow with the batch.
        activations = kept + (kept - of_one) * (together - images) // (images - 1)
    steps = min(TIMED_STEPS, int(left / taken))
    if steps > 0:
        started = _now(engine.device)
        for _ in range(steps):
            _step(task, engine, samples[:images], step)
        taken = (_now(engine.device) - started) / steps
    # An update takes as long however many images there are.
    seconds = min(max(0.0, taken - one) / (images - 1), taken / images) if images > 1 else taken
    peak = torch.cuda.max_memory_allocated(engine.device) if on_gpu else None
    return Cost(taken - seconds * images, seconds, activations, images, max(1, steps), peak)


def _step(task: StageTask, engine: Engine, samples: Sequence[Any], step: int) -> None:
    task.model.train()
    engine.begin(step)
    task.training_step(default_collate(list(samples)), step)


def _watched(task: StageTask, engine: Engine, samples: Sequence[Any], step: int) -> tuple[float, int]:
    """Seconds of a step, and the bytes that it keeps between forward and backward pass."""
    started = _now(engine.device)
    with kept_activations(*task.modules().values()) as kept:
        _step(task, engine, samples, step)
    return _now(engine.device) - started, sum(storage.nbytes() for storage in kept.values())


@contextlib.contextmanager
def kept_activations(*modules: nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """What the forward passes within keep for the backward pass, beside the weights, by its place in memory."""
    weights = {tensor.untyped_storage().data_ptr() for module in modules for tensor in tensors_of(module)}
    kept: dict[int, torch.UntypedStorage] = {}  # which also keeps its place from being counted for another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def tensors_of(thing: nn.Module | Tensor) -> list[Tensor]:
    """A tensor itself, or the parameters and buffers of a network."""
    return [thing] if isinstance(thing, Tensor) else [*thing.parameters(), *thing.buffers()]
