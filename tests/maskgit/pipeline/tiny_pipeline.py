"""A pipeline with random weights, 16x16 pixels and 8x8 tokens, and what to give it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

TOKENIZER = TokenizerConfig(
    image_size=16,
    codebook_size=32,
    codebook_dim=4,
    latent_channels=8,
    stem_channels=8,
    encoder=(Stage(8, 1, resample=True), Stage(8, 1)),
    decoder=(Stage(8, 1, resample=True), Stage(8, 1)),
    groups=4,
)


def tiny_model(num_classes: int = 0, **options) -> MaskGIT:
    torch.manual_seed(0)
    transformer = Transformer(
        TransformerConfig(32, 64, dim=32, depth=1, heads=2, mlp_dim=64, dropout=0.0, num_classes=num_classes)
    )
    # As initialised, what comes out hardly depends on what goes in, and no test would notice a mistake.
    for weight in transformer.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    tokenizer = VQGAN(TOKENIZER)
    torch.nn.init.normal_(tokenizer.codebook.weight)
    names = [f"class {i}" for i in range(num_classes)]
    return MaskGIT(tokenizer, transformer, names, {"note": "tiny"}, device="cpu", **options)


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box(width: int, height: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))
