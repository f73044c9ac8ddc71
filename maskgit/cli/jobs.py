"""Which files a run has to do, what it must not replace, and what is to be done with each."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from maskgit.canvas.outpainting import Margins
from maskgit.canvas.windows import Window
from maskgit.cli.options import Options
from maskgit.cli.results import is_result
from maskgit.console import UsageError
from maskgit.data.images import find_images
from maskgit.data.masks import MAKERS, MaskError, find_mask_for, load_mask, make_mask
from maskgit.files import SAMPLES, find_replaced
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
    label: int | None = None
    """Its class, by the model's number."""

    def file(self, suffix: str) -> Path:
        """One of its results."""
        return self.output.with_name(self.output.name + suffix)


# --- which files ------------------------------------------------------------------------------------------------------


def find_jobs(options: Options) -> list[Job]:
    """The files to do, or pictures to generate, and the names of their results.

    Generated pictures have a number for a name; as many as before begin with the same ones. The output folder may be
    the folder of the images, or below or above it: results of earlier runs with the same output folder, which may so
    lie among the images, are left out.

    Raises:
        UsageError: there are none, or --images names nothing that has any.
        DataError: a folder can't be listed.
    """
    if options.generate is not None:
        digits = max(4, len(str(options.generate)))
        return [Job(None, f"generated/{i}", options.output / f"{i:0{digits}d}") for i in range(options.generate)]
    path = options.images or SAMPLES
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
    taken, endings = {OVERVIEW} if len(found) > 1 else set(), suffixes(options)
    for file in found:
        relative = file.relative_to(root)
        output = options.output / relative.parent / free_name(relative, taken, endings)
        jobs.append(Job(file, unicodedata.normalize("NFC", relative.as_posix()), output))
    return jobs


def suffixes(options: Options) -> list[str]:
    """How the names of an image's results end, that of the result last."""
    if options.generate is not None or options.outpaint is not None:
        return [".png"]
    several = [f".variant{number}.png" for number in range(2, options.variants + 1)]
    return [".strip.png", *[".maps.png"] * options.maps, *[".variants.png"] * bool(several), *several, ".png"]


def free_name(relative: Path, taken: set[str], endings: Sequence[str]) -> str:
    """A file name without suffix for the results, none of which may be in `taken`; adds them to it.

    It is the stem of the input's name; where an input of the same stem came before, the whole name, or a number.
    """
    number = 1
    while True:
        name = (relative.stem, relative.name)[number - 1] if number < 3 else f"{relative.name}-{number - 1}"
        # Some file systems take names for equal that differ in case or in how accents are encoded.
        base = unicodedata.normalize("NFC", (relative.parent / name).as_posix()).casefold()
        files = {f"{base}{ending}" for ending in (".strip.png", ".maps.png", *endings)}
        if not files & taken:
            taken |= files
            return name
        number += 1


def mask_folder(folder: Path, job: Job) -> Path:
    """Where in a folder of masks that of an image is looked for: in the image's own sub-folder, if there is one."""
    mirrored = folder / Path(job.name).parent
    return mirrored if mirrored.is_dir() else folder


# --- what must not be replaced ----------------------------------------------------------------------------------------


def check_originals(options: Options, jobs: Sequence[Job], suffixes: Sequence[str]) -> None:
    """See to it that nothing is lost before anything is done; the names of each job's results end in `suffixes`.

    Raises:
        UsageError: a result would take the place of an image or mask that is to be read, in whatever way its path leads
            there; or, among images and where pictures are generated, of a file that isn't a result.
    """
    results = [job.file(suffix) for job in jobs for suffix in suffixes]
    if len(jobs) > 1:
        results.append(options.output / OVERVIEW)
    existing = [path for path in results if os.path.lexists(path)]
    images = [job.path for job in jobs if job.path is not None]
    folders = {path.parent for path in images}
    among = {path for path, _ in find_replaced({path.parent for path in existing}, folders)}
    beside = [path for path in existing if not images or path.parent in among]
    for kind, lost in (
        ("one of the images", [original for _, original in find_replaced(existing, images)]),
        ("a mask", [original for _, original in find_replaced(existing, mask_files(options, jobs))]),
        ("not the result of an earlier run", [path for path in beside if not is_result(path, options.output)]),
    ):
        if lost:
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            raise UsageError(
                f"--output {options.output}: a result would take the place of {lost[0]}{more}, which is {kind}; "
                "choose another --output"
            )


