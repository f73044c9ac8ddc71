"""Pictures to look at: the strip of one inpainting, and grids of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
_GAP = 6
_CAPTION = 16  # height of a line of text
_SMALLEST, _LARGEST = 128, 256  # what the longer side of a picture is brought to: small ones by whole factors


def strip(result: InpaintResult) -> Image.Image:
    """One inpainting from left to right: original, hole, each decoding step (if they were kept), result.

    Under the hole and each step are the tokens: those given by the image in light grey, those decided at this step in
    orange, those decided before in blue, those still open in dark. Small images are enlarged by a whole factor.
    """
    size = _display_size(result.original.size)
    masked = result.masked
    top = [_resize(result.original, size), masked_picture(result)]
    bottom: list[Image.Image | None] = [None, _token_picture(masked, masked, masked, size)]
    captions = ["original", f"masked: {int(masked.sum())} tokens"]
    before = masked
    for number, step in enumerate(result.steps, 1):
        top.append(_resize(step.image, size))
        bottom.append(_token_picture(masked, before, step.masked, size))
        captions.append(f"step {number}: {int(step.masked.sum())} left")
        before = step.masked
    top.append(_resize(result.image, size))
    bottom.append(None)
    captions.append("result")
    return grid([*top, *bottom], len(top), captions)


def triples(results: Sequence[InpaintResult], columns: int = 4) -> Image.Image:
    """Many inpaintings as masked, filled, original side by side, `columns` of these triples in a row.

    Raises:
        ValueError: no results, or `columns` below 1.
    """
    pictures: list[Image.Image | None] = []
    for result in results:
        size = _display_size(result.original.size)
        pictures += [masked_picture(result), _resize(result.image, size), _resize(result.original, size)]
    columns = min(columns, len(results))
    return grid(pictures, 3 * columns, ["masked", "filled", "original"] * columns)


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
    canvas = Image.new("RGB", (_GAP + columns * (width + _GAP), _GAP + head + rows * (height + _GAP)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions):
        left = _GAP + column * (width + _GAP) + (width - int(font.getlength(caption))) // 2
        draw.text((left, _GAP // 2), caption, fill=INK, font=font)
    for i, image in enumerate(images):
        if image is not None:
            row, column = divmod(i, columns)
            left = _GAP + column * (width + _GAP) + (width - image.width) // 2
            canvas.paste(image, (left, _GAP + head + row * (height + _GAP) + (height - image.height) // 2))
    return canvas


def masked_picture(result: InpaintResult) -> Image.Image:
    """The original with its hole hatched in grey, at the size at which strips show it."""
    size = _display_size(result.original.size)
    picture = np.array(_resize(result.original, size))
    shares = Image.fromarray(result.mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    rows, columns = np.indices(picture.shape[:2])
    dark = (rows + columns) // _HATCH_WIDTH % 2 == 0
    hatch = np.where(dark[..., None], *np.array(_HATCH, dtype=np.uint8))
    return Image.fromarray(np.where((np.asarray(shares) > 0)[..., None], hatch, picture))


def _token_picture(start: np.ndarray, before: np.ndarray, after: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Tokens, from what is masked at the start, before and after a step; bool [h, w] each."""
    colours = np.array([GIVEN, DECIDED, FRESH, OPEN], dtype=np.uint8)
    state = start.astype(int) + before + after  # each set lies within the one before
    return Image.fromarray(colours[state]).resize(size, Image.Resampling.NEAREST)


def _display_size(size: tuple[int, int]) -> tuple[int, int]:
    longest = max(size)
    if longest > _LARGEST:
        return max(1, round(size[0] * _LARGEST / longest)), max(1, round(size[1] * _LARGEST / longest))
    factor = -(-_SMALLEST // longest)
    return size[0] * factor, size[1] * factor


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Enlarged by whole factors, pixels stay squares; anything else is smooth."""
    whole = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC)
