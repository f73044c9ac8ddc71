"""A small classifier of pictures, trained here: which class generated ones are taken for, and what one learns of them.

The classification accuracy score (CAS) of Ravuri & Vinyals, "Classification Accuracy Score for Conditional Generative
Models", NeurIPS 2019, is the accuracy on real pictures of a classifier that was trained on generated ones, labelled by
the classes they were asked for. They train a ResNet-50 on 1.3 million; the network here is far smaller, so the score
says something only beside that of the same network trained on as many real pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.data.pixels import to_signed

STEPS, BATCH, RATE = 600, 32, 3e-3
"""Batches, pictures in each, the highest learning rate: half a minute on a core, however many there are."""
WIDTHS = (16, 32, 64)
"""Channels at 1/2, 1/4 and 1/8 of the side: 80,000 parameters."""
SIZE = 64
"""Larger pictures are brought to this side."""
SHIFT = 8
"""Pictures are shifted by up to 1 / SHIFT of the side while training, and half of them mirrored."""


class Block(nn.Module):
    """Two convolutions, and the input added to what comes of them: [B, inputs, h, w] -> [B, outputs, h/s, w/s]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


class Classifier(nn.Module):
    """A ResNet (He et al., CVPR 2016) of three blocks: pictures in [-1, 1], [B, 3, S, S], to logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            Block(first, first, 1),
            Block(first, second, 2),
            Block(second, third, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(third, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def train_classifier(
    pixels: Tensor,
    labels: Sequence[int],
    classes: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    steps: int = STEPS,
    progress: Callable[[int], object] | None = None,
) -> Classifier:
    """A classifier that has learned these pictures, ready for `name_classes`. The same seed gives the same.

    Args:
        pixels: uint8 [n, 3, S, S], n >= 2.
        labels: the class of each, in [0, classes).
        seed: of the weights, the order and the augmentation.
        steps: batches it is shown.
        progress: called with the number of batches since the last call.

    Raises:
        ValueError: fewer than two pictures, labels of another number or range, no steps.
    """
    _check(pixels, labels, classes)
    if len(pixels) < 2 or steps < 1:
        raise ValueError(f"a classifier learns from at least 2 pictures in 1 step, got {len(pixels)} in {steps}")
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.default_generator.manual_seed(seed)
        network = Classifier(classes).to(device).to(memory_format=torch.channels_last)
    targets = torch.tensor(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < BATCH:  # every picture comes once before one comes again
            order = torch.cat([order, torch.randperm(len(pixels), generator=generator)])
        chosen, order = order[:BATCH], order[BATCH:]
        images = _augment(_prepare(pixels[chosen]), generator).to(device)
        loss = F.cross_entropy(network(images), targets[chosen].to(device), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(1)
    return network.eval()


@torch.inference_mode()
def name_classes(network: Classifier, pixels: Tensor) -> Tensor:
    """The likeliest class of each picture, uint8 [n, 3, S, S] -> int64 [n] on the CPU."""
    device = next(network.parameters()).device
    return torch.cat([network(_prepare(some).to(device)).argmax(1).cpu() for some in pixels.split(256)])


def share_named(network: Classifier, pixels: Tensor, labels: Sequence[int]) -> float:
    """The share of pictures, uint8 [n, 3, S, S], that the classifier gives these classes."""
    return float((name_classes(network, pixels) == torch.tensor(labels)).double().mean())


class AccuracyScore(NamedTuple):
    """What `classification_accuracy_score` returns; all are shares of pictures."""

    generated: float
    """The score: real pictures of the test that are named right by what learned from the generated ones."""
    real: float
    """The same of what learned from real ones: what there was to learn."""
    named: float
    """Generated pictures that are taken for the class they were asked for, by what learned from real ones."""

    @property
    def ratio(self) -> float:
        """The score over that of real pictures; 0 where these teach nothing."""
        return self.generated / self.real if self.real else 0.0


LabelledPictures = tuple[Tensor, Sequence[int]]
"""Pictures uint8 [n, 3, S, S], and the class of each."""


def classification_accuracy_score(
    generated: LabelledPictures,
    real: LabelledPictures,
    test: LabelledPictures,
    classes: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    steps: int = STEPS,
    progress: Callable[[int], object] | None = None,
) -> AccuracyScore:
    """Train two classifiers, of generated and of as many real pictures, and test them on other real ones.

    The arguments are those of `train_classifier`, which runs twice; so are the errors.
    """
    _check(*test, classes)
    learned, taught = (
        train_classifier(*pictures, classes, seed, device, steps, progress) for pictures in (generated, real)
    )
    return AccuracyScore(share_named(learned, *test), share_named(taught, *test), share_named(taught, *generated))


def _check(pixels: Tensor, labels: Sequence[int], classes: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
        raise ValueError(f"pictures must be uint8 [n, 3, S, S], got {pixels.dtype} {list(pixels.shape)}")
    if len(labels) != len(pixels):
        raise ValueError(f"{len(labels)} labels for {len(pixels)} pictures")
    if not all(0 <= label < classes for label in labels):
        raise ValueError(f"labels must be in [0, {classes}), the classes; got {min(labels)} to {max(labels)}")


def _prepare(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 in [-1, 1], at most SIZE wide."""
    images = to_signed(pixels)
    if images.shape[2] > SIZE:
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each shifted, its edge repeated, and mirrored or not: float [B, 3, S, S] likewise."""
    side, most = images.shape[2], images.shape[2] // SHIFT
    padded = F.pad(images, (most,) * 4, mode="replicate")
    corners = torch.randint(2 * most + 1, (len(images), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(images), generator=generator) < 0.5)[:, None, None, None]
    shifted = torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, corners, strict=True)])
    return torch.where(mirrored, shifted.flip(3), shifted).contiguous(memory_format=torch.channels_last)
