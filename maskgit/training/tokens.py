"""Token shards for stage 2: `train.py tokens` writes them for large data sets, `--tokens` trains from them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskgit.data import AugmentConfig, DataError, ImageDataset, load_dataset
from maskgit.data.images import as_people_count, class_numbers
from maskgit.data.tokens import (
    PLAIN_VIEWS,
    TokenShard,
    class_names,
    content_key,
    family_numbers,
    open_shard,
    tokenize,
)
from maskgit.network.folder import load_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.training.engine import pick_device
from maskgit.training.settings import MOST, MOST_SEED, TrainingError, require_between

TRAIN, VAL = "train", "val"


class TrainingTokens(NamedTuple):
    """What stage 2 trains on and is validated on."""

    train: TokenShard
    held_out: TokenShard
    families: np.ndarray
    """int64 [n], the family of each training image."""
    class_names: list[str]

    def numbered_as(self, names: Sequence[str]) -> TrainingTokens:
        """The same with the classes in the order of `names`, if these are the same ones."""
        numbers = class_numbers(self.class_names, names)
        if numbers is None:
            return self
        for shard in (self.train, self.held_out):
            shard.labels = numbers[shard.labels]
        return self._replace(class_names=list(names))


def open_tokens(folder: Path, tokenizer: VQGAN, seed: int, hole_share: float) -> TrainingTokens:
    """The shards that `write_tokens` wrote, or an earlier run (its folder `tokens`). Raises DataError."""
    train, held_out = (open_shard(folder / split, tokenizer, seed, hole_share) for split in (TRAIN, VAL))
    names, theirs = (class_names(folder / split) for split in (TRAIN, VAL))
    if names != theirs:
        raise DataError(
            f"{folder / VAL / 'images.json'}: names {len(theirs)} classes, and {folder / TRAIN / 'images.json'} other "
            f"{len(names)}; write both together with train.py tokens"
        )
    return TrainingTokens(train, held_out, family_numbers(folder / TRAIN), names)


def keep_class_numbers(folder: Path, *data: ImageDataset) -> None:
    """Number the classes of data sets as the token shard in `folder` does, if there is one with the same classes.

    A model that is trained on it knows them by number, whatever order the images come in now.
    """
    if (folder / "images.json").exists():
        for images in data:
            images.number_classes_as(class_names(folder))


def tokenizer_at(folder: Path, image_size: int | None) -> VQGAN:
    """The tokenizer of a model folder, for pictures of another size if one is given: it is convolutional.

    Raises:
        ModelError: as `load_tokenizer`. ConfigError: a size that its patches don't divide.
    """
    tokenizer = load_tokenizer(folder)
    if image_size is not None:
        tokenizer.config = dataclasses.replace(tokenizer.config, image_size=image_size)
    return tokenizer


@dataclass(frozen=True)
class TokensConfig:
    """What is tokenized, and how."""

    output: Path = Path("runs/tokens")
    """Folder of the shards, which `train.py transformer --tokens` takes. Run the same command again after an
    interruption: finished parts are kept."""
    tokenizer: Path = Path("runs/tokenizer/model")
    """Folder of the trained tokenizer: what stage 1 wrote, or any model folder."""
    data: str = "emoji"
    """A folder of images, tar archives ('shards/train-{000..009}.tar'), or `emoji` for the embedded data set."""
    val_data: str | None = None
    """Images to validate on, if they are apart; by default a share of --data, the same as in the other stages."""
    val_fraction: float = 0.1
    """That share."""
    image_size: int | None = None
    """Side of the pictures in pixels; by default the tokenizer's."""
    views: int = 2
    """Views of each image: itself, its mirror, and then random crops."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random resized crop and flip of the views after the first two."""
    holes: int = 0
    """Random holes in each view, for `--hole-share`: as many more times the images are tokenized."""
    seed: int = 0
    """Seed of crops and holes."""
    processes: int | None = None
    """Processes that read and tokenize; by default one for each core. The result doesn't depend on their number."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one. `cuda` spreads the processes over all GPUs."""

    def __post_init__(self) -> None:
        for name, least in (("views", 1), ("holes", 0), ("seed", 0), ("processes", 1), ("image_size", 1)):
            if (value := getattr(self, name)) is not None:
                most = MOST_SEED if name == "seed" else MOST
                require_between(f"--{name.replace('_', '-')}", value, least, most)
        if not 0 < self.val_fraction < 1:
            raise TrainingError(f"--val-fraction {self.val_fraction}: must be between 0 and 1")


def _check_output(config: TokensConfig) -> None:
    """Raise a TrainingError if a shard would go into a folder of the input's, or both into one, by whatever path."""
    train, val = (config.output / split for split in (TRAIN, VAL))
    inputs = {"--data": config.data, "--val-data": config.val_data, "--tokenizer": config.tokenizer}
    taken = {f"{option} {path}": Path(path) for option, path in inputs.items() if path is not None}
    for folder, others in ((train, taken), (val, taken | {f"the other shard, {train}": train})):
        for name, path in others.items():
            if folder.exists() and path.exists() and folder.samefile(path):
                raise TrainingError(f"--output {config.output}: {folder} is the folder of {name}; choose another")


def write_tokens(config: TokensConfig) -> list[str]:
    """Tokenize a data set into `config.output`; returns lines that say what is there.

    Raises:
        TrainingError, DataError, ModelError, ConfigError: what is wrong with the settings or the files.
    """
    _check_output(config)
    tokenizer = tokenizer_at(config.tokenizer, config.image_size)
    size, device = tokenizer.config.image_size, pick_device(config.device)
    if config.val_data is None:
        train, val = (load_dataset(config.data, size, split, config.val_fraction) for split in ("train", "val"))
    else:
        train, val = (load_dataset(data, size, "all") for data in (config.data, config.val_data))
    keep_class_numbers(config.output / TRAIN, train, val)
    if train.class_names != val.class_names:
        other = ", ".join(sorted(set(train.class_names) ^ set(val.class_names), key=as_people_count)[:5])
        raise DataError(
            f"--val-data {config.val_data}: has {len(val.class_names)} classes, and {config.data} has "
            f"{len(train.class_names)}; both need the same ones, and only one has {other}"
        )
    plain = AugmentConfig(enabled=False)
    wanted: list[tuple[str, ImageDataset, int, AugmentConfig, int]] = [
        (TRAIN, train, config.views, config.augment, config.holes),
        (VAL, val, PLAIN_VIEWS, plain, min(1, config.holes)),
    ]
    lines = []
    for split, images, views, augment, holes in wanted:
        shard = tokenize(
            tokenizer,
            images,
            config.output / split,
            views=views,
            augment=augment,
            seed=config.seed,
            device=device,
            hole_share=float(holes > 0),
            holes=max(1, holes),
            processes=config.processes or os.cpu_count() or 1,
            key=images.key() or content_key(images),
            replace=False,
        )
        written = sum(file.stat().st_size for file in (config.output / split).iterdir())
        lines.append(
            f"{config.output / split}: {len(shard):,} images, {views} views, {holes} holes in each, "
            f"{shard.tokens.shape[2]} tokens an image, {written / 1e6:,.1f} MB"
        )
    return [*lines, f"go on with: train.py transformer --tokens {config.output} --tokenizer {config.tokenizer}"]
