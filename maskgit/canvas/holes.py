"""What a hole does to an image: hiding its pixels from the encoder, and putting known pixels back afterwards."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_SWEEPS = 8
"""So many leave a slow change that goes through a hole of 10 pixels off by about a third of its step."""

_MOST_RELAXED = 2**20
"""Pixels of the box around those that are unknown; sweeps over more take several times as long as the pyramid."""


def smooth_fill(image: Tensor, known: Tensor) -> Tensor:
    """Replace unknown pixels by a smooth continuation of the known ones.

    The pull-push pyramid of Gortler et al., "The Lumigraph" (SIGGRAPH 1996), section 3.4: averages of known pixels at
    half the resolution, again and again, until every pixel has one; unknown pixels take theirs from below. At each
    resolution a few of Jacobi's sweeps bring these near the membrane, each pixel the mean of its four neighbors, which
    the pyramid alone misses by blocks (Bornemann and Deuflhard, "The cascadic multigrid method for elliptic problems",
    1996). What `image`, float [C, H, W], holds where `known`, bool [1, H, W], is False has no influence, as long as it
    is finite.

    Returns:
        float [C, H, W]: `image` where known; 0 everywhere if nothing is known.
    """
    if known.all():
        return image
    if known.numel() == 1:
        return torch.zeros_like(image)
    weight = _halve(known.to(image.dtype))
    average = _halve(image * known) / weight.clamp(min=torch.finfo(image.dtype).tiny)
    below = smooth_fill(average, weight > 0)
    rest = F.interpolate(below[None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
    return _relaxed(torch.where(known, image, rest, out=rest), ~known)


def _relaxed(image: Tensor, unknown: Tensor) -> Tensor:
    """Unknown pixels, bool [1, H, W], nearer to the means of their neighbors; in place. Borders are mirrors.

    Where they lie too far apart for it to take little time, as in all of a large picture, they stay as they are.
    """
    used = (unknown[0].any(along).nonzero() for along in (1, 0))
    rows, columns = (slice(max(0, int(at[0]) - 1), int(at[-1]) + 2) for at in used)
    part, unknown = image[:, rows, columns], unknown[:, rows, columns]
    if unknown.numel() > _MOST_RELAXED:
        return image
    mean = torch.empty_like(part)
    for _ in range(_SWEEPS):
        x = F.pad(part[None], (1, 1, 1, 1), mode="replicate")[0]
        torch.add(x[:, :-2, 1:-1], x[:, 2:, 1:-1], out=mean)
        mean.add_(x[:, 1:-1, :-2]).add_(x[:, 1:-1, 2:]).div_(4)
        torch.where(unknown, mean, part, out=part)
    return image


def _halve(x: Tensor) -> Tensor:
    # Where a side is odd, the last window is cut off at the edge and averages what it has.
    return F.avg_pool2d(x[None], 2, ceil_mode=True, count_include_pad=False)[0]


def cells_with_holes(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Which cells of a grid laid over a mask, bool [H, W], contain any hidden pixel, however small its share.

    Returns:
        bool [rows, columns]. Cell i covers pixels from floor(i H / rows) up to ceil((i + 1) H / rows), so cells
        overlap where they cut through pixels.
    """
    for count in (rows, columns):
        cells = [(i * len(mask) // count, -(-(i + 1) * len(mask) // count)) for i in range(count)]
        mask = np.stack([mask[start:end].any(0) for start, end in cells], axis=1)  # which turns it, so rows come first
    return mask


def depths(hidden: np.ndarray) -> np.ndarray:
    """How many steps from each hidden cell of a grid, bool [h, w], to the nearest that isn't, diagonal ones too.

    Returns:
        int64 [h, w], 0 where a cell isn't hidden; max(h, w) where all are.
    """
    steps = np.zeros(hidden.shape, dtype=int)
    for _ in range(max(hidden.shape)):
        if not hidden.any():
            break
        steps += hidden
        hidden = ~grown(~hidden, 1)
    return steps


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A hole, bool [H, W], made larger by so many pixels on all sides."""
    if not pixels:
        return mask
    for _ in range(2):  # along columns, then rows
        sums = np.pad(np.cumsum(mask, axis=0, dtype=np.int32), ((1, 0), (0, 0)))
        at = np.arange(len(mask))
        mask = (sums[np.minimum(at + pixels + 1, len(mask))] > sums[np.maximum(at - pixels, 0)]).T
    return mask


def blended(original: Image.Image, filled: Image.Image, mask: np.ndarray, feather: int) -> Image.Image:
    """`filled`, but at the edge of the hole, bool [H, W], over so many pixels, more and more `original`; RGB both."""
    if not feather or not mask.any():
        return filled
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, left = max(0, rows[0] - 1), max(0, columns[0] - 1)  # with a pixel of what is known
    inside = mask[top : rows[-1] + 2, left : columns[-1] + 2]
    depth = np.sum([~grown(~inside, pixels) for pixels in range(feather + 1)], axis=0)
    alpha = Image.fromarray((255 * depth / (feather + 1)).round().astype(np.uint8))
    result = original.copy()
    result.paste(filled.crop((left, top, left + alpha.width, top + alpha.height)), (left, top), alpha)
    return result


def paste_known(original: Image.Image, fill: Image.Image, mask: np.ndarray) -> Image.Image:
    """`original` outside the hole, bool [H, W], and inside it `fill`, in tune with what surrounds it; RGB both.

    A tokenizer's colors are a little off, which would show as a seam. So what `fill` lacks outside the hole is
    continued smoothly into it and added there: seamless cloning (Perez et al., "Poisson Image Editing", SIGGRAPH 2003)
    with `smooth_fill` in place of the membrane that solves Laplace's equation.
    """
    if mask.all():
        return fill
    known = torch.from_numpy(~mask)[None]
    channels = []
    for band in original.getbands():  # one at a time: floats of all of a large picture would take much memory
        before, after = (np.asarray(image.getchannel(band)) for image in (original, fill))
        lacking = np.subtract(before, after, dtype=np.float32)
        sums = smooth_fill(torch.from_numpy(lacking)[None], known)[0].numpy()
        sums += after
        pixels = sums.round(out=sums).clip(0, 255, out=sums).astype(np.uint8)
        # Outside the hole the sum is the original but for float32's rounding.
        channels.append(Image.fromarray(np.where(mask, pixels, before)))
    return Image.merge(original.mode, channels)
