"""Pictures to look at: the strip of one inpainting, grids of many, how masks and images evolve, still and moving.

python -m maskgit.pictures                                      # a sample image, filled by three schedules
python -m maskgit.pictures photo.png --mask hole.png --schedules cosine arccos --steps 12 --animation webp
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from maskgit.canvas.holes import cells_with_holes
from maskgit.console import printable, warnings_as_lines
from maskgit.data.masks import MAKERS, load_mask, make_mask
from maskgit.data.reading import read_image, to_rgb
from maskgit.decoding import DecodeConfig
from maskgit.files import find_replaced, write_atomically
from maskgit.pipeline import InpaintResult, MaskGIT

BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)

# Tokens of a strip's lower row.
GIVEN = (226, 226, 226)
DECIDED = (130, 170, 220)
FRESH = (245, 150, 40)
OPEN = (50, 50, 60)

_HATCH = ((120, 120, 130), (190, 190, 200))  # the two greys of a hole
_HATCH_WIDTH = 4
GAP = 6
_CAPTION = 16  # height of a line of text
_SMALLEST, _LARGEST = 128, 256  # what the longer side of a picture is brought to: small ones by whole factors

FRAME, LAST_FRAME = 400, 2000
"""Milliseconds that the frames of an animation stay."""


def strip(result: InpaintResult) -> Image.Image:
    """One inpainting from left to right: original, hole, each decoding step (if they were kept), result.

    Under the hole and each step are the tokens: those given by the image in light grey, those decided at this step in
    orange, those decided before in blue, those still open in dark. Small images are enlarged by a whole factor.
    """
    size = display_size(result.original.size)
    masked = result.masked
    top = [resize(result.original, size), masked_picture(result)]
    bottom: list[Image.Image | None] = [None, _token_picture(masked, masked, masked, size)]
    captions = ["original", f"masked: {int(masked.sum())} tokens"]
    before = masked
    for number, step in enumerate(result.steps, 1):
        top.append(resize(step.image, size))
        bottom.append(_token_picture(masked, before, step.masked, size))
        captions.append(f"step {number}: {int(step.masked.sum())} left")
        before = step.masked
    top.append(resize(result.image, size))
    bottom.append(None)
    captions.append("result")
    return grid([*top, *bottom], len(top), captions)


def triples(results: Sequence[InpaintResult], columns: int = 4) -> Image.Image:
    """Many inpaintings as masked, filled, original side by side, `columns` of these triples in a row.

    Raises:
        ValueError: no results, or `columns` below 1.
    """
    return overview([triple(result) for result in results], TRIPLE, columns)


TRIPLE = ("masked", "filled", "original")


def triple(result: InpaintResult) -> tuple[Image.Image, Image.Image, Image.Image]:
    """One inpainting as masked, filled, original, at the size at which strips show it."""
    size = display_size(result.original.size)
    return masked_picture(result), resize(result.image, size), resize(result.original, size)


def overview(groups: Sequence[Sequence[Image.Image]], captions: Sequence[str], columns: int = 4) -> Image.Image:
    """Groups of pictures that belong together, `columns` of these groups in a row.

    Args:
        groups: as many pictures each as there are captions.
        captions: one for each picture of a group.

    Raises:
        ValueError: no groups, or `columns` below 1.
    """
    columns = min(columns, len(groups))
    return grid([picture for group in groups for picture in group], len(captions) * columns, [*captions] * columns)


def evolution(results: Mapping[str, InpaintResult]) -> Image.Image:
    """How masks and images evolve, step by step from left to right, for each of several ways to decode.

    Two rows for each: its masks, black where tokens are still masked and white where they are known, with the number
    that are left; and what decoding all tokens predicted so far gives.

    Args:
        results: by the name of what differs, such as the schedule; with their steps kept (`save_steps`). They may
            differ in how many there are.

    Raises:
        ValueError: no results, or one without its steps.
    """
    _check_steps(results)
    columns = 1 + max(len(result.steps) for result in results.values())
    pictures: list[Image.Image | None] = []
    for name, result in results.items():
        size = display_size(result.original.size)
        masks = [result.masked, *(step.masked for step in result.steps)]
        images = [masked_picture(result), *(resize(step.image, size) for step in result.steps)]
        empty = [None] * (columns - len(masks))
        pictures += [text_picture(name), *(_mask_picture(mask, size) for mask in masks), *empty]
        pictures += [None, *images, *empty]
    return grid(pictures, 1 + columns, ["", "start", *(f"step {number}" for number in range(1, columns))])


def animation(results: Mapping[str, InpaintResult], kind: Literal["gif", "webp"] = "gif") -> bytes:
    """How images and tokens evolve, as a moving picture that starts over at its end: the file's content.

    Side by side for each result: the hole, then each step, then the result; the tokens below, colored as in strips.

    Args:
        results: by the caption above each (which may be empty); with their steps kept (`save_steps`).
        kind: "gif" (256 colors a frame) or "webp" (lossless).

    Raises:
        ValueError: no results, one without its steps, or another kind.
    """
    _check_steps(results)
    if kind not in ("gif", "webp"):
        raise ValueError(f"unknown kind of animation {kind!r}: choose gif or webp")
    columns = [_frames(result) for result in results.values()]
    frames = []
    for number in range(max(len(column) for column in columns)):
        now = [column[min(number, len(column) - 1)] for column in columns]
        frames.append(grid([*(top for top, _ in now), *(bottom for _, bottom in now)], len(columns), list(results)))
    file = io.BytesIO()
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    return file.getvalue()


def _frames(result: InpaintResult) -> list[tuple[Image.Image, Image.Image]]:
    """Picture and tokens at the start, after each step, and at the end."""
    size = display_size(result.original.size)
    start = before = result.masked
    frames = [(masked_picture(result), _token_picture(start, start, start, size))]
    for step in result.steps:
        frames.append((resize(step.image, size), _token_picture(start, before, step.masked, size)))
        before = step.masked
    return [*frames, (resize(result.image, size), _token_picture(start, before, before, size))]


def _check_steps(results: Mapping[str, InpaintResult]) -> None:
    if not results:
        raise ValueError("no results to show")
    for name, result in results.items():
        if not result.steps:
            raise ValueError(f"the steps of {name!r} were not kept (save_steps), or nothing was masked")


def grid(images: Sequence[Image.Image | None], columns: int, captions: Sequence[str] = ()) -> Image.Image:
    """Images row by row on white, each centred in its cell; all cells are as large as the largest image.

    Args:
        images: of any size; None leaves a cell empty.
        columns: cells in a row.
        captions: one for each column, above it; or none.

    Raises:
        ValueError: no images, `columns` below 1, or captions of another number than columns.
    """
    present = [image for image in images if image is not None]
    if not present or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(present)} and {columns}")
    if captions and len(captions) != columns:
        raise ValueError(f"{columns} columns, but {len(captions)} captions")
    font = ImageFont.load_default()
    width = max(image.width for image in present)
    # A picture may be narrower than what stands above it.
    width = max([width, *(int(font.getlength(caption)) + 1 for caption in captions)])
    height = max(image.height for image in present)
    head = _CAPTION if captions else 0
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (GAP + columns * (width + GAP), GAP + head + rows * (height + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions):
        left = GAP + column * (width + GAP) + (width - int(font.getlength(caption))) // 2
        draw.text((left, GAP // 2), caption, fill=INK, font=font)
    for i, image in enumerate(images):
        if image is not None:
            row, column = divmod(i, columns)
            left = GAP + column * (width + GAP) + (width - image.width) // 2
            canvas.paste(image, (left, GAP + head + row * (height + GAP) + (height - image.height) // 2))
    return canvas


def masked_picture(result: InpaintResult) -> Image.Image:
    """The original with its hole hatched in grey, at the size at which strips show it."""
    size = display_size(result.original.size)
    picture = np.array(resize(result.original, size))
    hole = cells_with_holes(result.mask, *picture.shape[:2])
    rows, columns = np.indices(picture.shape[:2])
    dark = (rows + columns) // _HATCH_WIDTH % 2 == 0
    hatch = np.where(dark[..., None], *np.array(_HATCH, dtype=np.uint8))
    return Image.fromarray(np.where(hole[..., None], hatch, picture))


def _token_picture(start: np.ndarray, before: np.ndarray, after: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Tokens, from what is masked at the start, before and after a step; bool [h, w] each."""
    colours = np.array([GIVEN, DECIDED, FRESH, OPEN], dtype=np.uint8)
    state = start.astype(int) + before + after  # each set lies within the one before
    return Image.fromarray(colours[state]).resize(size, Image.Resampling.NEAREST)


