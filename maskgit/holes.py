"""What a hole does to an image: hiding its pixels from the encoder, and putting known pixels back afterwards."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def smooth_fill(image: Tensor, known: Tensor) -> Tensor:
    """Replace unknown pixels by a smooth continuation of the known ones.

    The pull-push pyramid of Gortler et al., "The Lumigraph" (SIGGRAPH 1996), section 3.4: averages of known pixels at
    half the resolution, again and again, until every pixel has one; unknown pixels take theirs from below. What
    `image` holds at unknown pixels has no influence, as long as it is finite.

    Args:
        image: float [C, H, W].
        known: bool [1, H, W].

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
    return torch.where(known, image, rest)


def _halve(x: Tensor) -> Tensor:
    # Where a side is odd, the last window is cut off at the edge and averages what it has.
    return F.avg_pool2d(x[None], 2, ceil_mode=True, count_include_pad=False)[0]


def cells_with_holes(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Which cells of a grid laid over a mask contain any hidden pixel, however small its share.

    Args:
        mask: bool [H, W].

    Returns:
        bool [rows, columns]. Cell i covers pixels from floor(i H / rows) up to ceil((i + 1) H / rows), so cells
        overlap where they cut through pixels.
    """
    hidden = torch.from_numpy(mask.astype(np.float32))[None]
    return F.adaptive_max_pool2d(hidden, (rows, columns))[0].numpy() > 0


def blend_weights(mask: np.ndarray, reach: tuple[int, int]) -> np.ndarray:
    """How much the fill counts at each pixel when known pixels are pasted back.

    Args:
        mask: bool [H, W], True in the hole.
        reach: (rows, columns) over which the weight falls to nothing, both at least 1.

    Returns:
        float32 [H, W]: 1 in the hole, then falling linearly along rows and columns (distances along both add up);
        exactly 0 at `reach` and beyond.
    """
    # The tallest of the cones that stand on the hidden pixels, separably and by running maxima. In integers, so that
    # the weight is exactly 0 where it should be.
    height = reach[0] * reach[1]
    weights = mask.astype(np.int64) * height
    for axis, slope in ((0, reach[1]), (1, reach[0])):
        ramp = slope * np.arange(mask.shape[axis])
        ramp = ramp[:, None] if axis == 0 else ramp[None]
        falling = np.maximum.accumulate(weights + ramp, axis) - ramp
        rising = np.flip(np.maximum.accumulate(np.flip(weights - ramp, axis), axis), axis) + ramp
        weights = np.maximum(falling, rising)
    return (weights.clip(min=0) / height).astype(np.float32)


def paste_known(original: Image.Image, fill: Image.Image, mask: np.ndarray, reach: tuple[int, int]) -> Image.Image:
    """`fill` in the hole, `original` from `reach` outside it, a linear blend between them (see `blend_weights`).

    Args:
        original, fill: RGB of one size (W, H).
        mask: bool [H, W].
        reach: (rows, columns).
    """
    weights = blend_weights(mask, reach)[..., None]
    known, filled = (np.asarray(image, dtype=np.float32) for image in (original, fill))
    return Image.fromarray((known + weights * (filled - known)).round().astype(np.uint8))
