"""`--dry-run`: what a run would take, from its data, its networks and a few steps, without writing into its folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from maskgit.config import TransformerConfig, preset
from maskgit.data.tokens import TokenSample
from maskgit.training.engine import Engine
from maskgit.training.graphs import check_graphs
from maskgit.training.loop import StageTask
from maskgit.training.samples import load_splits
from maskgit.training.settings import LoopConfig, TokenizerTraining, TrainingError, TransformerTraining
from maskgit.training.tokenizer import TokenizerTask
from maskgit.training.tokens import TrainingTokens, masks_for_holes, open_tokens, tokenizer_at
from maskgit.training.transformer import TransformerTask, make_architecture

TIMED_STEPS = 3
CPU_IMAGES = 8
"""Images of a timed step on a CPU at most: from there on its time grows with their number."""


def dry_run(config: LoopConfig) -> list[str]:
    """Check the data and measure a few steps of the run that `config` describes; returns the lines of a report.

    Raises TrainingError, DataError, ModelError and ConfigError as the run itself.
    """
    engine = Engine(config)
    if engine.processes > 1:
        raise TrainingError("--dry-run: start it without torchrun; it says what one process needs")
    if isinstance(config, TransformerTraining):
        check_graphs(config, engine)
    # What is timed is a step of one process, without accumulation and graphs, of as many images as it holds at a time.
    together, last = config.batch_size // config.accumulate, config.steps - 1
    timed = together if engine.device.type == "cuda" else min(together, CPU_IMAGES)
    engine.config = alone = dataclasses.replace(config, batch_size=timed, accumulate=1)
    if isinstance(alone, TransformerTraining):
        task, images, samples, data, model = _transformer(alone, engine)
    else:
        assert isinstance(alone, TokenizerTraining)
        task, images, samples, data, model = _tokenizer(alone, engine)
    task.prepare()
    _step(task, engine, samples, 0)  # which also sets up what the others find
    activations = _activations(task, engine, samples, last)
    seconds, peak = _time(task, engine, samples, last)
    if timed < together:  # some of it, such as the weights in lower precision, doesn't grow with the batch
        half = _activations(task, engine, samples[: timed // 2], last)
        activations += (activations - half) * (together - timed) // (timed - timed // 2)
    trained = sum(_bytes(p) for o in task.optimizers for group in o.param_groups for p in group["params"])
    held = {
        "weights": sum(_bytes(module) for module in task.modules().values()),
        "gradients": trained,
        "optimizer": 2 * trained,
        "average": _bytes(task.model) if config.ema else 0,
        "activations": activations,
    }
    whole = seconds / timed * config.batch_size
    epochs = config.steps * config.batch_size / images
    report = [("data", data), ("model", model)]
    if task.tokens_per_image:
        report.append(("batch", f"{config.batch_size * task.tokens_per_image:,} tokens a step"))
    report += [
        ("steps", f"{config.steps:,} of {config.batch_size} images: {epochs:,.1f} epochs"),
        ("memory", f"about {_gib(sum(held.values()))}, of one process"),
        *(("", f"{_gib(size)} {name}") for name, size in held.items() if size),
        ("", f"activations: what is kept for the backward pass, from {timed} images to {together}"),
    ]
    if peak is not None:
        report.append(("", f"{_gib(peak)} at most was held on the GPU in those steps"))
    report += [
        ("time", f"{whole:.3g} s a step, {_duration(whole * config.steps)} in all on one {engine.device}"),
        ("", f"from {TIMED_STEPS} steps of {timed} images; validation and checkpoints come on top"),
    ]
    return [*(f"{name:<8} {text}" for name, text in report), "nothing was written"]


# --- the stages -------------------------------------------------------------------------------------------------------


def _transformer(config: TransformerTraining, engine: Engine) -> tuple[StageTask, int, list[Any], str, str]:
    """The task, the number of training images, samples for a step, and what is to be said about data and model."""
    tokenizer = tokenizer_at(config.tokenizer, config.image_size).to(engine.device)
    architecture = make_architecture(config, tokenizer.config)
    masks = masks_for_holes(config, tokenizer.config)
    if config.tokens is not None:
        shards = open_tokens(config.tokens, tokenizer, config.seed, config.hole_share, masks)
        images, held_out, classes = len(shards.train), len(shards.held_out), len(shards.class_names)
        source = f"{config.tokens}, {len(shards.train.tokens)} views"
    else:
        train, val = load_splits(config, tokenizer.config.image_size)
        images, held_out, classes = len(train), len(val), len(train.class_names)
        views = config.views * (1 + (config.holes if config.hole_share else 0))
        size = 2 * views * images * architecture.num_tokens
        source = f"{config.data}, tokens of {config.views} views will take {size / 1e6:,.1f} MB"
    source += "" if masks is None else f", holes of {len(masks):,} masks"
    samples = _random_samples(config, architecture)
    stand_in: Any = samples  # for token shards, which are yet to be made, or needn't be read
    tokens = TrainingTokens(stand_in, stand_in, [])
    task = TransformerTask(dataclasses.replace(config, eval_every=0), architecture, tokenizer, engine, tokens)
    data = f"{images:,} images, {held_out:,} held out, {classes} classes ({source})"
    model = f"transformer of {_millions(task.model)}, tokenizer of {_millions(tokenizer, '')}"
    return task, images, samples, data, model


def _random_samples(config: TransformerTraining, architecture: TransformerConfig) -> list[TokenSample]:
    torch.manual_seed(config.seed)
    tokens = torch.randint(architecture.codebook_size, (config.batch_size, architecture.num_tokens))
    whole = torch.rand(config.batch_size, 1) >= config.hole_share
    candidates = whole | (torch.rand(tokens.shape) < 0.5)
    candidates[:, 0] = True  # no hole is empty
    return [TokenSample(row, row, inside, torch.tensor(0)) for row, inside in zip(tokens, candidates, strict=True)]


def _tokenizer(config: TokenizerTraining, engine: Engine) -> tuple[StageTask, int, list[Any], str, str]:
    """As `_transformer`."""
    task = TokenizerTask(config, preset(config.model).tokenizer, engine)
    _, held_out = load_splits(config, task.model.config.image_size)
    judge = "" if task.discriminator is None else f", discriminator of {_millions(task.discriminator, '')}"
    data = f"{len(task.dataset):,} images, {len(held_out):,} held out ({config.data})"
    samples = [task.dataset[index % len(task.dataset), index] for index in range(config.batch_size)]
    return task, len(task.dataset), samples, data, f"VQGAN of {_millions(task.model)}{judge}"


# --- what a step takes ------------------------------------------------------------------------------------------------


@contextmanager
def kept_activations(*modules: nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """What the forward passes within keep for the backward pass, beside the weights, by its place in memory."""
    weights = {tensor.untyped_storage().data_ptr() for module in modules for tensor in _tensors(module)}
    kept: dict[int, torch.UntypedStorage] = {}  # which also keeps its place from being counted for another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _step(task: StageTask, engine: Engine, samples: list[Any], step: int) -> None:
    task.model.train()
    engine.begin(step)
    task.training_step(default_collate(samples), step)


def _activations(task: StageTask, engine: Engine, samples: list[Any], step: int) -> int:
    """Bytes that a step keeps between forward and backward pass."""
    with kept_activations(*task.modules().values()) as kept:
        _step(task, engine, samples, step)
    return sum(storage.nbytes() for storage in kept.values())


def _time(task: StageTask, engine: Engine, samples: list[Any], step: int) -> tuple[float, int | None]:
    """Seconds of a step, and the most bytes that were held on the GPU (None on a CPU)."""
    on_gpu = engine.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(engine.device)
        torch.cuda.synchronize(engine.device)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        _step(task, engine, samples, step)
    if on_gpu:
        torch.cuda.synchronize(engine.device)
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    return seconds, torch.cuda.max_memory_allocated(engine.device) if on_gpu else None


def _tensors(thing: nn.Module | Tensor) -> list[Tensor]:
    return [thing] if isinstance(thing, Tensor) else [*thing.parameters(), *thing.buffers()]


def _bytes(thing: nn.Module | Tensor) -> int:
    return sum(tensor.nbytes for tensor in _tensors(thing))


def _millions(module: nn.Module, unit: str = " parameters") -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} million{unit}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
