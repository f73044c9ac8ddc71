"""The table of presets, its JSON form, and configurations that can't be."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from maskgit.config import (
    PRESETS,
    ConfigError,
    HaltonConfig,
    ModelConfig,
    Stage,
    TokenizerConfig,
    TransformerConfig,
    config_to_dict,
    preset,
    tokenizer_from_dict,
    transformer_from_dict,
)
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit.tokenizer.layers import AttentionBlock


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(name: str) -> tuple[VQGAN, Transformer]:
    with torch.device("meta"):
        return VQGAN(PRESETS[name].tokenizer), Transformer(PRESETS[name].transformer)


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    for part, read in (
        (PRESETS[name].tokenizer, tokenizer_from_dict),
        (PRESETS[name].transformer, transformer_from_dict),
    ):
        again = read(json.loads(json.dumps(config_to_dict(part))))
        assert again == part
        assert hash(again) == hash(part)


@pytest.mark.parametrize(
    "name, pixels, grid",
    [("embedded", 64, 16), ("lab", 64, 16), ("maskgit-256", 256, 16), ("maskgit-512", 512, 32)],
)
def test_shapes(name: str, pixels: int, grid: int) -> None:
    config = PRESETS[name]
    tokenizer, transformer = on_meta(name)
    latents = tokenizer.latents(torch.empty(1, 3, pixels, pixels, device="meta"))
    assert (config.tokenizer.image_size, config.tokenizer.grid) == (pixels, grid)
    assert latents.shape == (1, config.tokenizer.codebook_dim, grid, grid)
    assert tokenizer.decode_latents(latents).shape == (1, 3, pixels, pixels)
    assert tokenizer.codebook.weight.shape == (1024, config.tokenizer.codebook_dim)
    assert transformer.bias.shape == (grid**2, 1024)
    assert config.transformer.mask_token_id == 1024


def test_lab_stages() -> None:
    """What the lab's description says: widths, resampling at its stages 2 and 4, attention at 16x16 only."""
    config = PRESETS["lab"].tokenizer
    assert [config.stem_channels, *(s.channels for s in config.encoder)] == [128, 128, 128, 256, 256, 512]
    assert [s.channels for s in reversed(config.decoder)] == [128, 128, 256, 256, 512]
    assert [i for i, s in enumerate(config.encoder) if s.resample] == [2, 4]
    assert config.codebook_dim == 256
    tokenizer, _ = on_meta("lab")
    sizes: list[torch.Size] = []
    attentions = [module for module in tokenizer.modules() if isinstance(module, AttentionBlock)]
    for module in attentions:
        module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    tokenizer.decode_latents(tokenizer.latents(torch.empty(1, 3, 64, 64, device="meta")))
    assert sizes == [(16, 16)] * len(attentions)
    transformer = PRESETS["lab"].transformer
    assert (transformer.depth, transformer.dim, transformer.heads, transformer.mlp_dim) == (15, 768, 16, 1536)
    assert (transformer.norm, transformer.tied) == ("post", True)


def test_published_sizes() -> None:
    """Besnier and Chen (2023) give 72.142 M parameters for the VQGAN and 174.161 M for the transformer."""
    tokenizer, _ = on_meta("maskgit-256")
    assert round(count(tokenizer) / 1e6, 3) == 72.142
    with torch.device("meta"):
        transformer = Transformer(dataclasses.replace(PRESETS["maskgit-256"].transformer, input_mlp=True))
    # Theirs also has a bias for the class token's position, and for the mask token and the labels everywhere.
    unused = 257 * 2026 - 256 * 1024
    assert round((count(transformer) + unused) / 1e6, 3) == 174.161


def test_embedded_is_small() -> None:
    """Both parts in float16 have to fit in 30 MB."""
    assert sum(count(part) for part in on_meta("embedded")) * 2 < 30e6


