"""`--dry-run`: what a run would take, from its data, its networks and a few steps, without writing into its folder."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from maskgit.config import TransformerConfig, preset
from maskgit.data import load_dataset
from maskgit.data.tokens import HIDDEN, TokenShard
from maskgit.training.engine import Engine
from maskgit.training.loop import StageTask
from maskgit.training.settings import LoopConfig, TrainingError
from maskgit.training.tokenizer import TokenizerTask, TokenizerTraining
from maskgit.training.tokens import TrainingTokens, open_tokens, tokenizer_at
from maskgit.training.transformer import TransformerTask, TransformerTraining, make_architecture

TIMED_STEPS = 3
CPU_IMAGES = 8
"""Images of a timed step on a CPU at most: from there on its time grows with their number."""


class _Activations:
    """Bytes that a forward pass keeps for the backward pass, beside the weights."""

    def __init__(self, *modules: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for m in modules for p in (*m.parameters(), *m.buffers())}
        self.kept: dict[int, int] = {}

    @contextmanager
    def counted(self) -> Iterator[None]:
        alive: list[Tensor] = []  # so that no storage is freed and its place counted for another

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.weights and storage.data_ptr() not in self.kept:
                self.kept[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor.detach())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def total(self) -> int:
        return sum(self.kept.values())


def dry_run(config: LoopConfig) -> list[str]:
    """Check the data and measure a few steps of the run that `config` describes.

    Returns:
        The lines of a report.

    Raises:
        TrainingError, DataError, ModelError, ConfigError: as the run itself.
    """
    # What is timed is a step of one process, without accumulation, of as many images as it holds at a time.
    engine = Engine(config)
    if engine.processes > 1:
        raise TrainingError("--dry-run: start it without torchrun; it says what one process needs")
    together = config.batch_size // config.accumulate
    timed = together if engine.device.type == "cuda" else min(together, CPU_IMAGES)
    alone = dataclasses.replace(config, batch_size=timed, accumulate=1)
    engine.config = alone
    # Windows removes no file that is mapped into memory, as the tokens are until the end of the program.
    with tempfile.TemporaryDirectory(prefix="maskgit-dry-run-", ignore_cleanup_errors=True) as folder:
        if isinstance(config, TransformerTraining):
            lines, task, images = _transformer(config, alone, engine, Path(folder))
        else:
            assert isinstance(alone, TokenizerTraining)
            lines, task, images = _tokenizer(alone, engine)
        task.prepare()
        order = np.random.default_rng(config.seed).integers(len(task.dataset), size=timed)  # type: ignore[arg-type]
        samples = [task.dataset[int(index), position] for position, index in enumerate(order)]
        seconds, activations, peak = _measure(task, engine, samples, config.steps - 1)
        if timed < together:  # some of it, such as the weights in lower precision, doesn't grow with the batch
            half = _activations(task, engine, samples[: timed // 2], config.steps - 1)
            activations += (activations - half) * (together - timed) // (timed - timed // 2)
    weights = sum(_bytes(module) for module in task.modules().values())
    held = {
        "weights": weights,
        "gradients": sum(_bytes(p) for o in task.optimizers for g in o.param_groups for p in g["params"]),
        "optimizer": 2 * sum(_bytes(p) for o in task.optimizers for g in o.param_groups for p in g["params"]),
        "average": _bytes(task.model) if config.ema else 0,
        "activations": activations,
    }
    if task.tokens_per_image:
        lines.append(_line("batch", f"{config.batch_size * task.tokens_per_image:,} tokens a step"))
    epochs = config.steps * config.batch_size / images
    lines.append(_line("steps", f"{config.steps:,} of {config.batch_size} images: {epochs:,.1f} epochs"))
    lines.append(_line("memory", f"about {_gib(sum(held.values()))}, of one process"))
    lines += [_line("", f"{_gib(size)} {name}") for name, size in held.items() if size]
    lines.append(_line("", f"activations: what is kept for the backward pass, from {timed} images to {together}"))
    if peak is not None:
        lines.append(_line("", f"{_gib(peak)} at most was held on the GPU in those steps"))
    whole = seconds / timed * config.batch_size
    lines.append(
        _line("time", f"{whole:.3g} s a step, {_duration(whole * config.steps)} in all on one {engine.device}")
    )
    lines.append(_line("", f"from {TIMED_STEPS} steps of {timed} images; validation and checkpoints come on top"))
    lines.append("nothing was written")
    return lines


def _transformer(
    config: TransformerTraining, alone: LoopConfig, engine: Engine, folder: Path
) -> tuple[list[str], StageTask, int]:
    """Lines about data and model, the task, and the number of training images."""
    tokenizer = tokenizer_at(config.tokenizer, config.image_size).to(engine.device)
    architecture = make_architecture(config, tokenizer.config)
    if config.tokens is not None:
        tokens = open_tokens(config.tokens, tokenizer, config.seed, config.hole_share)
        images, held_out, classes = len(tokens.train), len(tokens.held_out), len(tokens.class_names)
        source = f"{config.tokens}, {len(tokens.train.tokens)} views"
    else:
        size = tokenizer.config.image_size
        train, val = (load_dataset(config.data, size, split, config.val_fraction) for split in ("train", "val"))
        images, held_out, classes = len(train), len(val), len(train.class_names)
        tokens = _random_tokens(folder, alone.batch_size, architecture, config.hole_share)
        shards = (1 + (config.holes if config.hole_share else 0)) * config.views * images * architecture.num_tokens * 2
        source = f"{config.data}, tokens of {config.views} views will take {shards / 1e6:,.1f} MB"
    assert isinstance(alone, TransformerTraining)
    task = TransformerTask(dataclasses.replace(alone, eval_every=0), architecture, tokenizer, engine, tokens)
    lines = [
        _line("data", f"{images:,} images, {held_out:,} held out, {classes} classes ({source})"),
        _line("model", f"transformer of {_millions(task.model)} parameters, tokenizer of {_millions(tokenizer)}"),
    ]
    return lines, task, images


def _random_tokens(folder: Path, images: int, architecture: TransformerConfig, hole_share: float) -> TrainingTokens:
    """Stand-ins for tokens that are yet to be made."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(architecture.codebook_size, size=(1, images, architecture.num_tokens), dtype=np.uint16)
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "holes.npy", np.where(rng.random(tokens.shape) < 0.5, HIDDEN, tokens)[None])
    labels = np.zeros(images, dtype=np.int64)
    shard = TokenShard(folder, labels, hole_share=hole_share)
    return TrainingTokens(shard, shard, labels, [])


