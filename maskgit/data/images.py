"""Folders of images, the train/validation split, augmentation.

Every data set here gives uint8 RGB arrays of one square size through the same small protocol (`ImageDataset`).
"""

from __future__ import annotations

import abc
import hashlib
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskgit.console import printable
from maskgit.data.reading import ImageError, read_image

Split = Literal["train", "val", "all"]
SPLITS = ("train", "val", "all")

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)


class DataError(ValueError):
    """A data set that can't be used: a missing or empty folder, an empty split, an unknown name."""


class EmptySplitError(DataError):
    """A data set of too few images for a training and a validation side at that `val_fraction`."""


# --- views ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AugmentConfig:
    """Random resized crop and flip."""

    enabled: bool = True
    """Off: every view is the plain one."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Area of the crop, as a fraction of the largest square that fits in the image."""
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    """Width / height of the crop."""
    flip: float = 0.5
    """Probability of a left-right flip."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={self.crop_scale}: must be 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={self.crop_ratio}: must be 0 < low <= high")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip}: must be a probability, between 0 and 1")


Box = tuple[float, float, float, float]  # left, top, right, bottom


def center_square(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest centred square, at whole pixels."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def random_crop(width: int, height: int, augment: AugmentConfig, rng: np.random.Generator) -> Box:
    """A random box as `augment` says, at fractions of pixels. Always takes four numbers from `rng`."""
    scale, ratio, x, y = rng.random(4)
    low, high = augment.crop_scale
    area = (low + (high - low) * scale) * min(width, height) ** 2
    low, high = math.log(augment.crop_ratio[0]), math.log(augment.crop_ratio[1])
    aspect = math.exp(low + (high - low) * ratio)
    crop_width = min(width, math.sqrt(area * aspect))
    crop_height = min(height, math.sqrt(area / aspect))
    left, top = x * (width - crop_width), y * (height - crop_height)
    # Rounding must not put the box a hair outside the image: Pillow refuses that.
    return left, top, min(width, left + crop_width), min(height, top + crop_height)


def resize(image: Image.Image, size: int, box: Box | None = None) -> np.ndarray:
    """`box` of an RGB image (default: its centre square) as uint8 [size, size, 3]; bicubic, antialiased."""
    if box is None:
        image = image.crop(center_square(*image.size))  # a box alone lets the filter see pixels beyond it
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


# --- the split --------------------------------------------------------------------------------------------------------


def in_validation(key: str, fraction: float) -> bool:
    """Whether `key` belongs to the validation side; depends on nothing but the key and the fraction.

    So the side of an image is the same in every run, on every machine, whatever other images there are; and raising
    the fraction only moves images from training to validation.
    """
    # macOS may hand out decomposed file names; bytes that are no UTF-8 arrive as lone surrogates.
    data = unicodedata.normalize("NFC", key).encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
    return number < fraction * 2**64


def split_indices(keys: Iterable[str], split: Split, val_fraction: float) -> list[int]:
    """The positions of the keys that belong to `split`. Raises DataError: no such split, or fraction."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if not 0 <= val_fraction <= 1:
        raise DataError(f"val_fraction={val_fraction}: must be between 0 and 1")
    return [i for i, key in enumerate(keys) if split == "all" or in_validation(key, val_fraction) == (split == "val")]


def images_of_split(data: str, keys: Iterable[str], split: Split, val_fraction: float) -> list[int]:
    """As `split_indices`, of a data set called `data`. Raises EmptySplitError if there are none."""
    keys = list(keys)
    chosen = split_indices(keys, split, val_fraction)
    if not chosen:
        raise EmptySplitError(
            f"{data}: none of the {len(keys)} image(s) can be used for the split {split!r} with "
            f"val_fraction={val_fraction}, as the side of each goes by its name: add images"
        )
    return chosen


# --- data sets --------------------------------------------------------------------------------------------------------


