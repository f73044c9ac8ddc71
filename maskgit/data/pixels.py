"""Pixels as bytes, and as the numbers in [-1, 1] that the networks see."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from maskgit.data.images import ImageDataset


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [-1, 1], in the same layout."""
    return pixels.float().div_(127.5).sub_(1)


def to_bytes(images: Tensor) -> Tensor:
    """float of any shape, about [-1, 1] -> uint8: what a file would hold."""
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def plain_views(images: ImageDataset, indices: Iterable[int]) -> Tensor:
    """The plain views of some images, uint8 [n, 3, S, S], channels last."""
    return torch.from_numpy(np.stack([images.image(int(i)) for i in indices])).permute(0, 3, 1, 2)
