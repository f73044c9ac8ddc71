"""`--dry-run`: what a command would do, from its data, its networks and a few steps, without writing anything.

What is known at once comes first: each line is printed when it is made. What has to be timed is bounded (`pace.py`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maskgit.config import HaltonConfig, TransformerConfig
from maskgit.data import DataError, ImageDataset, ImageError
from maskgit.data.tokens import PLAIN_VIEWS, Encoder, TokenSample
from maskgit.tokenizer import VQGAN
from maskgit.training.engine import Engine, pick_device
from maskgit.training.graphs import check_graphs
from maskgit.training.health import length_warnings, out_of_memory_said
from maskgit.training.loop import StageTask
from maskgit.training.optimizer import Muon
from maskgit.training.pace import Cost, Pace, measure_cost, tensors_of
from maskgit.training.recipe_file import DEFAULT, Recipe, read_recipe
from maskgit.training.samples import load_splits, spread
from maskgit.training.settings import (
    LoopConfig,
    ModelTraining,
    TokenizerTraining,
    TokensConfig,
    TrainingError,
    TransformerTraining,
)
from maskgit.training.tokenizer import TokenizerTask, tokenizer_architecture
from maskgit.training.tokens import (
    TrainingTokens,
    check_output,
    images_to_tokenize,
    masks_for_holes,
    open_tokens,
    tokenizer_at,
)
from maskgit.training.transformer import TransformerTask, data_classes, make_architecture
from maskgit.training.whole import (
    VALIDATIONS,
    check_recipe,
    fit_to_time,
    stage_settings,
    tokens_settings,
)

CPU_IMAGES = 8
"""Images of a timed step on a CPU at most: from there on its time grows with their number."""
LOOKED_AT, LOOK_SECONDS = 1000, 5.0
"""Images that are read to see whether they can be, at most, and how long. A run reads all of them before it starts."""
TOKENIZE_SECONDS, TOKENIZED = 10.0, 16
"""How long views are tokenized to time it, and how many batches of them at most."""

Lines = Iterator[str]


def dry_run(config: LoopConfig | ModelTraining | TokensConfig, recipe: Recipe | None = None) -> Lines:
    """Check the data and time a little of what a command would do; yields the lines of a report as they are known.

    `recipe` is that of a whole model, None the default one.

    Raises TrainingError, DataError, ModelError and ConfigError as the command itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("--dry-run: start it without torchrun; it says what one process needs")
    if isinstance(config, ModelTraining):
        yield from _model(config, recipe or read_recipe(DEFAULT))
    elif isinstance(config, TokensConfig):
        yield from _tokens(config)
    else:
        yield from _stage(config)
    yield "nothing was written"


def _line(name: str, text: str) -> str:
    return f"{name:<8} {text}"


# --- the stages -------------------------------------------------------------------------------------------------------


class _Stage(NamedTuple):
    """A stage that can be timed."""

    task: StageTask
    engine: Engine
    samples: list[Any]
    """For the timed steps."""
    together: int
    """Images of a step that are held at a time."""


def _stage(config: LoopConfig) -> Lines:
    engine = Engine(config)
    if isinstance(config, TransformerTraining):
        config = config.settled()
        check_graphs(config, engine)
        assert config.tokenizer is not None
        tokenizer = tokenizer_at(config.tokenizer, config.image_size)
        images = yield from _images_of_tokens(config, tokenizer)
        architecture = make_architecture(config, tokenizer.config)
        stage = yield from _transformer(config, architecture, tokenizer, engine)
    else:
        assert isinstance(config, TokenizerTraining)
        splits = yield from _images(config, tokenizer_architecture(config).image_size)
        images = len(splits[0])
        stage = yield from _tokenizer(config, splits, engine)
    if stage.task.tokens_per_image:
        yield _line("batch", f"{config.batch_size * stage.task.tokens_per_image:,} tokens a step")
    epochs = config.steps * config.batch_size / images
    yield _line("steps", f"{config.steps:,} of {config.batch_size} images: {epochs:,.1f} epochs")
    for text in length_warnings(images, config):
        yield f"warning: {text}"
    cost = yield from _cost(config, stage)
    yield from _memory(config, stage, cost)
    whole = cost.of_step(config.batch_size)
    yield _line("time", f"{whole:.3g} s a step, {_duration(whole * config.steps)} in all on one {engine.device}")
    yield _line("", f"{_basis(cost)}; validation and checkpoints come on top")


