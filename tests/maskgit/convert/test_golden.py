"""Converted checkpoints compute what the original code computed from them, to the tolerances of the golden files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maskgit.convert import Hints, convert
from maskgit.network.folder import Model, load_model, load_tokenizer
from maskgit.tokenizer import VQGAN


def converted(files: list[Path], folder: Path, hints: Hints | None = None) -> Model:
    """The model after a trip through its folder."""
    convert(files, folder / "model", hints)
    return load_model(folder / "model")


@torch.no_grad()
def check_tokenizer(tokenizer: VQGAN, io: dict[str, Tensor]) -> None:
    torch.testing.assert_close(tokenizer.latents(io["image"]), io["z_pre_quant"], rtol=0, atol=5e-4)
    clear = io["index_rel_margin"] > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal(tokenizer.encode(io["image"])[clear], io["indices"][clear])
    torch.testing.assert_close(tokenizer.decode(io["indices"]), io["decoded_from_indices"], rtol=0, atol=1e-4)
    codes = io["z_q"].permute(0, 2, 3, 1).flatten(1, 2)  # [B, N, D]
    torch.testing.assert_close(tokenizer.codebook(io["indices"]), codes, rtol=0, atol=1e-6)


def check_logits(logits: Tensor, expected: Tensor) -> None:
    """`expected` may have columns for the mask token and more; ours has the codes only."""
    torch.testing.assert_close(logits, expected[..., : logits.shape[-1]], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("heads", [16, 2])
def test_lab(golden: Path, tmp_path: Path, heads: int) -> None:
    folder = golden / "lab"
    model = converted([folder / "VQGAN.pt", folder / "transformer.pt"], tmp_path, Hints(heads=heads))
    io = load_file(folder / "io.safetensors")
    check_tokenizer(model.tokenizer, io)
    check_logits(model.transformer(io["ids"]), io[f"logits_heads{heads}"])
    assert model.tokenizer.config.image_size == 64


@pytest.mark.parametrize("name", ["last_tiny.ckpt", "last_tiny_lightning.ckpt"])
def test_taming(golden: Path, tmp_path: Path, name: str) -> None:
    convert([golden / "taming" / name], tmp_path / "tokenizer")
    check_tokenizer(load_tokenizer(tmp_path / "tokenizer"), load_file(golden / "taming" / "io.safetensors"))


@torch.no_grad()
def test_valeo_maskgit(golden: Path, tmp_path: Path) -> None:
    files = [golden / "seed004_v1" / "MaskGIT_tiny.pth", golden / "taming" / "last_tiny.ckpt"]
    model = converted(files, tmp_path, Hints(heads=2))
    io = load_file(golden / "seed004_v1" / "io.safetensors")
    tokens = io["ids"].flatten(1)
    check_logits(model.transformer(tokens, io["labels"]), io["logits"])
    check_logits(model.transformer(tokens), io["logits_label_dropped"])
    assert model.tokenizer.config.image_size == 32  # 8x8 tokens, where the tokenizer's own 64 would have 16x16


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 1])
def test_halton(golden: Path, tmp_path: Path, registers: int) -> None:
    files = [golden / "taming" / "last_tiny.ckpt", golden / "halton_v2" / f"register{registers}.pth"]
    model = converted(files, tmp_path, Hints(heads=2))
    io = load_file(golden / "halton_v2" / f"register{registers}_io.safetensors")
    tokens = io["ids"].flatten(1)
    check_logits(model.transformer(tokens, io["labels"]), io["logits"])
    check_logits(model.transformer(tokens), io["logits_label_dropped"])


@torch.no_grad()
def test_google(golden: Path, tmp_path: Path) -> None:
    pytest.importorskip("msgpack")
    folder = golden / "google"
    model = converted([folder / "tokenizer.msgpack", folder / "transformer.msgpack"], tmp_path)
    io = load_file(folder / "tokenizer_io.safetensors")
    for name in ("image", "z_pre_quant", "z_q", "decoded", "decoded_from_indices"):
        io[name] = io[name].permute(0, 3, 1, 2)
    for name in ("image", "decoded", "decoded_from_indices"):
        io[name] = io[name] * 2 - 1
    check_tokenizer(model.tokenizer, io)
    # Its class token comes first, and its mask token is -1.
    io = load_file(folder / "io.safetensors")
    label, tokens = io["ids"].long().split([1, 64], dim=1)
    tokens = torch.where(tokens == -1, model.transformer.config.mask_token_id, tokens)
    check_logits(model.transformer(tokens, label[:, 0] - 64), io["logits"][:, 1:])
