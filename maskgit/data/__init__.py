"""What goes in, read with care: images to train on, pictures and masks to inpaint, token shards.

    reading.py, png.py, carried.py   one picture: as it is shown, whether it is whole, what else its file holds
    masks.py, pixels.py              masks, made or read; pixels as bytes and as what the networks see
    hole_masks.py                    a folder of masks that the holes of the training are drawn from
    images.py, avatars.py, shards.py data sets: folders, the embedded avatars, tar archives
    arrays.py, parts.py              .npy files that may be damaged, and large ones that are computed part by part
    tokens.py, token_files.py        token shards, and what their files must be

Whatever a file holds, what comes of it is data or an error that names the file: memory and time are bounded, nothing of
the user's is replaced. Imports canvas, tokenizer and what is below; nothing of networks and training.
"""

from __future__ import annotations

import os

from maskgit.data.avatars import AvatarDataset
from maskgit.data.images import (
    AugmentConfig,
    DataError,
    EmptySplitError,
    ImageDataset,
    ImageFolder,
    Split,
    find_images,
    in_validation,
)
from maskgit.data.reading import ImageError, read_image
from maskgit.data.shards import ImageShards, is_shards

__all__ = [
    "AugmentConfig",
    "AvatarDataset",
    "DataError",
    "EmptySplitError",
    "ImageDataset",
    "ImageError",
    "ImageFolder",
    "ImageShards",
    "Split",
    "find_images",
    "in_validation",
    "load_dataset",
    "read_image",
]


def load_dataset(
    spec: str | os.PathLike[str],
    image_size: int,
    split: Split = "all",
    val_fraction: float = 0.1,
    check: bool = True,
) -> ImageDataset:
    """The data set that a command line names.

    Args:
        spec: "avatars" for the embedded set, a pattern that ends in .tar for WebDataset's archives
            ("shards/train-{000..009}.tar"), anything else is a folder ("./avatars" for a folder of that name).
        image_size: side S of the views.
        split: "train", "val" or "all".
        val_fraction: share that validation gets, on average.
        check: decode all images once, to leave out damaged ones.

    Raises:
        DataError: a missing or empty folder or archive, an empty split, wrong arguments.
    """
    if spec == "avatars":
        return AvatarDataset(image_size, split, val_fraction)
    if is_shards(spec):
        return ImageShards(spec, image_size, split, val_fraction, check)
    return ImageFolder(spec, image_size, split, val_fraction, check)
