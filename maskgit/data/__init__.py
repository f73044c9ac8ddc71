"""Images to train on: the embedded emoji or any folder; and masks to inpaint."""

from __future__ import annotations

import os

from maskgit.data.emoji import EmojiDataset
from maskgit.data.images import (
    AugmentConfig,
    DataError,
    ImageDataset,
    ImageError,
    ImageFolder,
    Split,
    find_images,
    in_validation,
    read_image,
)

__all__ = [
    "AugmentConfig",
    "DataError",
    "EmojiDataset",
    "ImageDataset",
    "ImageError",
    "ImageFolder",
    "Split",
    "find_images",
    "in_validation",
    "load_dataset",
    "read_image",
]


def load_dataset(
    spec: str | os.PathLike[str], image_size: int, split: Split = "all", val_fraction: float = 0.1
) -> ImageDataset:
    """The data set that a command line names.

    Args:
        spec: "emoji" for the embedded set, anything else is a folder ("./emoji" for a folder of that name).
        image_size: side S of the views.
        split: "train", "val" or "all".
        val_fraction: share that validation gets, on average.

    Raises:
        DataError: a missing or empty folder, an empty split, wrong arguments.
    """
    if spec == "emoji":
        return EmojiDataset(image_size, split, val_fraction)
    return ImageFolder(spec, image_size, split, val_fraction)
