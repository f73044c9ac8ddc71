"""How long a training step takes on this machine, and a validation: what a run in a given time is planned from."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from maskgit.training.engine import Engine
from maskgit.training.loop import StageTask
from maskgit.training.optimizer import AveragedWeights
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