def _images(config: Any, size: int) -> Generator[str, None, list[ImageDataset]]:
    """The images of any command's settings, to train on and held out, some of which have been looked at."""
    if config.data != "avatars":
        yield _line("data", f"listing {config.data}")
    load = images_to_tokenize if isinstance(config, TokensConfig) else load_splits
    train, val = load(config, size, check=False)
    yield _line(
        "data", f"{len(train):,} images, {len(val):,} held out, {len(train.class_names)} classes ({config.data})"
    )
    if config.data != "avatars":
        yield _line("", _looked_at(train, config.data))
    return [train, val]


def _looked_at(images: ImageDataset, data: str) -> str:
    """Whether images can be read. Raises DataError: none can."""
    problems, count, started = [], 0, time.monotonic()
    for index in spread(len(images), LOOKED_AT).tolist():
        count += 1
        try:
            images.picture(index)
        except ImageError as error:
            problems.append(str(error))
        if time.monotonic() - started > LOOK_SECONDS:
            break
    if not problems:
        return f"{count:,} of them were read, which are sound"
    if len(problems) == count:
        raise DataError(f"{data}: none of the {count:,} images that were read can be used, such as {problems[0]}")
    return f"{len(problems):,} of {count:,} that were read can't be used and will be left out, such as {problems[0]}"


def _images_of_tokens(config: TransformerTraining, tokenizer: VQGAN) -> Generator[str, None, int]:
    """The number of training images."""
    masks = masks_for_holes(config, tokenizer.config)
    if masks is not None:
        yield _line("holes", f"of {len(masks):,} masks ({config.hole_masks})")
    if config.tokens is None:
        train, _ = yield from _images(config, tokenizer.config.image_size)
        views = config.views * (1 + (config.holes if config.hole_share else 0))
        size = 2 * views * len(train) * tokenizer.config.num_tokens
        yield _line("", f"tokens of {config.views} views will take {size / 1e6:,.1f} MB")
        return len(train)
    shards = open_tokens(config.tokens, tokenizer, config.seed, config.hole_share, masks)
    images, held_out, classes = len(shards.train), len(shards.held_out), len(shards.class_names)
    source = f"{config.tokens}, {len(shards.train.tokens)} views"
    yield _line("data", f"{images:,} images, {held_out:,} held out, {classes} classes ({source})")
    return images


def _alone(config: Any, engine: Engine) -> tuple[Any, int]:
    """The settings for what is timed, and the images that a process holds at a time.

    A step of one process, without accumulation and graphs, of as many images as it holds at a time.
    """
    together = config.batch_size // config.accumulate
    timed = together if engine.device.type == "cuda" else min(together, CPU_IMAGES)
    engine.config = alone = dataclasses.replace(engine.config, batch_size=timed, accumulate=1)
    return alone, together


