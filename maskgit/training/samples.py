"""Which images are trained on and which are held out, and which sample is seen when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler, default_collate

from maskgit.config import ConfigError, TokenizerConfig
from maskgit.data import ImageDataset, load_dataset
from maskgit.data.tokens import TokenSample
from maskgit.training.settings import LoopConfig, TokenizerTraining, TokensConfig, TrainingError, TransformerTraining


def at_size(tokenizer: TokenizerConfig, image_size: int | None) -> TokenizerConfig:
    """A tokenizer for pictures of that many pixels a side, if a number is given: it is convolutional.

    Raises ConfigError: a size that its patches don't divide, or beyond its limits.
    """
    if image_size is None:
        return tokenizer
    try:
        return dataclasses.replace(tokenizer, image_size=image_size)
    except ConfigError as error:
        raise ConfigError(f"--image-size: {error}") from error


def load_splits(
    config: TokenizerTraining | TransformerTraining | TokensConfig, size: int, check: bool = True
) -> list[ImageDataset]:
    """The images to train on and those held out, in views of `size` pixels; `check` as in load_dataset. DataError."""
    return [load_dataset(config.data, size, split, config.val_fraction, check) for split in ("train", "val")]


def spread(count: int, most: int) -> np.ndarray:
    """int64 [n]: at most so many of `count` images, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def as_batch(samples: Any) -> Any:
    """A batch of what a data set gives for it: token shards put theirs together themselves."""
    return samples if isinstance(samples, TokenSample) else default_collate(samples)


class SampleOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (index, position): a new shuffle each epoch, from (seed, epoch), starting at any step.

    `position` counts samples from the start of the run; the augmentation of a sample is drawn from it. So what is seen
    is the same for any number of processes, each of which takes its part of every batch.

    Args:
        samples: how many there are.
        config: batch_size is of all processes.
        process, processes: this one's number, and how many there are; they divide the batch.
    """

    def __init__(self, samples: int, config: LoopConfig, first_step: int, process: int = 0, processes: int = 1) -> None:
        if not samples:
            raise TrainingError("the training set is empty")
        self.samples, self.config, self.first_step = samples, config, first_step
        self.share = config.batch_size // processes
        self.offset = process * self.share

    def __len__(self) -> int:
        return self.config.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        length, epoch, order = self.samples, -1, np.empty(0, dtype=np.int64)
        for step in range(self.first_step, self.config.steps):
            batch = []
            first = step * self.config.batch_size + self.offset
            for position in range(first, first + self.share):
                if position // length != epoch:
                    epoch = position // length
                    order = np.random.default_rng((self.config.seed, epoch)).permutation(length)
                batch.append((int(order[position % length]), position))
            yield batch