def _mask_picture(masked: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """bool [h, w], True = masked -> black on white, with the number of masked tokens below."""
    tokens = Image.fromarray(np.where(masked, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return framed(tokens, f"{int(masked.sum())} masked")


def framed(picture: Image.Image, text: str) -> Image.Image:
    """A picture in a thin frame, with a line of text below."""
    canvas = Image.new("RGB", (picture.width + 2, picture.height + 2 + _CAPTION), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, picture.width + 1, picture.height + 1), outline=INK)
    canvas.paste(picture, (1, 1))
    font = ImageFont.load_default()
    draw.text(((canvas.width - font.getlength(text)) // 2, picture.height + 4), text, fill=INK, font=font)
    return canvas


def text_picture(text: str) -> Image.Image:
    """Lines of text as a picture."""
    font, lines = ImageFont.load_default(), text.split("\n")
    width = max(int(font.getlength(line)) + 1 for line in lines)
    picture = Image.new("RGB", (width, _CAPTION * len(lines)), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((0, _CAPTION * number + 2), line, fill=INK, font=font)
    return picture


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) at which a picture of a size is shown: with 128 to 256 pixels on its longer side."""
    longest = max(size)
    if longest > _LARGEST:
        return max(1, round(size[0] * _LARGEST / longest)), max(1, round(size[1] * _LARGEST / longest))
    factor = -(-_SMALLEST // longest)
    return size[0] * factor, size[1] * factor


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image of any mode as RGB. Enlarged by whole factors, pixels stay squares; anything else is smooth."""
    image = to_rgb(image)
    whole = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC)


# --- command ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Fill one hole by several schedules and show how: evolution.png has masks and images of each, step by step,
    evolution.gif (or .webp) the same in motion, and SCHEDULE.strip.png is the strip of one."""

    image: Annotated[Path | None, tyro.conf.Positional] = None
    """The image. Default: a sample."""
    mask: str = "center"
    """A mask image (white is filled), or one of center, boxes, strokes, half, left, right, top, bottom."""
    schedules: tuple[str, ...] = ("linear", "cosine", "square")
    """Which to compare: cosine, linear, square, cubic, exponential, sqrt, logarithmic, arccos."""
    steps: int = DecodeConfig.steps
    """Decoding steps."""
    seed: int = 0
    """Another seed gives other pictures, and another hole where there is chance in it."""
    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    animation: Literal["gif", "webp"] = "gif"
    """Format of the moving picture."""
    output: Path = Path("outputs/evolution")
    """Folder for the pictures. What an earlier run left there under the same names is replaced."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 if anything fails, 2 for bad usage."""
    try:
        options = tyro.cli(Options, args=argv, prog="python -m maskgit.pictures", config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:  # --help, or options that tyro could not read
        return int(stop.code or 0)
    moving, strips = f"evolution.{options.animation}", {name: f"{name}.strip.png" for name in options.schedules}
    given = [path for path in (options.image, Path(options.mask)) if path is not None]
    if replaced := find_replaced(
        [options.output / name for name in ("evolution.png", moving, *strips.values())], given
    ):
        print(
            f"error: {printable(replaced[0][1])} would be replaced by a picture; choose another --output",
            file=sys.stderr,
        )
        return 2
    try:
        if not options.schedules:
            raise ValueError("--schedules: name at least one")
        for schedule in options.schedules:  # what makes no sense is found out before any work is done
            DecodeConfig(steps=options.steps, schedule=schedule)
        sample = resources.files("maskgit") / "assets" / "samples" / "fox.png"
        with resources.as_file(sample) as path:
            image = read_image(options.image or path)
        if options.mask in MAKERS:
            mask = make_mask(options.mask, image.height, image.width, options.seed)
        elif Path(options.mask).is_file():
            with warnings_as_lines():
                mask = load_mask(options.mask, image.size)
        else:
            raise ValueError(f"--mask {options.mask}: no such file, and not one of {', '.join(MAKERS)}")
        model = MaskGIT.from_pretrained(options.model, device=options.device)
        results = {}
        for schedule in tqdm(options.schedules, desc="inpainting", unit="schedule"):
            (results[schedule],) = model.inpaint(
                [image], [mask], steps=options.steps, schedule=schedule, seed=options.seed, save_steps=True
            )
        files = {
            "evolution.png": _png(evolution(results)),
            moving: animation(results, options.animation),
            **{strips[name]: _png(strip(result)) for name, result in results.items()},
        }
        try:
            write_atomically({options.output / name: data for name, data in files.items()})
        except OSError as error:
            raise ValueError(f"{options.output}: can't write pictures there: {error.strerror}") from error
    except (OSError, RuntimeError, ValueError) as error:  # they all say what to do
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    print(f"in {printable(options.output.resolve())}: {', '.join(files)}")
    return 0


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
