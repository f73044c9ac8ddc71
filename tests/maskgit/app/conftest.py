"""What the tests of this room share. Those of the page itself are skipped without gradio, those in a browser without
Playwright or Debian's Chromium."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that tests share


def tiny_model(classes: tuple[str, ...] = ()) -> MaskGIT:
    """Random weights, 16x16 pixels, 8x8 tokens."""
    torch.manual_seed(0)
    stages = (Stage(8, 1, resample=True), Stage(8, 1))
    tokenizer = VQGAN(TokenizerConfig(16, 32, 4, 8, 8, stages, stages, groups=4))
    torch.nn.init.normal_(tokenizer.codebook.weight)
    transformer = Transformer(TransformerConfig(32, 64, dim=32, depth=1, heads=2, mlp_dim=64, num_classes=len(classes)))
    for weight in transformer.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return MaskGIT(tokenizer, transformer, classes, device="cpu")


@pytest.fixture(scope="session")
def model() -> MaskGIT:
    return tiny_model(("cat", "dog"))


@pytest.fixture(scope="session")
def classless() -> MaskGIT:
    return tiny_model()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file of 32x24 pixels, all different."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Its middle, as a file: x 10 to 20, y 8 to 16."""
    white = Image.new("L", (32, 24))
    white.paste(255, (10, 8, 20, 16))
    white.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"
