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


def paste_known(original: Image.Image, fill: Image.Image, mask: np.ndarray) -> Image.Image:
    """`original` outside the hole, and inside it `fill`, in tune with what surrounds it.

    A tokenizer's colors are a little off, which would show as a seam. So what `fill` lacks outside the hole is
    continued smoothly into it and added there: seamless cloning (Perez et al., "Poisson Image Editing", SIGGRAPH 2003)
    with `smooth_fill` in place of the membrane that solves Laplace's equation.

    Args:
        original, fill: RGB of one size (W, H).
        mask: bool [H, W].
    """
    if mask.all():
        return fill
    known, filled = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() for image in (original, fill))
    result = filled + smooth_fill(known - filled, torch.from_numpy(~mask)[None])
    pixels = result.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    # Outside the hole the sum is the original but for float32's rounding.
    return Image.fromarray(np.where(mask[..., None], pixels, np.asarray(original)))
