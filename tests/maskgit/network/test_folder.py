"""Model folders that were damaged, or made to do harm: each is refused with the file, the field and the value named."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from maskgit import MaskGIT
from maskgit.config import (
    PRESETS,
    HaltonConfig,
    TokenizerConfig,
    TransformerConfig,
    check_json,
    config_to_dict,
    tokenizer_from_dict,
    transformer_from_dict,
)
from maskgit.decoding import DECODERS, DecodeConfig
from maskgit.network.folder import Model, ModelError, load_model, load_tokenizer, save_model, save_tokenizer
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN


@pytest.fixture
def folder(tiny_tokenizer: VQGAN, tiny_transformer_config: TransformerConfig, tmp_path: Path) -> Path:
    """A sound model folder."""
    config = dataclasses.replace(tiny_transformer_config, num_classes=2)
    save_model(tmp_path / "model", Model(tiny_tokenizer, Transformer(config), ["one", "two"]))
    return tmp_path / "model"


def edit(folder: Path, path: str, value: Any) -> None:
    """Change one value in config.json; names and indices of `path` are joined by dots."""
    config = json.loads((folder / "config.json").read_text())
    *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
    place = config
    for part in above:
        place = place[part]
    place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("transformer.depth", 10**6, "depth 1000000 is more than"),
        ("tokenizer.encoder.1.blocks", 10**6, "blocks 1000000 is more than"),
        ("tokenizer.encoder", [{"channels": 8, "blocks": 0}] * 1000, "encoder has 1000 stages, which is more than"),
        ("tokenizer.decoder", [{"channels": 8, "blocks": 200}] * 2, "decoder has 400 blocks, which is more than"),
        ("tokenizer.encoder", 3, "encoder 3 is not a list"),
        ("tokenizer.encoder.0", 3, "3 is not a JSON object"),
        ("tokenizer.encoder.0.resample", 1, "resample 1 is not true or false"),
        ("tokenizer.encoder.0.channels", 10**12, "channels 1000000000000 is more than"),
        ("tokenizer.image_size", 1e308, r"image_size 1e\+308 is not a whole number"),
        ("tokenizer.codebook_dim", 1.5, "codebook_dim 1.5 is not a whole number"),
        ("tokenizer.codebook_dim", float("nan"), "codebook_dim nan is not a whole number"),
        ("tokenizer.codebook_size", "x" * 1000, "codebook_size 'xxx.*x... is not a whole number"),
        ("tokenizer.groups", True, "groups True is not a whole number"),
        ("tokenizer.unit_pixels", "false", "unit_pixels 'false' is not true or false"),
        ("tokenizer.encoder_norm", ["group"], r"encoder_norm \['group'\] is neither"),
        ("tokenizer.colour", 7, "there is no field 'colour', which is 7"),
        ("transformer.dim", 10**12, "dim 1000000000000 is more than"),
        ("transformer.dropout", True, "dropout True is not a number"),
        ("transformer.norm_eps", None, "norm_eps None is not a number"),
        ("transformer.norm_eps", "x", "norm_eps 'x' is not a number"),
        ("transformer.norm_eps", float("inf"), r"norm_eps inf is not in \[0, 1\]"),
        ("transformer.num_classes", 10**400, "num_classes 1000*... is not a whole number"),
        ("transformer", [], "transformer must be a JSON object, not \\[\\]"),
        ("decoding.steps", "8", "steps '8' is not a whole number"),
        ("decoding.steps", 10**9, "steps must be at most 10,000"),
        ("decoding.stop_after", 1.0, "stop_after 1.0 is not a whole number or null"),
        ("decoding.choice_temperature", 10**400, "choice_temperature 1000*... is not a number"),
        ("decoding.schedule", [], r"schedule \[\] is not text"),
        ("class_names.1", 5, "class_names holds 5 for class 1, which is not text"),
        ("format_version", 1.5, "format_version is 1.5, this release reads 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_configurations(folder: Path, path: str, value: Any, message: str) -> None:
    load_model(folder)
    edit(folder, path, value)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert str(folder / "config.json") in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 200


@pytest.mark.parametrize("part", ["tokenizer", "transformer", "decoding"])
def test_every_field_has_a_type(folder: Path, part: str) -> None:
    """Not one takes a list of words, or an object, for what it is."""
    sound = (folder / "config.json").read_text()
    kind = {"tokenizer": TokenizerConfig, "transformer": TransformerConfig, "decoding": DecodeConfig}[part]
    for field in dataclasses.fields(kind):
        for value in (["word"], {"a": 1}, "word"):
            (folder / "config.json").write_text(sound)
            edit(folder, f"{part}.{field.name}", value)
            with pytest.raises(
                ModelError, match=field.name if field.name not in ("encoder", "decoder") else "is not a"
            ):
                load_model(folder)


def test_whatever_ships_is_accepted() -> None:
    """All presets, the released Halton-MaskGIT, and all decoders."""
    for preset in PRESETS.values():
        assert tokenizer_from_dict(json.loads(json.dumps(config_to_dict(preset.tokenizer)))) == preset.tokenizer
    halton = HaltonConfig()
    assert transformer_from_dict(json.loads(json.dumps(config_to_dict(halton)))) == halton
    for decoder in DECODERS.values():
        assert DecodeConfig(**check_json(DecodeConfig, json.loads(json.dumps(config_to_dict(decoder))))) == decoder


def test_of_before_guidance_had_an_interval(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config["decoding"].pop("guidance_from"), config["decoding"].pop("guidance_to")) == (0.0, 1.0)
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).decoding == DecodeConfig()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 2000 + "1" + "}" * 2000], ids=["cut short", "whole"])
def test_lists_within_lists(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json: .* lists within lists without end"):
        load_model(folder)


def test_metadata_that_is_no_json(tiny_tokenizer: VQGAN, tiny_transformer_config: Any, tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ModelError, match=r"can't save to .*config\.json"):
        save_model(tmp_path / "out", Model(tiny_tokenizer, Transformer(tiny_transformer_config), [], deep))
    broken = Model(tiny_tokenizer, Transformer(tiny_transformer_config), [], {"name": "\udcff"})
    with pytest.raises(ModelError, match=r"can't save to .*config\.json: .* can't encode"):
        save_model(tmp_path / "out", broken)
    assert not (tmp_path / "out").exists()


def change(folder: Path, file: str, name: str, make: Callable[[Tensor], Tensor]) -> None:
    """Put another tensor into a file, and its SHA-256 out of config.json."""
    tensors = safetensors.torch.load_file(folder / file)
    tensors[name] = make(tensors[name]).contiguous()
    safetensors.torch.save_file(tensors, folder / file)
    edit(folder, "sha256", {})


def last_is(value: float) -> Callable[[Tensor], Tensor]:
    def make(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "file, name",
    [("tokenizer.safetensors", "codebook.weight"), ("transformer.safetensors", "blocks.1.mlp.0.weight")],
)
def test_weights_that_are_not_finite(folder: Path, file: str, name: str, value: float) -> None:
    """One number of many is enough: it would spread over the picture."""
    change(folder, file, name, last_is(0.5))
    load_model(folder)
    change(folder, file, name, last_is(value))
    with pytest.raises(ModelError, match=rf"{file}: {name} has values that aren't finite"):
        load_model(folder)
    change(folder, file, name, Tensor.half)
    with pytest.raises(ModelError, match=rf"{file}: {name} has values that aren't finite"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind(folder: Path, dtype: torch.dtype) -> None:
    try:
        safetensors.torch.save({"x": torch.zeros(1, dtype=dtype)})
    except KeyError:
        pytest.skip(f"this version of safetensors knows no {dtype}")
    change(folder, "tokenizer.safetensors", "codebook.weight", lambda tensor: tensor.to(dtype))
    with pytest.raises(ModelError, match=f"tokenizer.safetensors: codebook.weight holds {dtype}"):
        load_tokenizer(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("file", ["config.json", "tokenizer.safetensors"])
def test_pipes(tiny_tokenizer: VQGAN, tmp_path: Path, file: str) -> None:
    """Nobody writes to it: opening it would wait for ever."""
    save_tokenizer(tmp_path, tiny_tokenizer)
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    with pytest.raises(ModelError, match=f"{file}: not a file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-by-this-name/model", "a\0b", "", ".."])
def test_names_of_no_folder(name: str) -> None:
    with pytest.raises(ModelError, match="no such model folder|no such file"):
        MaskGIT.from_pretrained(name)