def test_preset_by_name() -> None:
    assert preset("lab") is PRESETS["lab"]
    with pytest.raises(ConfigError, match="no preset 'huge'.*embedded, lab"):
        preset("huge")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": ()}, "at least one encoder"),
        ({"encoder": (Stage(8),)}, "halves the resolution 0 times but the decoder doubles it 2"),
        ({"image_size": 18}, "image_size 18 is not a multiple of the patch size 4"),
        ({"image_size": 0}, "image_size 0"),
        ({"groups": 5}, "do not divide into 5 GroupNorm groups"),
        ({"groups": 0}, "groups 0"),
        ({"stem_channels": 6}, "6 channels do not divide"),
        ({"codebook_size": 0}, "codebook_size 0"),
        ({"codebook_dim": -1}, "codebook_dim -1"),
        ({"stem_channels": 16}, "has no blocks"),
        ({"encoder_norm": "batch"}, "encoder_norm 'batch' is neither 'group' nor 'position'"),
        ({"downsample": "max"}, "downsample 'max' is neither 'convolution' nor 'mean'"),
    ],
)
def test_impossible_tokenizers(tiny_tokenizer_config: TokenizerConfig, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny_tokenizer_config, **changes)


@pytest.mark.parametrize("changes", [{"channels": 0}, {"channels": 8, "blocks": -1}])
def test_impossible_stages(changes: dict) -> None:
    with pytest.raises(ConfigError, match="is less than"):
        Stage(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 3}, "dim 16 does not divide into 3 heads"),
        ({"heads": 0}, "heads 0"),
        ({"num_tokens": 15}, "num_tokens 15 is not a square"),
        ({"num_tokens": -16}, "num_tokens -16"),
        ({"depth": 0}, "depth 0"),
        ({"dropout": 1.0}, "dropout 1.0 is not in"),
        ({"attention_dropout": -0.1}, "attention_dropout -0.1"),
        ({"norm": "middle"}, "norm 'middle'"),
        ({"num_classes": -1}, "num_classes -1"),
        ({"gelu": "erf"}, "gelu 'erf' is neither 'exact' nor 'tanh'"),
    ],
)
def test_impossible_transformers(tiny_transformer_config: TransformerConfig, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny_transformer_config, **changes)


def test_halton_config() -> None:
    """It tells itself from a TransformerConfig in its JSON form, and has the same limits."""
    config = HaltonConfig(num_tokens=64, registers=3)
    assert (config.mask_token_id, config.head_dim) == (16384, 64)
    assert transformer_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    with pytest.raises(ConfigError, match="dim 1024 does not divide into 3 heads"):
        dataclasses.replace(config, heads=3)
    with pytest.raises(ConfigError, match="registers -1"):
        dataclasses.replace(config, registers=-1)
    with pytest.raises(ConfigError, match="kind"):
        transformer_from_dict({"kind": "other"})


@pytest.mark.parametrize("field", ["codebook_size", "num_tokens"])
def test_parts_must_fit(
    tiny_tokenizer_config: TokenizerConfig, tiny_transformer_config: TransformerConfig, field: str
) -> None:
    ModelConfig(tiny_tokenizer_config, tiny_transformer_config)
    with pytest.raises(ConfigError, match=f"{field} is 16 in the tokenizer and 64 in the transformer"):
        ModelConfig(tiny_tokenizer_config, dataclasses.replace(tiny_transformer_config, **{field: 64}))


def test_damaged_json(tiny_tokenizer_config: TokenizerConfig, tiny_transformer_config: TransformerConfig) -> None:
    tokenizer, transformer = config_to_dict(tiny_tokenizer_config), config_to_dict(tiny_transformer_config)
    for damaged in (
        {**tokenizer, "colour": 1},
        {name: value for name, value in tokenizer.items() if name != "encoder"},
        {**tokenizer, "encoder": [{"width": 3}]},
        {**tokenizer, "encoder": 3},
        {**tokenizer, "image_size": "16"},
        None,
    ):
        with pytest.raises(ConfigError):
            tokenizer_from_dict(damaged)  # type: ignore[arg-type]
    for damaged in ({**transformer, "colour": 1}, {**transformer, "dim": "16"}, {**transformer, "heads": None}):
        with pytest.raises(ConfigError):
            transformer_from_dict(damaged)
