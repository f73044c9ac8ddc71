"""The classifier, and the classification accuracy score: on stripes that a few steps can tell apart."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from maskgit.metrics import classifier
from maskgit.metrics.classifier import (
    AccuracyScore,
    classification_accuracy_score,
    name_classes,
    share_named,
    train_classifier,
)

STEPS = 60


def stripes(count: int, seed: int, side: int = 16, first: int = 0) -> tuple[Tensor, list[int]]:
    """Lying, standing and no stripes in turn, in random colors with noise: pictures uint8, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = [(first + i) % 3 for i in range(count)]
    rows = (torch.arange(side) // 2 % 2).float()
    patterns = torch.stack([rows[:, None].expand(side, side), rows.expand(side, side), torch.ones(side, side)])
    colors = 80 + 150 * torch.rand(count, 3, 1, 1, generator=generator)
    noise = 20 * torch.rand(count, 3, side, side, generator=generator)
    return (patterns[labels][:, None] * colors + noise).to(torch.uint8), labels


def test_what_is_learned_holds_for_other_pictures():
    counts: Counter[str] = Counter()
    network = train_classifier(*stripes(60, 0), 3, steps=STEPS, progress=lambda n: counts.update(steps=n))
    assert counts["steps"] == STEPS and not network.training
    pixels, labels = stripes(90, 1, first=1)
    assert (name_classes(network, pixels) == torch.tensor(labels)).double().mean() > 0.95
    assert share_named(network, pixels, [(label + 1) % 3 for label in labels]) < 0.05
    # One by one as together: nothing of the batch is left in it.
    assert torch.equal(
        torch.cat([name_classes(network, one[None]) for one in pixels[:9]]), name_classes(network, pixels[:9])
    )


def test_the_score_is_of_what_the_generated_pictures_teach():
    real, test = stripes(60, 0), stripes(90, 1)
    good = classification_accuracy_score(stripes(60, 2), real, test, 3, steps=STEPS)
    assert min(good) > 0.95 and good.ratio == pytest.approx(good.generated / good.real)
    # Generated pictures of the wrong class: what they teach is wrong, and what real ones teach tells so.
    pixels, labels = stripes(60, 2)
    wrong = classification_accuracy_score((pixels, [(label + 1) % 3 for label in labels]), real, test, 3, steps=STEPS)
    assert wrong.generated < 0.05 and wrong.named < 0.05 and wrong.real == good.real
    # Pictures right in themselves that lack one class teach the other two.
    kept = [i for i, label in enumerate(labels) if label != 1]
    narrow = classification_accuracy_score((pixels[kept], [labels[i] for i in kept]), real, test, 3, steps=STEPS)
    assert narrow.named > 0.95 and 0.55 < narrow.generated < 0.7
    assert AccuracyScore(0.3, 0.6, 1.0).ratio == pytest.approx(0.5) and AccuracyScore(0.0, 0.0, 0.0).ratio == 0


def test_the_same_seed_gives_the_same():
    pictures = stripes(20, 0)
    before = torch.random.get_rng_state()
    first, again, other = (train_classifier(*pictures, 3, seed=seed, steps=3).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_every_picture_is_shown_as_often(monkeypatch: pytest.MonkeyPatch):
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 16, 16)  # each its number
    seen: Counter[int] = Counter()
    augment = classifier._augment

    def watch(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.update(((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
        return augment(images, generator)

    monkeypatch.setattr(classifier, "_augment", watch)
    train_classifier(pixels, [i % 2 for i in range(40)], 2, steps=5)
    assert seen == Counter({i: 5 * classifier.BATCH // 40 for i in range(40)})


def test_augmentation_shifts_and_mirrors():
    columns, rows = torch.arange(16.0).expand(16, 16), torch.arange(16.0)[:, None].expand(16, 16)
    images = torch.stack([columns, rows, torch.zeros(16, 16)]).expand(200, 3, 16, 16)
    views = classifier._augment(images, torch.Generator().manual_seed(0))
    assert views.shape == images.shape and not views[:, 2].any()
    ways = Counter()
    for view in views:
        middle = view[:2, 4:12, 4:12]  # the edge is repeated further out
        mirrored = bool(middle[0, 0, 0] > middle[0, 0, 1])
        moved = middle.flip(2) if mirrored else middle
        x, y = (moved - images[0, :2, 4:12, 4:12]).flatten(1).unique(dim=1).T.tolist()[0]
        ways[mirrored, int(x), int(y)] += 1
    assert {abs(x) for _, x, _ in ways} == {abs(y) for _, _, y in ways} == {0, 1, 2}  # an eighth of the side
    assert 70 < sum(count for (mirrored, _, _), count in ways.items() if mirrored) < 130


def test_large_pictures_are_brought_to_a_bearable_size():
    pixels, labels = stripes(12, 0, side=100)
    network = train_classifier(pixels, labels, 3, steps=1)
    assert classifier._prepare(pixels).shape == (12, 3, 64, 64) and len(name_classes(network, pixels)) == 12


@pytest.mark.parametrize(
    "pixels, labels, classes, options, message",
    [
        (torch.zeros(4, 3, 16, 16), [0] * 4, 2, {}, r"uint8 \[n, 3, S, S\], got torch.float32"),
        (torch.zeros(4, 16, 16, dtype=torch.uint8), [0] * 4, 2, {}, r"got torch.uint8 \[4, 16, 16\]"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), [0] * 3, 2, {}, "3 labels for 4 pictures"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), [0, 1, 2, 1], 2, {}, r"in \[0, 2\), the classes; got 0 to 2"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), [0], 2, {}, "at least 2 pictures in 1 step, got 1 in"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), [0] * 4, 2, {"steps": 0}, "got 4 in 0"),
    ],
)
def test_what_is_refused(pixels: Tensor, labels: list[int], classes: int, options: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        train_classifier(pixels, labels, classes, **options)
