"""The transformer of Halton-MaskGIT. (tests/maskgit/convert has it against a computation of its own.)"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from maskgit.config import HaltonConfig
from maskgit.network.folder import Model, ModelError, load_model, save_model
from maskgit.network.halton import HaltonTransformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

CONFIG = HaltonConfig(
    codebook_size=16, num_tokens=16, dim=32, depth=2, heads=2, mlp_dim=40, num_classes=3, dropout=0.5, registers=2
)


@pytest.fixture
def model() -> HaltonTransformer:
    """With every parameter random."""
    model = HaltonTransformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


@torch.no_grad()
def test_labels_and_tokens(model: HaltonTransformer) -> None:
    tokens = torch.randint(17, (2, 16))
    assert model(tokens).shape == (2, 16, 16)
    assert torch.equal(model(tokens), model(tokens, torch.tensor([3, 3])))  # 3 stands for "no class"
    same = tokens[:1].expand(2, -1)
    assert not torch.allclose(*model(same, torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="takes 16 tokens an image, got 25"):
        model(torch.zeros(1, 25, dtype=torch.int64))


@torch.no_grad()
def test_every_position_sees_every_other(model: HaltonTransformer) -> None:
    tokens = torch.randint(16, (1, 16))
    for changed in (0, 15):
        other = tokens.clone()
        other[0, changed] = CONFIG.mask_token_id
        assert ((model(other) - model(tokens)).abs().amax(-1) > 0).all()


@torch.no_grad()
def test_blocks_start_as_identities() -> None:
    """All gates are zero at first: a position's logits depend on its own token and place only, not on the class."""
    model = HaltonTransformer(CONFIG).eval()
    tokens = torch.randint(16, (1, 16))
    other = tokens.clone()
    other[0, 5] = CONFIG.mask_token_id
    changed = (model(other, torch.tensor([1])) != model(tokens)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [5]


def test_dropout_is_for_training(model: HaltonTransformer) -> None:
    tokens = torch.randint(17, (1, 16))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    torch.manual_seed(1)
    first, second = model(tokens), model(tokens)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model(tokens), first)
    first.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 2])
def test_model_folder(tmp_path: Path, tiny_tokenizer: VQGAN, registers: int) -> None:
    model = HaltonTransformer(dataclasses.replace(CONFIG, registers=registers)).eval()
    save_model(tmp_path, Model(tiny_tokenizer, model, ["a", "b", "c"]))
    again = load_model(tmp_path).transformer
    assert isinstance(again, HaltonTransformer) and again.config == model.config
    tokens = torch.randint(17, (2, 16))
    assert torch.equal(again(tokens), model(tokens))
    pictures = MaskGIT.from_pretrained(tmp_path, device="cpu").generate(2, labels=["c", None], steps=2)
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    # A folder of another kind is refused, not misread.
    config = json.loads((tmp_path / "config.json").read_text())
    config["transformer"]["kind"] = "other"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="config.json: not a transformer configuration: .*kind"):
        load_model(tmp_path)
