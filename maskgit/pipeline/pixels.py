"""Pictures and their pixels on the way to the model and back: resizing, hiding, pasting. And what a run gives back."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit.canvas.holes import paste_known, smooth_fill
from maskgit.data.carried import fill_in
from maskgit.data.pixels import to_bytes, to_signed


class Step(NamedTuple):
    """The state after one decoding step."""

    image: Image.Image
    """What decoding all tokens sampled so far gives, those to be drawn again included; at the model's size."""
    masked: np.ndarray
    """bool [h, w]: the tokens still to be predicted."""
    tokens: np.ndarray
    """int64 [h, w]: those of the image, and what was sampled last for the others, kept or not."""


@dataclasses.dataclass
class InpaintResult:
    """One inpainted image."""

    image: Image.Image
    """At the size of the original, its known pixels as they came in: L, LA, RGB, RGBA or I;16, with the ICC profile and
    the EXIF data in `info` (see `maskgit.data.carried`)."""
    original: Image.Image
    """The image as it came in, turned upright; RGB, what is transparent white."""
    mask: np.ndarray
    """bool [H, W]: the hole, turned as the original is."""
    masked: np.ndarray
    """bool [h, w]: the tokens that were predicted, those with any hidden pixel in their patch."""
    steps: list[Step] = dataclasses.field(default_factory=list)
    """One for each decoding step, if they were asked for (none where nothing had to be done)."""


def visible(original: Image.Image, mask: np.ndarray, size: int) -> Image.Image:
    """What the model may see of an image: its hole, bool [H, W], filled smoothly; RGB, size x size."""
    known = torch.from_numpy(~mask)[None]
    channels = []
    for band in original.getbands():  # one at a time, so that large pictures need less memory
        (filled,) = to_pictures(smooth_fill(to_tensor(original.getchannel(band)), known)[None])
        channels.append(filled.resize((size, size), Image.Resampling.BICUBIC))
    return Image.merge("RGB", channels)


def finished(result: InpaintResult, decoded: Image.Image, paste: bool) -> Image.Image:
    """The image of a result, from the one that has yet to be filled and what the model decoded, RGB of its size."""
    fill = decoded.resize(result.original.size, Image.Resampling.BICUBIC)
    if not paste:
        return fill_in(result.image, fill, np.ones_like(result.mask))
    return fill_in(result.image, paste_known(result.original, fill, result.mask), result.mask)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB or L -> float32 [3 or 1, H, W] in [-1, 1]."""
    return to_signed(torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1))


def to_pictures(images: Tensor) -> list[Image.Image]:
    """float [B, 3 or 1, H, W], about [-1, 1] -> RGB or L. Bytes leave the device: a quarter of what floats would be."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).contiguous().squeeze(-1).cpu().numpy()
    return [Image.fromarray(one) for one in pixels]
