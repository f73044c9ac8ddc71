"""Encoder, decoder and their round trip, also against the models that the stage list has to express."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maskgit.config import LAB_TOKENIZER, ConfigError, Stage, TokenizerConfig
from maskgit.tokenizer import VQGAN


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


# --- the originals ----------------------------------------------------------------------------------------------------


def fill(model: VQGAN, theirs: dict[str, Tensor]) -> VQGAN:
    """Load a state dict whose encoder and decoder list their tensors in the order in which they run, as ours do."""
    names = {"codebook": ("codebook.embedding", "quantize.embedding")}
    tensors = {}
    for part in ("encoder", "quant_conv", "codebook", "post_quant_conv", "decoder"):
        ours = [name for name in model.state_dict() if name.startswith(f"{part}.")]
        prefixes = names.get(part, (f"{part}.",))
        values = [value for name, value in theirs.items() if name.startswith(prefixes)]
        tensors |= dict(zip(ours, values, strict=True))
    model.load_state_dict(tensors)
    return model.eval()


@torch.no_grad()
def reproduces(model: VQGAN, io: dict[str, Tensor]) -> None:
    torch.testing.assert_close(model.latents(io["image"]), io["z_pre_quant"], rtol=0, atol=5e-4)
    clear = io["index_rel_margin"] > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal(model.encode(io["image"])[clear], io["indices"][clear])
    torch.testing.assert_close(model.decode(io["indices"]), io["decoded_from_indices"], rtol=0, atol=5e-4)


def test_lab(golden: Path) -> None:
    """The lab's stage list, at a quarter of the width (an eighth at the bottom)."""
    narrow = {128: 32, 256: 64, 512: 64}
    # Its tiny model has widths 32, 32, 32, 64, 64, 64 where the real one has 128, 128, 128, 256, 256, 512.
    config = dataclasses.replace(
        LAB_TOKENIZER,
        codebook_size=64,
        codebook_dim=32,
        latent_channels=32,
        stem_channels=32,
        encoder=tuple(dataclasses.replace(s, channels=narrow[s.channels]) for s in LAB_TOKENIZER.encoder),
        decoder=tuple(dataclasses.replace(s, channels=narrow[s.channels]) for s in LAB_TOKENIZER.decoder),
    )
    theirs = torch.load(golden / "lab" / "VQGAN.pt", weights_only=True)
    reproduces(fill(VQGAN(config), theirs), load_file(golden / "lab" / "io.safetensors"))


def running_order(name: str) -> tuple[int, int, int, int]:
    """Where a tensor of taming's decoder runs: levels from the last to the first, attention behind its block."""
    parts = name.split(".")
    if parts[1] != "up":
        return {"conv_in": 0, "mid": 1, "norm_out": 3, "conv_out": 4}[parts[1]], 0, 0, 0
    if parts[3] == "upsample":
        return 2, -int(parts[2]), 99, 0
    return 2, -int(parts[2]), int(parts[4]), parts[3] == "attn"


def test_taming(golden: Path) -> None:
    """taming-transformers' model: ch 32, ch_mult (1, 1, 2), one block a level, attention at 16x16."""
    config = TokenizerConfig(
        codebook_size=64,
        codebook_dim=32,
        latent_channels=32,
        stem_channels=32,
        encoder=(Stage(32, 1, resample=True), Stage(32, 1, resample=True), Stage(64, 1, attention=True)),
        decoder=(Stage(64, 2, attention=True, resample=True), Stage(32, 2, resample=True), Stage(32, 2)),
    )
    theirs = torch.load(golden / "taming" / "last_tiny.ckpt", weights_only=True)["state_dict"]
    decoder = sorted((name for name in theirs if name.startswith("decoder.")), key=running_order)
    ordered = {name: value for name, value in theirs.items() if not name.startswith("decoder.")}
    ordered |= {name: theirs[name] for name in decoder}
    reproduces(fill(VQGAN(config), ordered), load_file(golden / "taming" / "io.safetensors"))
