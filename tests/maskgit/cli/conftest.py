"""Tiny models that inpaint.py can load, and a folder for images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    stages = (Stage(8, 1, resample=True), Stage(8, 1))
    tokenizer = VQGAN(TokenizerConfig(16, 32, 4, 8, 8, stages, stages, groups=4))
    torch.nn.init.normal_(tokenizer.codebook.weight)
    transformer = Transformer(TransformerConfig(32, 64, dim=32, depth=1, heads=2, mlp_dim=64))
    for weight in transformer.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    folder = tmp_path_factory.mktemp("model")
    MaskGIT(tokenizer, transformer, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def class_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    transformer = Transformer(TransformerConfig(32, 64, dim=32, depth=1, heads=2, mlp_dim=64, num_classes=2))
    for weight in transformer.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    folder = tmp_path_factory.mktemp("class-model")
    tokenizer = MaskGIT.from_pretrained(model, device="cpu").tokenizer
    MaskGIT(tokenizer, transformer, ["cats", "dogs & co"], device="cpu").save_pretrained(folder)
    return folder
