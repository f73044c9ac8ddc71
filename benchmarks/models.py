"""Models to measure: the embedded one with its weights, the other presets with random ones, which run as fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit import MaskGIT
from maskgit.config import ModelConfig, Stage, TokenizerConfig, TransformerConfig, preset
from maskgit.decoding import DecodeConfig
from maskgit.network.transformer import Transformer
from maskgit.pipeline import Precision
from maskgit.tokenizer import VQGAN

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
"""The precisions that are compared, and what their products are computed in."""

TINY = ModelConfig(
    TokenizerConfig(
        image_size=16,
        codebook_size=32,
        codebook_dim=4,
        latent_channels=8,
        stem_channels=8,
        encoder=(Stage(8, 1, resample=True), Stage(16, 1, attention=True, resample=True)),
        decoder=(Stage(16, 1, attention=True, resample=True), Stage(8, 1, resample=True)),
        groups=4,
    ),
    TransformerConfig(codebook_size=32, num_tokens=16, dim=32, depth=2, heads=2, mlp_dim=64),
)
"""What a quick run has in place of every preset."""


def size(name: str, quick: bool) -> ModelConfig:
    """A preset, or for a quick run something tiny with the preset's norm, dropout and classes."""
    config = preset(name)
    if not quick:
        return config
    theirs = config.transformer
    transformer = dataclasses.replace(
        TINY.transformer,
        norm=theirs.norm,
        norm_eps=theirs.norm_eps,
        attention_dropout=theirs.attention_dropout,
        num_classes=min(10, theirs.num_classes),
    )
    return ModelConfig(TINY.tokenizer, transformer)


def make_transformer(name: str, device: torch.device, quick: bool) -> Transformer:
    """A preset's transformer with random weights, the same in every run, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer(size(name, quick).transformer).to(device).eval()


def make_models(name: str, device: torch.device, quick: bool) -> dict[Precision, MaskGIT]:
    """A preset's model at each precision: trained weights for `embedded`, random ones, always the same, for the rest.

    The models share their weights, so they must not be trained.
    """
    if name == "embedded" and not quick:
        first = MaskGIT.from_pretrained(device=device, precision="float32")
        tokenizer, transformer = first.tokenizer, transformer_of(first)
    else:
        transformer = make_transformer(name, torch.device("cpu"), quick)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            tokenizer = VQGAN(size(name, quick).tokenizer)
    return {precision: MaskGIT(tokenizer, transformer, device=device, precision=precision) for precision in DTYPES}


def pictures_with_holes(count: int, side: int) -> tuple[list[Image.Image], list[np.ndarray]]:
    """Random smooth pictures [side, side], each with a hole of half its width and height in the middle."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC) for pixels in coarse]
    hole = np.zeros((side, side), dtype=bool)
    hole[side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    return images, [hole] * count


def transformer_of(model: MaskGIT) -> Transformer:
    """The model's transformer: of the presets, all have this class."""
    assert isinstance(model.transformer, Transformer)
    return model.transformer


def decode_tokens(model: MaskGIT, config: DecodeConfig, batch: int, labels: Tensor | None, *, first: int = 0) -> Tensor:
    """Tokens int64 [B, N] of images made from nothing: the loop that `MaskGIT.generate` runs, without the tokenizer.

    The images' seeds are `first` and the numbers after it.
    """
    masked = torch.ones(batch, model.transformer.config.num_tokens, dtype=torch.bool, device=model.device)
    tokens = torch.zeros_like(masked, dtype=torch.int64)
    states: Iterator[tuple[Tensor, Tensor]] = model._decode(
        tokens, masked, config, list(range(first, first + batch)), labels, batch
    )
    for state in states:
        tokens, _ = state
    return tokens


def predictor(model: MaskGIT) -> Callable[[Tensor], Tensor]:
    """Tokens [B, N] -> logits [B, N, V] at the model's precision, as its decoding loop computes them."""
    network = model._fastest(model.transformer)

    @torch.inference_mode()
    def predict(tokens: Tensor) -> Tensor:
        # As in the loop, without autocast's cache of converted weights: a CUDA graph can't have it.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.autocast, cache_enabled=False):
            return network(tokens)

    return predict
