"""Token shards for stage 2: `train.py tokens` writes them for large data sets, else stage 2 does by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from maskgit.config import TokenizerConfig
from maskgit.data import AugmentConfig, DataError, ImageDataset, load_dataset
from maskgit.data.hole_masks import HoleMasks, read_hole_masks
from maskgit.data.images import as_people_count, class_numbers
from maskgit.data.parts import ROWS
from maskgit.data.tokens import (
    PLAIN_VIEWS,
    TokenShard,
    class_names,
    content_key,
    open_shard,
    tokenize,
)
from maskgit.network.folder import load_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.training.checkpoint import list_checkpoints
from maskgit.training.engine import Engine, pick_device
from maskgit.training.samples import at_size, load_splits
from maskgit.training.settings import ModelTraining, TokensConfig, TrainingError, TransformerTraining

TRAIN, VAL = "train", "val"


class TrainingTokens(NamedTuple):
    """What stage 2 trains on and is validated on."""

    train: TokenShard
    held_out: TokenShard
    class_names: list[str]

    def numbered_as(self, names: Sequence[str]) -> TrainingTokens:
        """The same with the classes in the order of `names`, if these are the same ones."""
        numbers = class_numbers(self.class_names, names)
        if numbers is None:
            return self
        for shard in (self.train, self.held_out):
            shard.labels = numbers[shard.labels]
        return self._replace(class_names=list(names))


def tokenizer_at(folder: Path, image_size: int | None) -> VQGAN:
    """The tokenizer of a model folder, for pictures of another size if one is given. Raises ModelError, ConfigError."""
    tokenizer = load_tokenizer(folder)
    tokenizer.config = at_size(tokenizer.config, image_size)
    return tokenizer


def masks_for_holes(
    config: TransformerTraining | TokensConfig | ModelTraining, tokenizer: TokenizerConfig
) -> HoleMasks | None:
    """What --hole-masks says, at a tokenizer's size; None where it isn't given.

    Raises DataError, and TrainingError: they lie among the images, where they would be trained on as such.
    """
    if config.hole_masks is None:
        return None
    folder, data = config.hole_masks.resolve(), Path(config.data)
    if config.data != "avatars" and data.is_dir() and data.resolve() in (folder, *folder.parents):
        raise TrainingError(
            f"--hole-masks {config.hole_masks}: lies in --data {config.data}, where masks would be taken for images; "
            "move them out of it"
        )
    return read_hole_masks(config.hole_masks, tokenizer.image_size, tokenizer.grid)


# --- in the run's own folder, or where --tokens says ------------------------------------------------------------------


def training_tokens(config: TransformerTraining, tokenizer: VQGAN, engine: Engine) -> TrainingTokens:
    """The tokens to train on: opened where --tokens says, or made from the images into the output folder.

    Raises DataError, also where a run that goes on would go on with tokens of other images or of another tokenizer.
    """
    masks = masks_for_holes(config, tokenizer.config)
    if config.tokens is not None:
        return open_tokens(config.tokens, tokenizer, config.seed, config.hole_share, masks)
    images, held_out = load_splits(config, tokenizer.config.image_size)
    goes_on = bool(list_checkpoints(config.output / "checkpoints"))
    # A process takes seconds to start, which few images wouldn't be worth.
    processes = engine.processes if engine.processes > 1 and len(images) >= ROWS else 0
    with engine.accelerator.main_process_first():  # which writes the shards, on all GPUs; the others find them
        _keep_class_numbers(config.output / "tokens", images, held_out)
        shards = _tokenize_splits(
            config,
            config.output / "tokens",
            tokenizer,
            (images, held_out),
            torch.device(engine.device.type) if processes else engine.device,
            config.hole_share,
            masks,
            content_key,
            processes,
            replace=not goes_on,
        )
    tokenizer.to(engine.device)  # processes of its own are sent it from main memory
    return TrainingTokens(shards[0], shards[1], images.class_names)


def open_tokens(
    folder: Path, tokenizer: VQGAN, seed: int, hole_share: float, masks: HoleMasks | None = None
) -> TrainingTokens:
    """The shards that `write_tokens` wrote, or an earlier run (its folder `tokens`). Raises DataError."""
    for split in (TRAIN, VAL):
        if hole_share and (folder / split).is_dir() and not (folder / split / "holes.json").exists():
            raise DataError(
                f"{folder / split / 'holes.json'} is not there; write a token shard with train.py tokens --holes 2, or "
                "leave --hole-share out"
            )
    train, held_out = (open_shard(folder / split, tokenizer, seed, hole_share, masks) for split in (TRAIN, VAL))
    names, theirs = (class_names(folder / split) for split in (TRAIN, VAL))
    if names != theirs:
        raise DataError(
            f"{folder / VAL / 'images.json'}: names {len(theirs)} classes, and {folder / TRAIN / 'images.json'} other "
            f"{len(names)}; write both together with train.py tokens"
        )
    return TrainingTokens(train, held_out, names)


def _keep_class_numbers(folder: Path, *data: ImageDataset) -> None:
    """Number the classes of data sets as the token shards in `folder` do, if there are any with the same classes.

    A model that is trained on them knows the classes by number, whatever order the images come in now.
    """
    if (folder / TRAIN / "images.json").exists():
        for images in data:
            images.number_classes_as(class_names(folder / TRAIN))


def _tokenize_splits(
    config: TransformerTraining | TokensConfig,
    folder: Path,
    tokenizer: VQGAN,
    splits: Sequence[ImageDataset],
    device: torch.device,
    hole_share: float,
    masks: HoleMasks | None,
    key: Callable[[ImageDataset], str],
    processes: int,
    replace: bool = False,
) -> list[TokenShard]:
    """Write the shards of the images to train on and of those held out, of which the plain views and one hole do.

    Both draw holes from all masks: what is to be told of a held-out image is what is behind a mask, which no mask
    gives away.

    Args:
        key: tells a data set from others.
        processes: that tokenize, on all GPUs if the device is `cuda`; 0 does so here.
        replace: tokens of others that are there; False: that is a DataError.
    """
    options = ((TRAIN, config.views, config.augment, config.holes), (VAL, PLAIN_VIEWS, AugmentConfig(enabled=False), 1))
    return [
        tokenize(
            tokenizer,
            images,
            folder / name,
            views=views,
            augment=augment,
            seed=config.seed,
            device=device,
            hole_share=hole_share,
            holes=max(1, holes),
            masks=masks,
            processes=processes,
            key=key(images),
            replace=replace,
        )
        for images, (name, views, augment, holes) in zip(splits, options, strict=True)
    ]


# --- train.py tokens --------------------------------------------------------------------------------------------------


def write_tokens(config: TokensConfig) -> list[str]:
    """Tokenize a data set into `config.output`; returns lines that say what is there.

    Raises TrainingError, DataError, ModelError and ConfigError: what is wrong with the settings or the files.
    """
    check_output(config)
    tokenizer = tokenizer_at(config.tokenizer, config.image_size)
    masks = masks_for_holes(config, tokenizer.config)
    train, val = images_to_tokenize(config, tokenizer.config.image_size)
    device, processes = pick_device(config.device), config.processes or os.cpu_count() or 1
    shards = _tokenize_splits(
        config, config.output, tokenizer, (train, val), device, float(config.holes > 0), masks, _quick_key, processes
    )
    lines = []
    for shard in shards:
        written = sum(file.stat().st_size for file in shard.folder.iterdir())
        views, images, tokens = shard.tokens.shape
        lines.append(
            f"{shard.folder}: {images:,} images, {views} views, {0 if shard.holes is None else len(shard.holes)} holes "
            f"in each, {tokens} tokens an image, {written / 1e6:,.1f} MB"
        )
    return [*lines, f"go on with: train.py transformer --tokens {config.output} --tokenizer {config.tokenizer}"]


def _quick_key(images: ImageDataset) -> str:
    """Of names, sizes and times where there are any, so that not all images of a large data set are read for it."""
    return images.key() or content_key(images)


def images_to_tokenize(config: TokensConfig, size: int, check: bool = True) -> list[ImageDataset]:
    """The images to train on and those held out, as `load_splits`. Raises DataError: also if their classes differ."""
    if config.val_data is None:
        train, val = load_splits(config, size, check)
    else:
        train, val = (load_dataset(data, size, "all", check=check) for data in (config.data, config.val_data))
    _keep_class_numbers(config.output, train, val)
    if train.class_names != val.class_names:
        other = ", ".join(sorted(set(train.class_names) ^ set(val.class_names), key=as_people_count)[:5])
        raise DataError(
            f"--val-data {config.val_data}: has {len(val.class_names)} classes, and {config.data} has "
            f"{len(train.class_names)}; both need the same ones, and only one has {other}"
        )
    return [train, val]


def check_output(config: TokensConfig) -> None:
    """Raise a TrainingError if a shard would go into a folder of the input's, or both into one, by whatever path."""
    train, val = (config.output / split for split in (TRAIN, VAL))
    inputs = {"--data": config.data, "--val-data": config.val_data, "--tokenizer": config.tokenizer}
    inputs |= {"--hole-masks": config.hole_masks}
    taken = {f"{option} {path}": Path(path) for option, path in inputs.items() if path is not None}
    for folder, others in ((train, taken), (val, taken | {f"the other shard, {train}": train})):
        for name, path in others.items():
            if folder.exists() and path.exists() and folder.samefile(path):
                raise TrainingError(f"--output {config.output}: {folder} is the folder of {name}; choose another")
