"""Crops of photographs at all scales, to train a model on that is to fill holes in windows, which show pieces."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskgit.data import ImageDataset
from maskgit.data.images import in_validation


def cut_crops(splits: Sequence[ImageDataset], folder: Path, count: int, val_fraction: float, seed: int) -> None:
    """Write `count` squares, as many of each photograph, as PNGs into `folder`, which is there only once they all are.

    The logarithms of their sides are uniform, from a pixel of the photograph for one of the model's to all of its
    height, and so are their places. Each is named so that a split by `val_fraction` puts it on the side of its
    photograph. Photographs and seed decide everything, so a cut that was killed writes the same files again.

    Args:
        splits: photographs to train on and those held out, of the model's `image_size`.

    Raises ImageError: a photograph that can't be read. OSError: a folder that can't be written.
    """
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    photographs = [(images, side, index) for side, images in enumerate(splits) for index in range(len(images))]
    each = -(-count // len(photographs))

    def cut(photograph: tuple[ImageDataset, int, int]) -> None:
        images, side, index = photograph
        image, size = images.picture(index), images.image_size
        generator = np.random.default_rng((seed, 5, side, index))
        for number in range(each):
            length = round(size * (min(image.size) / size) ** generator.random())
            left, top = (int(generator.integers(whole - length + 1)) for whole in image.size)
            box = (left, top, left + length, top + length)
            crop = image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3)
            names = (f"{index:06}-{number:06}-{tried}.png" for tried in itertools.count())
            crop.save(unfinished / next(name for name in names if in_validation(name, val_fraction) == bool(side)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(cut, photographs)
        list(tqdm(done, total=len(photographs), desc="cutting crops", unit="photograph", disable=None))
    os.replace(unfinished, folder)
