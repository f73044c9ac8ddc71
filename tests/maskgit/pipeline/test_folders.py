"""Models that are saved and loaded, from the disk and from the Hub; damaged ones are refused."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from tiny_pipeline import TOKENIZER, same, tiny_model

from maskgit.config import TransformerConfig
from maskgit.decoding import DecodeConfig
from maskgit.network.folder import ModelError, load_tokenizer, save_tokenizer
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT


def test_save_and_load(model: MaskGIT, tmp_path) -> None:
    model.save_pretrained(tmp_path / "a" / "model")
    loaded = MaskGIT.from_pretrained(tmp_path / "a" / "model", device="cpu")
    assert loaded.metadata == {"note": "tiny"} and loaded.tokenizer.config == TOKENIZER
    assert same(model.generate(1)[0], loaded.generate(1)[0])
    assert not loaded.transformer.training and not loaded.tokenizer.codebook.weight.requires_grad
    assert all(parameter.requires_grad for parameter in loaded.transformer.parameters())
    assert sorted(path.name for path in (tmp_path / "a" / "model").iterdir()) == [
        "config.json",
        "tokenizer.safetensors",
        "transformer.safetensors",
    ]


def test_a_model_says_how_it_decodes(model: MaskGIT, tmp_path) -> None:
    own = DecodeConfig(steps=3, softmax_temperature=0.5, choice_temperature=1.0)
    opinionated = MaskGIT(model.tokenizer, model.transformer, decoding=own, device="cpu")
    opinionated.save_pretrained(tmp_path)
    loaded = MaskGIT.from_pretrained(tmp_path, device="cpu")
    assert loaded.decoding == own and model.decoding == DecodeConfig()
    assert same(loaded.generate(1)[0], model.generate(1, config=own)[0])
    assert same(loaded.generate(1, steps=2)[0], model.generate(1, config=own, steps=2)[0])
    edit(tmp_path / "config.json", decoding={"steps": 5})  # what a field says that came later is as it was
    assert MaskGIT.from_pretrained(tmp_path, device="cpu").decoding == DecodeConfig(steps=5)
    edit(tmp_path / "config.json", decoding={"steps": 0})
    with pytest.raises(ModelError, match="config.json: steps must be at least 1"):
        MaskGIT.from_pretrained(tmp_path, device="cpu")


def test_half_precision_on_disk(model: MaskGIT, tmp_path) -> None:
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "transformer.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = MaskGIT.from_pretrained(tmp_path / "half", device="cpu")
    weight = loaded.transformer.position_embedding
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.transformer.position_embedding.half().float())
    large = tiny_model()
    torch.nn.init.constant_(large.transformer.bias, 1e6)
    with pytest.raises(ModelError, match="bias has values that torch.float16 can't hold"):
        large.save_pretrained(tmp_path / "large", dtype=torch.float16)
    assert not (tmp_path / "large").exists()


def test_tokenizer_folder(model: MaskGIT, tmp_path) -> None:
    save_tokenizer(tmp_path, model.tokenizer)
    loaded = load_tokenizer(tmp_path)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(images), model.tokenizer.encode(images))
    with pytest.raises(ModelError, match="holds a tokenizer only"):
        MaskGIT.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).config == TOKENIZER


def edit(path, **changes) -> None:
    config = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(config))


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config.json: no such file"),
    "no weights": (lambda f: (f / "tokenizer.safetensors").unlink(), r"tokenizer.safetensors: no such file"),
    "truncated": (lambda f: truncate(f / "transformer.safetensors"), "transformer.safetensors: damaged"),
    "bit": (lambda f: flip_a_bit(f / "transformer.safetensors"), "transformer.safetensors: damaged, or from another"),
    "not json": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "other json": (lambda f: (f / "config.json").write_text("[]"), "config.json: not a model's configuration"),
    "version": (lambda f: edit(f / "config.json", format_version=2), "format_version is 2, this release reads 1"),
    "field": (lambda f: edit(f / "config.json", colour=1), "config.json: unknown fields colour"),
    "type": (lambda f: edit(f / "config.json", tokenizer=[]), "tokenizer must be a JSON object"),
    "inner field": (lambda f: edit(f / "config.json", **{"transformer.wings": 2}), "config.json: .*wings"),
    "inner type": (lambda f: edit(f / "config.json", **{"transformer.dim": "x"}), "config.json: "),
    "parts": (lambda f: edit(f / "config.json", **{"transformer.codebook_size": 31}), "codebook_size is 32 in the"),
    "shape": (
        lambda f: edit(f / "config.json", **{"transformer.mlp_dim": 63}),
        r"mlp.0.bias has shape \[64\], .* should be \[63\]",
    ),
    "missing": (lambda f: edit(f / "config.json", **{"transformer.depth": 2}), r"tensors are missing: blocks.1.*more"),
    "extra": (lambda f: edit(f / "config.json", **{"transformer.norm": "post"}), "2 tensors don't belong"),
    "names": (lambda f: edit(f / "config.json", class_names=["a"]), "1 class names, but the transformer has 0"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused(model: MaskGIT, tmp_path, name: str) -> None:
    damage, reason = DAMAGE[name]
    model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=reason) as caught:
        MaskGIT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_weights_of_two_saves_are_refused(model: MaskGIT, tmp_path) -> None:
    model.save_pretrained(tmp_path / "a")
    other = tiny_model()
    torch.nn.init.normal_(other.tokenizer.codebook.weight)
    other.save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.safetensors").replace(tmp_path / "a" / "tokenizer.safetensors")
    with pytest.raises(ModelError, match="another save"):
        MaskGIT.from_pretrained(tmp_path / "a")


def test_failed_save_leaves_the_old_model(model: MaskGIT, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        tiny_model().save_pretrained(tmp_path, dtype=torch.float16)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_hub(model: MaskGIT, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path / "snapshot")
    monkeypatch.chdir(tmp_path)
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda repo, allow_patterns: str(tmp_path / "snapshot")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert same(MaskGIT.from_pretrained("someone/some-model").generate(1)[0], model.generate(1)[0])

    def fail(repo: str, allow_patterns: list[str]) -> str:
        raise OSError("401 Client Error.\nlong explanation")

    hub.snapshot_download = fail  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="someone/some-model: no such model folder, .*: 401 Client Error.$"):
        MaskGIT.from_pretrained("someone/some-model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match="pip install huggingface_hub"):
        MaskGIT.from_pretrained("someone/some-model")
    with pytest.raises(ModelError, match="no such model folder"):
        MaskGIT.from_pretrained(tmp_path / "nothing" / "here")


def test_parts_that_do_not_fit(model: MaskGIT) -> None:
    transformer = Transformer(TransformerConfig(32, 16, dim=32, depth=1, heads=2, mlp_dim=64))
    with pytest.raises(ModelError, match="num_tokens is 64 in the tokenizer and 16 in the transformer"):
        MaskGIT(model.tokenizer, transformer)
