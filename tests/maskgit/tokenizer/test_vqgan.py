"""Encoder, decoder and their round trip. (tests/maskgit/convert has the models that the stage list has to express.)"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from maskgit.config import ConfigError, Stage, TokenizerConfig
from maskgit.tokenizer import VQGAN
from maskgit.tokenizer.layers import Downsample


@torch.no_grad()
def test_round_trip_shapes(tiny_tokenizer: VQGAN) -> None:
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    tokens = tiny_tokenizer.encode(images)
    assert tokens.shape == (3, 16) and tokens.dtype == torch.int64
    assert 0 <= int(tokens.min()) and int(tokens.max()) < 16 and len(tokens.unique()) > 2
    decoded = tiny_tokenizer.decode(tokens)
    assert decoded.shape == (3, 3, 16, 16) and decoded.dtype == torch.float32
    # Any multiple of the patch will do.
    assert tiny_tokenizer.encode(torch.zeros(1, 3, 24, 24)).shape == (1, 36)
    with pytest.raises(ValueError, match="15 tokens are not a square grid"):
        tiny_tokenizer.decode(tokens[:, :15])


@torch.no_grad()
def test_tokens_are_row_major(tiny_tokenizer: VQGAN) -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    latents, codes = tiny_tokenizer.latents(images), tiny_tokenizer.codebook.weight  # [1, D, 4, 4], [V, D]
    expected = [int((codes - latents[0, :, y, x]).square().sum(1).argmin()) for y in range(4) for x in range(4)]
    assert len(set(expected)) > 2
    tokens = tiny_tokenizer.encode(images)
    assert tokens.tolist() == [expected]
    quantized = codes[tokens[0]].T.view(1, -1, 4, 4)
    torch.testing.assert_close(tiny_tokenizer.decode(tokens), tiny_tokenizer.decode_latents(quantized))


@torch.no_grad()
def test_batch_does_not_matter(tiny_tokenizer: VQGAN) -> None:
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    tokens = tiny_tokenizer.encode(images)
    for i in range(4):
        assert torch.equal(tiny_tokenizer.encode(images[i : i + 1])[0], tokens[i])


def test_stage_without_blocks_keeps_the_width(tiny_tokenizer_config: TokenizerConfig) -> None:
    with pytest.raises(ConfigError, match="encoder stage .* has no blocks"):
        dataclasses.replace(tiny_tokenizer_config, encoder=(Stage(16, 0, resample=True), Stage(16, 1, resample=True)))


@torch.no_grad()
def test_downsampling_by_the_mean(tiny_tokenizer_config: TokenizerConfig) -> None:
    """Without weights: an encoder of nothing else than its first convolution sees the mean of four pixels."""
    config = dataclasses.replace(tiny_tokenizer_config, downsample="mean")
    encoder = VQGAN(config).encoder
    layers = [layer for layer in encoder if isinstance(layer, torch.nn.AvgPool2d)]
    assert len(layers) == 2 and not any(isinstance(layer, Downsample) for layer in encoder)
    x = torch.randn(2, 8, 6, 4)
    expected = (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(layers[0](x), expected)
    # The layers behind keep their numbers, so weights of one kind can start a model of the other.
    ours, others = VQGAN(config).state_dict(), VQGAN(tiny_tokenizer_config).state_dict()
    assert ours.keys() < others.keys()
    assert {name.split(".")[2] for name in others.keys() - ours.keys()} == {"conv"}


@torch.no_grad()
def test_unit_pixels(tiny_tokenizer: VQGAN) -> None:
    """The layers see (x + 1) / 2, and what they make is stretched back."""
    images, tokens = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randint(16, (2, 16))
    latents, pixels = tiny_tokenizer.latents((images + 1) / 2), tiny_tokenizer.decode(tokens)
    tiny_tokenizer.config = dataclasses.replace(tiny_tokenizer.config, unit_pixels=True)
    assert torch.equal(tiny_tokenizer.latents(images), latents)
    assert torch.equal(tiny_tokenizer.decode(tokens), pixels * 2 - 1)