class ImageDataset(abc.ABC):
    """What the training loops need of a data set; `picture` is all that a new one has to provide."""

    image_size: int
    class_names: list[str]
    """Names of the classes; empty where images have none."""
    labels: np.ndarray
    """int64 [n]: position in `class_names` of each image's class (0 where there are no classes)."""

    @abc.abstractmethod
    def picture(self, index: int) -> Image.Image:
        """The image as it is stored: RGB of any size."""

    def __len__(self) -> int:
        return len(self.labels)

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Take over the order of the same classes that a model or a shard knows them by; others change nothing."""
        numbers = class_numbers(self.class_names, names)
        if numbers is not None:
            self.class_names, self.labels = list(names), numbers[self.labels]

    def name(self, index: int) -> str:
        """Where an image comes from, for people: its number here."""
        return str(index)

    def key(self) -> str | None:
        """SHA-256 that changes when the images do, where that can be told without reading them all; else None."""
        return None

    def image(self, index: int) -> np.ndarray:
        """The plain view: centre square, resized. uint8 [S, S, 3]."""
        return resize(self.picture(index), self.image_size)

    def view(self, index: int, rng: np.random.Generator, augment: AugmentConfig) -> np.ndarray:
        """An augmented view, uint8 [S, S, 3]. All chance comes from `rng`: the same state gives the same view."""
        if not augment.enabled:
            return self.image(index)
        picture = self.picture(index)
        view = resize(picture, self.image_size, random_crop(*picture.size, augment, rng))
        return np.ascontiguousarray(view[:, ::-1]) if rng.random() < augment.flip else view


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files below a folder at any depth, by their suffix, sorted; hidden files and folders are skipped.

    Links to folders are followed, each folder is visited once. What is no file, such as a named pipe, is left out; but
    not a link that leads nowhere, so that whoever reads it can say so.

    Raises DataError: the folder is missing, is a file, or can't be listed. (An empty folder gives an empty list.)
    """
    root = Path(folder)
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be listed: {error.strerror}") from error

    found: list[Path] = []
    visited: set[str] = set()
    for here, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            path
            for path in (Path(here, name) for name in files if not name.startswith("."))
            if path.suffix.lower() in SUFFIXES and (os.path.isfile(path) or not os.path.exists(path))
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def files_key(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 of names, sizes and times of change: files that are the same by these are taken to be the same."""
    digest = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def as_people_count(name: str) -> tuple[list[Any], str]:
    """Key that sorts names by the numbers in them: class2 comes before class10."""
    parts: list[Any] = re.split(r"([0-9]+)", name)  # text and digits take turns
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return parts, name


def class_numbers(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray | None:
    """Where each of `names` is in `wanted`, int64 [n]; None if these aren't the same classes, or if there are none."""
    if not names or sorted(names) != sorted(wanted):
        return None
    return np.array([list(wanted).index(name) for name in names], dtype=np.int64)


class KeyedImages(ImageDataset):
    """Images known by keys, whose classes are those of all keys, and of which one side is used as far as it is sound.

    Bad ones are named in a warning and skipped, and listed in `skipped`. All images of the split are decoded once at
    the start for that, because headers don't tell a truncated file. `check=False` saves that pass over data known to be
    good; a bad image is then an ImageError when its turn comes.
    """

    SKIPPED = "unreadable file(s)"
    UNCLASSED = "some images have none, such as {}"
    """Why there are no classes, though some images have one."""

    keys: list[str]
    """By which the split goes, and the names of the images."""
    skipped: list[tuple[Any, str]]
    """What isn't used, and why."""

    def _use(
        self, source: str, labels: Sequence[int | str | None], split: Split, val_fraction: float, check: bool
    ) -> None:
        """Number the classes of `keys`, and keep what is to be used.

        Args:
            source: what messages call the data set.
            labels: the class of each image, by number or name.

        Raises DataError: no image that can be used, wrong arguments.
        """
        self.class_names, self.labels = self._number(source, labels)
        self._keep(images_of_split(source, self.keys, split, val_fraction))
        if check:
            problems = self._problems()
            self.skipped += [(self._place(i), why) for i, why in enumerate(problems) if why is not None]
            self._keep([i for i, why in enumerate(problems) if why is None])
        if self.skipped:
            lines = "\n  ".join(printable(f"{place}: {why}") for place, why in self.skipped)
            warnings.warn(f"{source}: skipped {len(self.skipped)} {self.SKIPPED}:\n  {lines}", stacklevel=3)
        if not self.keys:
            found = f"{len(self.skipped)} {self.SKIPPED}"
            raise DataError(f"{source}: no image for {split!r} can be used ({found}): add others")

    def _number(self, source: str, labels: Sequence[int | str | None]) -> tuple[list[str], np.ndarray]:
        """Names of the classes, and int64 [n]. Numbers are the classes themselves, names are sorted."""
        kinds = {type(label) for label in labels}
        if type(None) in kinds:
            if len(kinds) > 1:
                stray = self.UNCLASSED.format(self.keys[labels.index(None)])
                warnings.warn(f"{source}: no classes, because {stray}", stacklevel=4)
            return [], np.zeros(len(labels), dtype=np.int64)
        if kinds == {int}:
            numbers = np.array(labels, dtype=np.int64)
            return [str(i) for i in range(numbers.max() + 1)], numbers
        names = sorted({str(label) for label in labels}, key=as_people_count)
        number = {name: i for i, name in enumerate(names)}
        return names, np.array([number[str(label)] for label in labels], dtype=np.int64)

    def _problems(self) -> list[str | None]:
        """Read each image once, in threads: None for a good one, else what is wrong. A terminal gets a bar."""

        def problem(index: int) -> str | None:
            try:
                self.picture(index)
            except ImageError as error:
                return error.reason
            return None

        with ThreadPoolExecutor() as pool:
            results = pool.map(problem, range(len(self)))
            return list(tqdm(results, total=len(self), desc="checking images", unit="image", disable=None))

    def _keep(self, chosen: list[int]) -> None:
        """Forget the other images."""
        self.keys, self.labels = [self.keys[i] for i in chosen], self.labels[chosen]

    @abc.abstractmethod
    def _place(self, index: int) -> Path | str:
        """Where an image lies, for messages."""

    def name(self, index: int) -> str:
        return self.keys[index]


class ImageFolder(KeyedImages):
    """The images below a folder, at any depth.

    Classes are the folders of the first level (those of all images, whatever the split), sorted as people count. If an
    image lies directly in `root` there are no classes. The split goes by each file's path relative to `root` (see
    `in_validation`). Arguments and errors are those of `maskgit.data.load_dataset`.
    """

    UNCLASSED = "images lie directly in it, such as {}; move them into a folder to have one class per folder"

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: int,
        split: Split = "all",
        val_fraction: float = 0.1,
        check: bool = True,
    ):
        self.root = Path(root)
        self.image_size = check_size(image_size)
        self.paths = find_images(self.root)
        if not self.paths:
            raise DataError(f"{self.root}: no images in this folder ({', '.join(sorted(SUFFIXES))}, at any depth)")
        self.keys, self.skipped = [path.relative_to(self.root).as_posix() for path in self.paths], []
        labels = [key.partition("/")[0] if "/" in key else None for key in self.keys]
        self._use(str(self.root), labels, split, val_fraction, check)

    def _keep(self, chosen: list[int]) -> None:
        super()._keep(chosen)
        self.paths = [self.paths[i] for i in chosen]

    def _place(self, index: int) -> Path:
        return self.paths[index]

    def picture(self, index: int) -> Image.Image:
        return read_image(self.paths[index])

    def key(self) -> str | None:
        return files_key(zip(self.keys, self.paths, strict=True))


def check_size(image_size: int) -> int:
    """`image_size` if it is one, else a DataError."""
    if image_size < 1:
        raise DataError(f"image_size={image_size}: must be at least 1")
    return image_size
