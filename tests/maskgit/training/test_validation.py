"""The Fréchet distance of fills during training: what it compares, when it is measured, and that it is optional."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskgit.data import AugmentConfig, ImageFolder
from maskgit.data.tokens import TokenShard, tokenize
from maskgit.metrics import frechet_distance
from maskgit.network.folder import load_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.training import validation
from maskgit.training.validation import Validation


class Pixels(nn.Module):
    """Stands for the network of the features: 12 means of pixels, and the same features for the same picture."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.seen: list[Tensor] = []

    def extract_features(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)[:, :, None, None]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Pixels:
    network = Pixels()
    monkeypatch.setattr(validation, "efficientnet_lite0", lambda: network)
    return network


@pytest.fixture
def shards(unbroken: Any, pictures: Path, tmp_path: Path) -> tuple[VQGAN, TokenShard, TokenShard]:
    tokenizer = load_tokenizer(unbroken["tokenizer"] / "model")
    options: dict[str, Any] = {"views": 1, "augment": AugmentConfig(), "seed": 0, "device": torch.device("cpu")}
    images = ImageFolder(pictures, 16)
    plain = tokenize(tokenizer, images, tmp_path / "plain", **options)
    return tokenizer, plain, tokenize(tokenizer, images, tmp_path / "holes", hole_share=1.0, **options)


class Model(nn.Module):
    """Knows a set of pictures by heart, or always says the same token."""

    def __init__(self, tokens: Tensor | None) -> None:
        super().__init__()
        self.tokens, self.held = tokens, []

    def forward(self, held: Tensor, labels: Tensor | None) -> Tensor:
        self.held.append(held)
        if self.tokens is None:
            return nn.functional.one_hot(torch.zeros_like(held), 16) * 100.0
        known = held != 16
        matches = ((held[:, None] == self.tokens) | ~known[:, None]).all(2).int().argmax(1)
        return nn.functional.one_hot(self.tokens[matches], 16) * 100.0


def validation_of(shard: TokenShard, tokenizer: VQGAN, images: int) -> Validation:
    """Of a model without classes over the tiny tokenizer's 16 codes."""
    config: Any = SimpleNamespace(eval_every=1, eval_images=images)
    architecture: Any = SimpleNamespace(mask_token_id=16, num_classes=0)
    engine: Any = SimpleNamespace(device=torch.device("cpu"), is_main=True)
    return Validation(config, architecture, shard, tokenizer, engine)


def test_nothing_between_a_picture_and_itself(shards: Any, network: Pixels) -> None:
    tokenizer, plain, _ = shards
    tokens = torch.from_numpy(plain.tokens[0].astype(np.int64))
    measure = validation_of(plain, tokenizer, 500)
    # A model that fills in what was there: zero, if each picture can be told by what is known of it.
    perfect = Model(tokens)
    filled = measure.distance(perfect)
    worse = measure.distance(Model(None))
    assert filled < 0.05 * worse and worse > 0
    assert worse == measure.distance(Model(None))  # the same at every call
    first = perfect.held[0]
    inside = measure.judged.candidates[: len(first)]
    assert torch.equal(first == 16, inside) and inside.any(1).all()
    assert torch.equal(first[~inside], tokens[: len(first)][~inside])
    expected = frechet_distance(
        torch.cat([nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) for x in network.seen[-1:]]), measure.real
    )
    assert worse == pytest.approx(expected, rel=1e-4)


def test_holes_that_the_encoder_did_not_see(shards: Any, network: Pixels) -> None:
    tokenizer, _, holes = shards
    model = Model(None)
    measure = validation_of(holes, tokenizer, 7)
    measure.distance(model)
    assert len(measure.judged.tokens) == 7
    chosen = np.linspace(0, len(holes) - 1, 7).astype(int)
    for row, index in enumerate(chosen):
        sample = holes.samples(np.array([index]), 0, 0)
        assert torch.equal(model.held[0][row], sample.visible[0].masked_fill(sample.candidates[0], 16))


def test_measured_when_it_is_asked_for(run: Any, unbroken: Any, network: Pixels, tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "distance", lambda *_: calls.append(1) or 12.5)
        figures = run("transformer", tmp_path / "on", steps=8, validate_every=2, eval_every=4)
    assert len(calls) == 2 and figures[validation.DISTANCE] == 12.5 and "not FID" in validation.DISTANCE
    figures = run("transformer", tmp_path / "real", steps=1, validate_every=1, eval_every=1, eval_images=9)
    assert np.isfinite(figures[validation.DISTANCE])
    figures = run("transformer", tmp_path / "off", steps=1)
    assert validation.DISTANCE not in figures
    # It changes nothing else.
    ours, theirs = (torch.load(tmp_path / name / "checkpoints" / "step-000000001" / "state.pt", weights_only=True)
                    for name in ("real", "off"))  # fmt: skip
    torch.testing.assert_close(ours["optimizers"], theirs["optimizers"], rtol=0, atol=0)


def test_missing_packages(run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"maskgit-inpaint\[metrics\]"):
        run("transformer", tmp_path, steps=1, validate_every=1, eval_every=1)
