"""Pictures to look at: the strip of one inpainting, grids of many, how masks and images evolve, still and moving."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskgit.canvas.holes import cells_with_holes
from maskgit.data.reading import to_rgb
from maskgit.pipeline import InpaintResult

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
_VARIANT_COLUMNS = 5
_SMALLEST, _LARGEST = 128, 256  # what the longer side of a picture is brought to: small ones by whole factors

FRAME, LAST_FRAME = 400, 2000
"""Milliseconds that the frames of an animation stay."""


def strip(result: InpaintResult) -> Image.Image:
    """One inpainting from left to right: original, hole, each decoding step (if they were kept), result; of the first
    window, where the model looked at several or at part of the picture only.

    Under the hole and each step are the tokens: those given by the image in light grey, those decided at this step in
    orange, those decided before in blue, those still open in dark. Small images are enlarged by a whole factor.
    """
    result = result.first()
    images, masks = _by_step(result)
    top = [resize(result.original, images[0].size), *images, resize(result.image, images[0].size)]
    captions = ["original", f"masked: {int(masks[0].sum())} tokens"]
    captions += [f"step {number}: {int(mask.sum())} left" for number, mask in enumerate(masks[1:], 1)]
    return grid([*top, None, *_token_pictures(masks, images[0].size), None], len(top), [*captions, "result"])


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


def variants_picture(result: InpaintResult) -> Image.Image:
    """The several fills of one picture beside each other, after its hole."""
    size = display_size(result.original.size)
    pictures = [masked_picture(result), *(resize(variant, size) for variant in result.variants)]
    captions = ["masked", *(f"variant {number}" for number in range(1, len(pictures)))]
    columns = min(len(pictures), _VARIANT_COLUMNS)
    return grid([framed(*each) for each in zip(pictures, captions, strict=True)], columns)


def pair(original: Image.Image, outpainted: Image.Image) -> tuple[Image.Image, Image.Image]:
    """A picture before and after it was outpainted, at one scale."""
    size = display_size(outpainted.size)
    scale = size[0] / outpainted.width
    width, height = (max(1, round(side * scale)) for side in original.size)
    return resize(original, (width, height)), resize(outpainted, size)


def overview(groups: Sequence[Sequence[Image.Image]], captions: Sequence[str], columns: int = 4) -> Image.Image:
    """Groups of pictures that belong together, a caption for each of a group, `columns` of these groups in a row.

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
    for name, whole in results.items():
        images, masks = _by_step(whole.first())
        empty = [None] * (columns - len(masks))
        pictures += [text_picture(name), *(_mask_picture(mask, images[0].size) for mask in masks), *empty]
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
    pictures, tokens = [], []  # of each result, frame by frame
    for whole in results.values():
        result = whole.first()
        images, masks = _by_step(result)
        pictures.append([*images, resize(result.image, images[0].size)])
        tokens.append(_token_pictures([*masks, masks[-1]], images[0].size))
    rows = [*pictures, *tokens]
    frames = [
        grid([row[min(number, len(row) - 1)] for row in rows], len(results), list(results))
        for number in range(max(map(len, rows)))
    ]
    file = io.BytesIO()
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    return file.getvalue()


def _by_step(result: InpaintResult) -> tuple[list[Image.Image], list[np.ndarray]]:
    """The hole and the image after each step, as shown; and what is masked at the start and then, bool [h, w]."""
    hole = masked_picture(result)
    images = [hole, *(resize(step.image, hole.size) for step in result.steps)]
    return images, [result.masked, *(step.masked for step in result.steps)]


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
        captions: one for each of the `columns`, above it; or none.

    Raises:
        ValueError: no images, `columns` below 1, or captions of another number than columns.
    """
    present = [image for image in images if image is not None]
    if not present or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(present)} and {columns}")
    if captions and len(captions) != columns:
        raise ValueError(f"{columns} columns, but {len(captions)} captions")
    font = ImageFont.load_default()
    lengths = [int(font.getlength(caption)) for caption in captions]
    # A picture may be narrower than what stands above it.
    width = max([image.width for image in present] + [length + 1 for length in lengths])
    height = max(image.height for image in present)
    top = GAP + _CAPTION * bool(captions)
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (GAP + columns * (width + GAP), top + rows * (height + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, (caption, length) in enumerate(zip(captions, lengths, strict=True)):
        draw.text((GAP + column * (width + GAP) + (width - length) // 2, GAP // 2), caption, fill=INK, font=font)
    for i, image in enumerate(images):
        if image is not None:
            row, column = divmod(i, columns)
            left = GAP + column * (width + GAP) + (width - image.width) // 2
            canvas.paste(image, (left, top + row * (height + GAP) + (height - image.height) // 2))
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


def _token_pictures(masks: Sequence[np.ndarray], size: tuple[int, int]) -> list[Image.Image]:
    """Tokens at the start and after each step, from what is masked then, bool [h, w], each within the one before."""
    colours = np.array([GIVEN, DECIDED, FRESH, OPEN], dtype=np.uint8)
    states = [masks[0].astype(int) + before + after for before, after in zip([masks[0], *masks], masks, strict=False)]
    return [blocks(colours[state], size) for state in states]


def _mask_picture(masked: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """bool [h, w], True = masked -> black on white, with the number of masked tokens below."""
    return framed(blocks(np.where(masked, 0, 255).astype(np.uint8), size), f"{int(masked.sum())} masked")


def blocks(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """One block for each token: uint8 [h, w, 3] or [h, w], or float32 [h, w] -> a picture of (width, height)."""
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def framed(picture: Image.Image, text: str) -> Image.Image:
    """A picture in a thin frame, with a line of text below."""
    canvas = Image.new("RGB", (picture.width + 2, picture.height + 2 + _CAPTION), BACKGROUND)
    ImageDraw.Draw(canvas).rectangle((0, 0, picture.width + 1, picture.height + 1), outline=INK)
    canvas.paste(picture, (1, 1))
    line = text_picture(text)
    canvas.paste(line, ((canvas.width + 1 - line.width) // 2, picture.height + 2))
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
