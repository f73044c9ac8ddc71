"""Which files a run has to do, and what is to be done with each."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from maskgit.canvas.outpainting import Margins
from maskgit.cli.options import Lengths, Options, UsageError
from maskgit.cli.results import is_result
from maskgit.data.images import find_images
from maskgit.data.masks import MAKERS, MaskError, find_mask_for, load_mask, make_mask
from maskgit.memory import MOST_PIXELS
from maskgit.pipeline import image_seed

OVERVIEW = "overview.grid.png"
"""The file, in the output folder, that shows the results of a run together."""

Target = np.ndarray | Margins
"""What is to be done with an image: the mask bool [H, W] to fill, or the margins to add."""


@dataclass
class Job:
    """One file to do."""

    path: Path | None
    """None for a picture from nothing."""
    name: str
    """Relative to the input folder, with forward slashes."""
    output: Path
    """Without a suffix."""


def to_pixels(length: str, side: int) -> int:
    """A length in pixels, or in percent of a side, as pixels."""
    return round(float(length[:-1]) / 100 * side) if length.endswith("%") else int(length)


def query_point(options: Options, job: Job, image: Image.Image) -> tuple[int, int] | None:
    """--map-at in the pixels (x, y) of an image; None where it isn't given.

    Raises:
        MaskError: the point is outside the image.
    """
    if options.map_at is None:
        return None
    x, y = (to_pixels(length, side) for length, side in zip(options.map_at, image.size, strict=True))
    if x >= image.width or y >= image.height:
        raise MaskError(
            f"{job.path}: --map-at {' '.join(options.map_at)} is outside this picture of {image.width}x{image.height}"
        )
    return x, y


def query_token(point: tuple[int, int] | None, size: tuple[int, int], grid: tuple[int, ...]) -> tuple[int, int] | None:
    """Row and column, on a grid of (rows, columns), of the token at a point (x, y) of an image of size (W, H)."""
    if point is None:
        return None
    (x, y), (width, height), (rows, columns) = point, size, grid
    return y * rows // height, x * columns // width


def outpainting(lengths: Lengths) -> Callable[[Job, Image.Image], Target]:
    """The function that gives an image's margins; it raises MaskError where the picture would become too large."""

    def margins(job: Job, image: Image.Image) -> Target:
        left, top, right, bottom = (
            to_pixels(length, side) for length, side in zip(lengths, image.size * 2, strict=True)
        )
        width, height = image.width + left + right, image.height + top + bottom
        if width * height > MOST_PIXELS:
            raise MaskError(
                f"{job.path}: with --outpaint {' '.join(lengths)} it would have {width}x{height} pixels; "
                f"at most {MOST_PIXELS:,} are made"
            )
        return left, top, right, bottom

    return margins


# --- which files ------------------------------------------------------------------------------------------------------


def generated_jobs(options: Options) -> list[Job]:
    """Pictures with a number for a name. As many as before begin with the same ones."""
    count = options.generate or 0
    digits = max(4, len(str(count)))
    return [Job(None, f"generated/{i}", options.output / f"{i:0{digits}d}") for i in range(count)]


def find_jobs(options: Options) -> list[Job]:
    """The files to do and the names of their results.

    The output folder may be the folder of the images, or below or above it: results of earlier runs with the same
    output folder, which may so lie among the images, are left out.

    Raises:
        UsageError: there are none, or --images names nothing that has any.
        DataError: a folder can't be listed.
    """
    path = options.images
    if path is None:
        with resources.as_file(resources.files("maskgit") / "assets" / "samples") as samples:
            path = samples
    if path.is_file():
        root, found = path.parent, [path]
    elif not path.is_dir():
        kind = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise UsageError(f"--images {path}: {kind}")
    else:
        root, there = path, find_images(path)
        found = [file for file in there if not is_result(file, options.output)]
        if there and not found:
            raise UsageError(
                f"--images {path}: only results of earlier runs with --output {options.output}; "
                "to go on from them, choose another --output"
            )
    if not found:
        raise UsageError(f"--images {path}: no images in this folder")
    jobs = []
    taken = {OVERVIEW} if len(found) > 1 else set()
    for file in found:
        relative = file.relative_to(root)
        output = options.output / relative.parent / free_name(relative, taken)
        jobs.append(Job(file, unicodedata.normalize("NFC", relative.as_posix()), output))
    return jobs


def free_name(relative: Path, taken: set[str]) -> str:
    """A file name without suffix for the results, none of which may be in `taken`; adds them to it.

    It is the stem of the input's name; where an input of the same stem came before, the whole name, or a number.
    """
    number = 1
    while True:
        name = (relative.stem, relative.name)[number - 1] if number < 3 else f"{relative.name}-{number - 1}"
        # Some file systems take names for equal that differ in case or in how accents are encoded.
        base = unicodedata.normalize("NFC", (relative.parent / name).as_posix()).casefold()
        files = {f"{base}.png", f"{base}.strip.png", f"{base}.maps.png"}
        if not files & taken:
            taken |= files
            return name
        number += 1


def mask_folder(folder: Path, job: Job) -> Path:
    """Where in a folder of masks that of an image is looked for: in the image's own sub-folder, if there is one."""
    mirrored = folder / Path(job.name).parent
    return mirrored if mirrored.is_dir() else folder


def mask_source(options: Options) -> Callable[[Job, Image.Image], Target]:
    """The function that gives an image's mask, bool [H, W]; it raises MaskError or ImageError.

    Raises:
        UsageError: --mask is none of what it may be.
    """
    if options.box is not None:
        lengths = options.box

        def box(job: Job, image: Image.Image) -> np.ndarray:
            left, top, width, height = (
                to_pixels(length, side) for length, side in zip(lengths, image.size * 2, strict=True)
            )
            mask = np.zeros(image.size[::-1], dtype=bool)
            mask[top : top + height, left : left + width] = True
            if not mask.any():
                raise MaskError(
                    f"{job.path}: the box is outside this picture of {image.width}x{image.height}, or empty"
                )
            return mask ^ options.invert_mask

        return box
    wanted = options.mask or "center"
    path = Path(wanted)
    if wanted in MAKERS:

        def make(job: Job, image: Image.Image) -> np.ndarray:
            # Other random numbers than those of the tokens, which come from the seed of the bare name.
            seed = image_seed(options.seed, f"mask/{job.name}") % 2**64
            return make_mask(wanted, image.height, image.width, seed) ^ options.invert_mask

        return make
    if path.is_dir():

        def find(job: Job, image: Image.Image) -> np.ndarray:
            assert job.path is not None
            return load_mask(find_mask_for(job.path, mask_folder(path, job)), image.size, options.invert_mask)

        return find
    if path.is_file():
        return lambda job, image: load_mask(path, image.size, options.invert_mask)
    raise UsageError(f"--mask {wanted}: no such file or folder, and not one of {', '.join(MAKERS)}")