def mask_files(options: Options, jobs: Sequence[Job]) -> list[Path]:
    """The files that --mask names, or those in the folders where it has masks looked for.

    Raises:
        UsageError: results go where masks are looked for, and would be taken for masks the next time.
    """
    if options.mask is None or options.mask in MAKERS:
        return []
    path = Path(options.mask)
    if not path.is_dir():
        return [path]
    if find_replaced([options.output], [path]):
        raise UsageError(
            f"--output {options.output} is the folder of the masks, for which the results would be taken; "
            "choose another --output"
        )
    return [file for folder in {mask_folder(path, job) for job in jobs} for file in folder.iterdir()]


# --- what is to be done with each -------------------------------------------------------------------------------------


def find_target(options: Options, job: Job, image: Image.Image) -> Target:
    """What is to be done with an image.

    Raises:
        MaskError, ImageError: it has no mask, or one that can't be used; the box is outside of it, or it would become
            too large.
    """
    if options.outpaint is not None:
        left, top, right, bottom = in_pixels(options.outpaint, image.size)
        width, height = image.width + left + right, image.height + top + bottom
        if width * height > MOST_PIXELS:
            raise MaskError(
                f"{job.path}: with --outpaint {' '.join(options.outpaint)} it would have {width}x{height} pixels; "
                f"at most {MOST_PIXELS:,} are made"
            )
        return left, top, right, bottom
    if options.box is not None:
        left, top, width, height = in_pixels(options.box, image.size)
        mask = np.zeros(image.size[::-1], dtype=bool)
        mask[top : top + height, left : left + width] = True
        if not mask.any():
            raise MaskError(f"{job.path}: the box is outside this picture of {image.width}x{image.height}, or empty")
        return mask ^ options.invert_mask
    wanted = options.mask or "center"
    if wanted in MAKERS:
        # Other random numbers than those of the tokens, which come from the seed of the bare name.
        seed = image_seed(options.seed, f"mask/{job.name}") % 2**64
        return make_mask(wanted, image.height, image.width, seed) ^ options.invert_mask
    path = Path(wanted)
    if path.is_dir():
        assert job.path is not None
        path = find_mask_for(job.path, mask_folder(path, job))
    return load_mask(path, image.size, options.invert_mask)


def in_pixels(lengths: Sequence[str], size: tuple[int, int]) -> list[int]:
    """Lengths along x, y, x, ..., in pixels or in percent of a picture's (width, height), in pixels."""
    sides = zip(lengths, itertools.cycle(size), strict=False)
    return [round(float(text[:-1]) / 100 * side) if text.endswith("%") else int(text) for text, side in sides]


def query_point(options: Options, job: Job, image: Image.Image) -> tuple[int, int] | None:
    """--map-at in the pixels (x, y) of an image; None where it isn't given.

    Raises:
        MaskError: the point is outside the image.
    """
    if options.map_at is None:
        return None
    x, y = in_pixels(options.map_at, image.size)
    if x >= image.width or y >= image.height:
        raise MaskError(
            f"{job.path}: --map-at {' '.join(options.map_at)} is outside this picture of {image.width}x{image.height}"
        )
    return x, y


def point_in_window(options: Options, job: Job, image: Image.Image, window: Window | None) -> tuple[int, int] | None:
    """--map-at in the pixels of the window that the maps are of.

    Raises:
        MaskError: the point is outside of it.
    """
    point = query_point(options, job, image)
    if point is None or window is None:
        return point
    (x, y), box = point, window.box
    if not (box.left <= x < box.right and box.top <= y < box.bottom):
        raise MaskError(
            f"{job.path}: --map-at {' '.join(options.map_at or ())} is outside of where the model looks, from "
            f"{box.left} {box.top} to {box.right} {box.bottom}; --crop off looks at all of the picture"
        )
    return x - box.left, y - box.top


def query_token(point: tuple[int, int] | None, size: tuple[int, int], grid: tuple[int, ...]) -> tuple[int, int] | None:
    """Row and column, on a grid of (rows, columns), of the token at a point (x, y) of an image of size (W, H)."""
    if point is None:
        return None
    (x, y), (width, height), (rows, columns) = point, size, grid
    return y * rows // height, x * columns // width
