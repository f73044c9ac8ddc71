"""Small pictures and networks that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maskgit.metrics.features import FeatureNetwork
from maskgit.tokenizer.losses import PerceptualLoss


def images(count: int = 3, size: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def picture(size: tuple[int, int] = (20, 16), seed: int = 0) -> Image.Image:
    """Smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def save_pictures(folder: Path, names: list[str], first_seed: int = 0) -> None:
    for seed, name in enumerate(names, first_seed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=seed).save(folder / name)


def two_stages() -> PerceptualLoss:
    torch.manual_seed(3)
    return PerceptualLoss(nn.ModuleList([nn.Conv2d(3, 5, 2, stride=2), nn.Conv2d(5, 7, 2, stride=2)]))


class TinyNetwork(FeatureNetwork):
    """Stands for a real one: features are the pixels of a 3x3 picture, classes are sums of some."""

    name = "efficientnet-lite0"
    preparation = "box 3"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 5 * 27).view(5, 27), requires_grad=False)

    def prepare(self, picture: Image.Image) -> Tensor:
        small = picture.resize((3, 3), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255

    def forward(self, batch: Tensor) -> Tensor:
        return batch.flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T
