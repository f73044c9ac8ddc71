"""The pictures of a model's card: images in random order, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from maskgit.data.png import png_bytes
from maskgit.metrics.held_out import Subsets, to_picture
from maskgit.pictures.strips import grid, triples
from maskgit.pipeline import InpaintResult

PICTURES = 24
"""Images in each picture."""


def shown_indices(subsets: Subsets, seed: int) -> list[int]:
    """The images of the pictures: drawn at random from the headline's set, in random order."""
    indices = next(iter(subsets.values()))
    return [int(i) for i in np.random.default_rng((seed, 3)).permutation(indices)[:PICTURES]]


def draw_inpaintings(results: Sequence[InpaintResult]) -> bytes:
    """A PNG of what was known, the fill and the original, side by side."""
    return png_bytes(triples(results), optimize=True)


def draw_reconstructions(pixels: Tensor, decoded: Tensor, indices: Sequence[int]) -> bytes:
    """A PNG of originals, each with what encoding and decoding makes of it beside it. Both uint8 [n, 3, S, S]."""
    side = pixels.shape[2] * max(1, 128 // pixels.shape[2])
    pictures = [to_picture(images[i]) for i in indices for images in (pixels, decoded)]
    enlarged = [picture.resize((side, side), Image.Resampling.NEAREST) for picture in pictures]
    pairs = min(6, len(indices))
    return png_bytes(grid(enlarged, 2 * pairs, ["original", "decoded"] * pairs), optimize=True)
