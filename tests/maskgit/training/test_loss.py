"""Loss, accuracy and gradients of a step are those of `F.cross_entropy` on logits, in what recipes combine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.config import HaltonConfig, TransformerConfig
from maskgit.data.tokens import TokenSample
from maskgit.network.halton import HaltonTransformer
from maskgit.tokenizer import VQGAN
from maskgit.training.engine import Engine, Figures
from maskgit.training.settings import TransformerTraining
from maskgit.training.tokens import TrainingTokens
from maskgit.training.transformer import TransformerTask

IMAGES, N, CODES, CLASSES = 4, 16, 16, 5
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class OnLogits(TransformerTask):
    """The loss as it is usually written: every position's logits, and what isn't counted weighs nothing."""

    def _loss(
        self, held: Tensor, labels: Tensor | None, tokens: Tensor, counted: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = self.wrapped(held, labels).float()
        smoothing = self.config.label_smoothing
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none", label_smoothing=smoothing)
        sums = (losses * counted).sum(), ((logits.argmax(-1) == tokens) & masked).sum()
        self.parts = [*getattr(self, "parts", []), [float(x.detach()) for x in (*sums, counted.sum(), masked.sum())]]
        return sums

    def training_step(self, batch: TokenSample, step: int) -> Figures:
        figures = super().training_step(batch, step)
        loss, hits, counted, masked = map(sum, zip(*self.parts, strict=True))
        return figures | {"loss": torch.tensor(loss / counted), "accuracy": torch.tensor(hits / masked)}


def a_step(
    kind: type[TransformerTask], tokenizer: VQGAN, architecture: TransformerConfig | HaltonConfig, **changes: Any
) -> Any:
    """Figures and gradients of a step on random tokens of random classes."""
    config = TransformerTraining(batch_size=IMAGES, clip=0.0, class_dropout=0.5, seed=3, **changes)
    engine = Engine(config)
    unused: Any = np.zeros(IMAGES, dtype=np.int64)
    task = kind(config, architecture, tokenizer.to(engine.device), engine, TrainingTokens(unused, unused, []))
    torch.manual_seed(0)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that biases and all classes matter
    task.prepare()
    tokens, labels = torch.randint(CODES, (IMAGES, N)), torch.randint(CLASSES, (IMAGES,))
    engine.begin(0)
    figures = task.training_step(TokenSample(tokens, tokens, torch.rand(IMAGES, N) < 0.8, labels), 0)
    return {name: float(x) for name, x in figures.items()}, [p.grad for p in task.model.parameters()]


@pytest.mark.parametrize(
    "device, precision",
    [
        ("cpu", "float32"),
        ("cpu", "bf16"),
        *(pytest.param("cuda", precision, marks=on_gpu) for precision in ("float32", "bf16", "fp16")),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_smoothing": 0.1},
        {"loss_on": "all"},
        {"loss_on": "all", "label_smoothing": 0.2, "accumulate": 2},
        {"accumulate": 4, "mask_count": "bernoulli"},
        {"activation_checkpointing": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_as_on_logits(
    device: str,
    precision: str,
    tied: bool,
    changes: dict[str, Any],
    classes: int,
    tiny_tokenizer: VQGAN,
    tiny_transformer_config: TransformerConfig,
) -> None:
    without = {"dropout": 0.0, "attention_dropout": 0.0}
    architecture = dataclasses.replace(tiny_transformer_config, tied=tied, num_classes=classes, **without)
    options = changes | {"device": device, "precision": precision}
    figures, gradients = a_step(TransformerTask, tiny_tokenizer, architecture, **options)
    expected, their_gradients = a_step(OnLogits, tiny_tokenizer, architecture, **options)
    rounding = 1e-5 if precision == "float32" else 4e-2
    assert figures["loss"] == pytest.approx(expected["loss"], rel=rounding)
    assert figures["accuracy"] == pytest.approx(expected["accuracy"]) or precision != "float32"
    assert 0 < expected["accuracy"] < 1
    for ours, theirs in zip(gradients, their_gradients, strict=True):
        assert (ours - theirs).norm() <= rounding * theirs.norm()


@pytest.mark.parametrize(
    "changes",
    [{"label_smoothing": 0.1, "accumulate": 2}, {"loss_on": "all"}, {"activation_checkpointing": True}],
    ids=str,
)
@pytest.mark.parametrize("registers", [0, 2])
def test_a_step_of_the_halton_transformer(changes: dict[str, Any], registers: int, tiny_tokenizer: VQGAN) -> None:
    sizes: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
    architecture = HaltonConfig(CODES, N, num_classes=CLASSES, registers=registers, **sizes)
    options = changes | {"device": "cpu", "precision": "float32"}
    figures, gradients = a_step(TransformerTask, tiny_tokenizer, architecture, **options)
    expected, their_gradients = a_step(OnLogits, tiny_tokenizer, architecture, **options)
    assert figures["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert figures["accuracy"] == expected["accuracy"]
    torch.testing.assert_close(gradients, their_gradients, rtol=1e-4, atol=1e-5)


def test_of_the_halton_transformer() -> None:
    model = HaltonTransformer(HaltonConfig(codebook_size=CODES, num_tokens=N, num_classes=CLASSES, dim=16, depth=1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, labels = torch.randint(CODES + 1, (IMAGES, N)), torch.randint(CLASSES, (IMAGES,))
    targets, counted = torch.randint(CODES, (IMAGES, N)), torch.rand(IMAGES, N) < 0.5
    found = []
    for scored in (False, True):
        torch.manual_seed(0)  # of the dropout
        if scored:
            loss, hits = model(tokens, labels, targets=targets, counted=counted, label_smoothing=0.1)
        else:
            logits = model(tokens, labels)[counted]
            loss = F.cross_entropy(logits, targets[counted], reduction="sum", label_smoothing=0.1)
            hits = (logits.argmax(-1) == targets[counted]).sum()
        found.append([loss, hits, *torch.autograd.grad(loss, list(model.parameters()))])
    assert found[0][1] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
