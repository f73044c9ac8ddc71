"""Pictures and their pixels on the way to the model and back: resizing, hiding, pasting. And what a run gives back."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit.canvas.holes import smooth_fill
from maskgit.canvas.windows import Window, whole
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
    """bool [h, w]: the tokens that were hidden in the first window, those with any hidden pixel in their patch."""
    steps: list[Step] = dataclasses.field(default_factory=list)
    """One for each decoding step in the first window, if they were asked for."""
    windows: list[Window] = dataclasses.field(default_factory=list)
    """Where the model looked, in this order; one window of all of the original where it isn't cropped. Empty where
    nothing had to be done."""
    variants: list[Image.Image] = dataclasses.field(default_factory=list)
    """As many fills as were asked for, `image` the first."""

    def first(self) -> InpaintResult:
        """The first window's share of it all, as a result of its own: what `masked` and `steps` are about."""
        if not self.windows or self.windows[0].box == whole(self.mask.shape).box:
            return self
        box = self.windows[0].box
        cropped = self.image.crop(box), self.original.crop(box), self.mask[box.area]
        return dataclasses.replace(self, image=cropped[0], original=cropped[1], mask=cropped[2], windows=[])


def visible(original: Image.Image, mask: np.ndarray, size: int) -> Image.Image:
    """What the model may see of an image: its hole, bool [H, W], filled smoothly; RGB, size x size."""
    known = torch.from_numpy(~mask)[None]
    channels = []
    for band in original.getbands():  # one at a time, so that large pictures need less memory
        (filled,) = to_pictures(smooth_fill(to_tensor(original.getchannel(band)), known)[None])
        channels.append(filled.resize((size, size), Image.Resampling.BICUBIC))
    return Image.merge("RGB", channels)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB or L -> float32 [3 or 1, H, W] in [-1, 1]."""
    return to_signed(torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1))


def to_pictures(images: Tensor) -> list[Image.Image]:
    """float [B, 3 or 1, H, W], about [-1, 1] -> RGB or L. Bytes leave the device: a quarter of what floats would be."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).contiguous().squeeze(-1).cpu().numpy()
    return [Image.fromarray(one) for one in pixels]