def _tokenizer(config: TokenizerTraining, splits: list[ImageDataset], engine: Engine) -> Generator[str, None, _Stage]:
    alone, together = _alone(config, engine)
    task = TokenizerTask(alone, tokenizer_architecture(config), engine, splits)
    judge = "" if task.discriminator is None else f", discriminator of {_millions(task.discriminator, '')}"
    size = task.model.config
    yield _line("model", f"VQGAN of {_millions(task.model)}{judge}")
    yield _line("", f"pictures of {size.image_size}x{size.image_size} pixels, {size.num_tokens} tokens each")
    samples: list[Tensor] = []
    for index in range(len(splits[0])):
        if len(samples) == alone.batch_size:
            break
        try:
            samples.append(task.dataset[index, index])
        except ImageError:  # which a run leaves out
            continue
    samples *= -(-alone.batch_size // len(samples))
    return _Stage(task, engine, samples[: alone.batch_size], together)


def _transformer(
    config: TransformerTraining, architecture: TransformerConfig | HaltonConfig, tokenizer: VQGAN, engine: Engine
) -> Generator[str, None, _Stage]:
    alone, together = _alone(config, engine)
    samples = _random_samples(alone, architecture)
    # For token shards, which are yet to be made, or needn't be read.
    stand_in: Any = SimpleNamespace(labels=np.zeros(0, dtype=np.int64))
    tokens = TrainingTokens(stand_in, stand_in, data_classes(config, tokenizer.config))
    tokenizer = tokenizer.to(engine.device)
    task = TransformerTask(dataclasses.replace(alone, eval_every=0), architecture, tokenizer, engine, tokens)
    yield _line("model", f"transformer of {_millions(task.model)}, tokenizer of {_millions(tokenizer, '')}")
    return _Stage(task, engine, samples, together)


def _random_samples(config: TransformerTraining, architecture: TransformerConfig | HaltonConfig) -> list[TokenSample]:
    torch.manual_seed(config.seed)
    tokens = torch.randint(architecture.codebook_size, (config.batch_size, architecture.num_tokens))
    whole = torch.rand(config.batch_size, 1) >= config.hole_share
    candidates = whole | (torch.rand(tokens.shape) < 0.5)
    candidates[:, 0] = True  # no hole is empty
    return [TokenSample(row, row, inside, torch.tensor(0)) for row, inside in zip(tokens, candidates, strict=True)]


def _cost(config: LoopConfig, stage: _Stage) -> Generator[str, None, Cost]:
    yield _line("timing", "a few steps, beginning with one of one image")
    with out_of_memory_said(config, stage.engine.device):
        return measure_cost(stage.task, stage.engine, stage.samples, stage.together, config.steps - 1)


def _basis(cost: Cost) -> str:
    return f"from {cost.steps} steps of {cost.images} images"


def _memory(config: LoopConfig, stage: _Stage, cost: Cost) -> Lines:
    task = stage.task
    sizes = [sum(_bytes(p) for group in o.param_groups for p in group["params"]) for o in task.optimizers]
    held = {
        "weights": sum(_bytes(module) for module in task.modules().values()),
        "gradients": sum(sizes),
        "optimizer": sum(n if isinstance(o, Muon) else 2 * n for o, n in zip(task.optimizers, sizes, strict=True)),
        "average": _bytes(task.model) if config.ema else 0,
        "activations": cost.activations,
    }
    yield _line("memory", f"about {_gib(sum(held.values()))}, of one process")
    for name, size in held.items():
        if size:
            yield _line("", f"{_gib(size)} {name}")
    yield _line("", f"activations: what is kept for the backward pass, from {cost.images} images to {stage.together}")
    if cost.peak is not None:
        yield _line("", f"{_gib(cost.peak)} at most was held on the GPU in those steps")


# --- tokens -----------------------------------------------------------------------------------------------------------


def _tokens(config: TokensConfig) -> Lines:
    check_output(config)
    tokenizer = tokenizer_at(config.tokenizer, config.image_size)
    masks_for_holes(config, tokenizer.config)  # which may be none that can be used
    device = pick_device(config.device)
    splits = yield from _images(config, tokenizer.config.image_size)
    yield from _tokenizing(config, tokenizer, splits[0], [len(images) for images in splits], device)


def _tokenizing(
    config: TokensConfig, tokenizer: VQGAN, some: ImageDataset, counts: list[int], device: torch.device
) -> Generator[str, None, float]:
    """Seconds to tokenize all images, so many to train on and held out, told from some."""
    views = [
        count * each * (1 + holes)
        for count, each, holes in zip(
            counts, (config.views, PLAIN_VIEWS), (config.holes, min(1, config.holes)), strict=True
        )
    ]
    size = 2 * sum(views) * tokenizer.config.num_tokens
    yield _line(
        "tokens",
        f"{tokenizer.config.num_tokens} an image, {config.views} views with {config.holes} holes in each: "
        f"{sum(views):,} to tokenize, {size / 1e6:,.1f} MB",
    )
    yield _line("timing", "a few of them")
    each, count = _seconds_of_a_view(config, tokenizer, some, device)
    processes = min(config.processes or os.cpu_count() or 1, os.cpu_count() or 1) if device.type == "cpu" else 1
    total = sum(views) * each / processes
    shared = f"{processes} processes on one core each" if device.type == "cpu" else "one process; more read meanwhile"
    yield _line("time", f"{1000 * each:.3g} ms a view, {_duration(total)} in all with {shared}")
    yield _line("", f"from {count} views")
    return total


def _seconds_of_a_view(
    config: TokensConfig, tokenizer: VQGAN, images: ImageDataset, device: torch.device
) -> tuple[float, int]:
    """Of reading and tokenizing one, in one process as `train.py tokens` starts them; and of how many that is known."""
    encoder = Encoder(tokenizer.eval(), images, config.augment, config.seed, 64)
    encoder.to(device)
    size = 1 if device.type == "cpu" else min(64, len(images))  # a GPU takes many at a time, a core gains nothing
    threads, done, spent = torch.get_num_threads(), 0, 0.0
    torch.set_num_threads(1)
    try:
        for number, start in enumerate(spread(len(images) - size + 1, 1 + TOKENIZED).tolist()):
            started = time.perf_counter()
            try:
                encoder((0,), range(start, start + size))  # whose result is on the host
            except ImageError:  # which the command leaves out
                continue
            if number or len(images) <= size:  # the first one also sets up what the others find
                done, spent = done + size, spent + time.perf_counter() - started
            if spent > TOKENIZE_SECONDS:
                break
    finally:
        torch.set_num_threads(threads)
    return spent / max(1, done), done


# --- all of it --------------------------------------------------------------------------------------------------------


def _model(config: ModelTraining, recipe: Recipe) -> Lines:
    check_recipe(recipe, config)
    first = stage_settings(config, recipe, "tokenizer", TokenizerTraining)
    first = dataclasses.replace(first, compile=False)  # which would take minutes here
    left = 60 * config.minutes
    splits = yield from _images(first, tokenizer_architecture(first).image_size)
    counts = [len(images) for images in splits]
    if crops := int(config.crops_a_minute * config.minutes):
        yield _line("", f"{crops:,} squares are cut out of them, at all scales, and trained on")
        counts = [round((1 - config.val_fraction) * crops), round(config.val_fraction * crops)]
    yield f"stage 1 of 3, tokenizer: {config.tokenizer_share:.0%} of {config.minutes:g} minutes"
    engine = Engine(first)
    stage = yield from _tokenizer(first, splits, engine)
    cost = yield from _cost(first, stage)
    share, images = config.tokenizer_share * left, first.validation_images
    left -= yield from _planned(first, cost, share, counts[0], images)
    tokenizer = stage.task.model
    assert isinstance(tokenizer, VQGAN)
    yield "stage 2 of 3, tokens"
    left -= yield from _tokenizing(tokens_settings(config, recipe), tokenizer, splits[0], counts, engine.device)
    yield f"stage 3 of 3, transformer: {_duration(max(0.0, left))} are left"
    second = stage_settings(config, recipe, "transformer", TransformerTraining)
    second = dataclasses.replace(second, tokens=None)  # which are yet to be made
    architecture = make_architecture(second, tokenizer.config)
    stage = yield from _transformer(second, architecture, tokenizer, Engine(second))
    cost = yield from _cost(second, stage)
    images = second.validation_images * second.validation_rounds
    yield from _planned(second, cost, left, counts[0], images)


def _planned(
    config: TokenizerTraining | TransformerTraining, cost: Cost, seconds: float, images: int, validated: int
) -> Generator[str, None, float]:
    """Seconds that a stage takes of those it has; `validated`: images that go through the network in a validation."""
    forward = cost.seconds / 3  # of an image; the backward pass takes twice that
    pace = Pace(cost.of_step(config.batch_size), forward * validated)
    planned = fit_to_time(config, pace, seconds)
    taken = planned.steps * pace.step + VALIDATIONS * pace.validation
    epochs = planned.steps * planned.batch_size / images
    yield _line("steps", f"{planned.steps:,} of {planned.batch_size} images: {epochs:,.1f} epochs")
    for text in length_warnings(images, planned):
        yield f"warning: {text}"
    yield _line("time", f"{pace.step:.3g} s a step, {pace.validation:.3g} s a validation, {_duration(taken)} in all")
    yield _line("", f"{_basis(cost)}; the command itself times more of them")
    return taken


# --- numbers ----------------------------------------------------------------------------------------------------------


def _bytes(thing: nn.Module | Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(thing))


def _millions(module: nn.Module, unit: str = " parameters") -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} million{unit}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
