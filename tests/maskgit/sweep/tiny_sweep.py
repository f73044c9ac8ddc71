"""What the tests of sweeps share: a tiny random model, a network of features, files of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.decoding import DecodeConfig
from maskgit.metrics.features import FeatureNetwork
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.sweep.settings import CUSTOM
from maskgit.tokenizer import VQGAN

SIZE, CODES, TOKENS = 16, 32, 16
OWN = DecodeConfig(steps=3, softmax_temperature=0.7)


def save_model(folder: Path, seed: int, class_names: list[str]) -> Path:
    torch.manual_seed(seed)
    stages = (Stage(8, 1, resample=True), Stage(8, 1, resample=True), Stage(8, 1))
    tokenizer = VQGAN(
        TokenizerConfig(SIZE, CODES, 4, latent_channels=8, stem_channels=8, encoder=stages, decoder=stages, groups=4)
    )
    nn.init.normal_(tokenizer.codebook.weight)
    config = TransformerConfig(CODES, TOKENS, dim=32, depth=1, heads=2, mlp_dim=32, num_classes=len(class_names))
    transformer = Transformer(config)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.5)  # so that the class and the temperatures matter
    MaskGIT(tokenizer, transformer, class_names, decoding=OWN, device="cpu").save_pretrained(folder)
    return folder


class TinyFeatures(FeatureNetwork):
    """Stands for EfficientNet-Lite0."""

    name, preparation = "efficientnet-lite0", "none"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(3, 6, 4, stride=4).requires_grad_(False)

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.convolution(batch).relu().flatten(1)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, :5] - features[:, 5:10]


def arguments(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--data", str(data), "--output", str(output), "--device", "cpu", *more]


def results(output: Path, study: str = CUSTOM) -> dict[str, Any]:
    return json.loads((output / study / "results.json").read_text(encoding="utf-8"))


def cells(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "cells.jsonl").read_bytes().splitlines()]


def quality(report: dict[str, Any]) -> list[dict[str, Any]]:
    """All figures except times."""
    return [
        {name: figure for name, figure in row["figures"].items() if name != "milliseconds"}
        for row in [*report["rows"], *report["references"]]
    ]