def _tokenizer(config: TokenizerTraining, engine: Engine) -> tuple[list[str], StageTask, int]:
    task = TokenizerTask(config, preset(config.model).tokenizer, engine)
    held_out = len(load_dataset(config.data, task.model.config.image_size, "val", config.val_fraction))
    images = len(task.families)
    parts = [f"VQGAN of {_millions(task.model)} parameters"]
    if task.discriminator is not None:
        parts.append(f"discriminator of {_millions(task.discriminator)}")
    lines = [
        _line("data", f"{images:,} images, {held_out:,} held out ({config.data})"),
        _line("model", ", ".join(parts)),
    ]
    return lines, task, images


def _activations(task: StageTask, engine: Engine, samples: list[Any], step: int) -> int:
    """Bytes that a step keeps between forward and backward pass."""
    activations = _Activations(*task.modules().values())
    engine.begin(step)
    with activations.counted():
        task.training_step(default_collate(samples), step)
    return activations.total()


def _measure(task: StageTask, engine: Engine, samples: list[Any], last: int) -> tuple[float, int, int | None]:
    """Seconds of step `last`, bytes of its activations, and the most bytes on the GPU (None on a CPU)."""
    task.model.train()
    batch = default_collate(samples)
    engine.begin(0)
    task.training_step(batch, 0)  # which also sets up what the others find
    activations = _activations(task, engine, samples, last)
    on_gpu = engine.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(engine.device)
        torch.cuda.synchronize(engine.device)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        engine.begin(last)
        task.training_step(batch, last)
    if on_gpu:
        torch.cuda.synchronize(engine.device)
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    return seconds, activations, torch.cuda.max_memory_allocated(engine.device) if on_gpu else None


def _bytes(thing: nn.Module | Tensor) -> int:
    tensors = [thing] if isinstance(thing, Tensor) else [*thing.parameters(), *thing.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} million"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _line(name: str, text: str) -> str:
    return f"{name:<8} {text}"
