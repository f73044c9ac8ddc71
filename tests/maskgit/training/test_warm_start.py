"""From a smaller grid to a larger one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskgit.config import TransformerConfig
from maskgit.network.folder import load_model, save_tokenizer
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit.training.settings import TrainingError
from maskgit.training.warm_start import interpolate_grid


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_a_larger_model_takes_the_weights(classes: int, tied: bool, tiny_transformer_config: TransformerConfig) -> None:
    config = dataclasses.replace(tiny_transformer_config, num_classes=classes, tied=tied)
    model, larger = Transformer(config), Transformer(dataclasses.replace(config, num_tokens=64))
    if tied:
        torch.nn.init.normal_(model.bias)
    weights = interpolate_grid(model.state_dict(), 16, 64)
    larger.load_state_dict(weights)
    for name, tensor in model.state_dict().items():
        if name not in ("position_embedding", "bias"):
            assert torch.equal(weights[name], tensor), name
    if classes:  # the class token has its own row
        assert torch.equal(weights["position_embedding"][64], model.position_embedding[16])
    # Bicubic at half pixels: Keys' kernel with a = -3/4 at the distances 1/4, 3/4, 5/4, 7/4, along both axes.
    kernel = np.array([-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    grid = model.position_embedding.detach()[:16].view(4, 4, -1).double().numpy()
    row, column = 3, 4  # whose place among the old cells is (1.25, 1.75)
    rows, columns = grid[[0, 1, 2, 3]], kernel[::-1]
    expected = np.einsum("i,j,ijd->d", kernel, columns, rows[:, [0, 1, 2, 3]])
    ours = weights["position_embedding"].view(-1, config.dim)[:64].view(8, 8, -1)[row, column]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


def test_constants_stay_and_directions_are_kept() -> None:
    constant = {"position_embedding": torch.full((17, 5), 0.7), "bias": torch.full((16, 3), -2.5)}
    larger = interpolate_grid(constant, 16, 100)
    assert larger["position_embedding"].shape == (101, 5) and larger["bias"].shape == (100, 3)
    torch.testing.assert_close(larger["bias"], torch.full((100, 3), -2.5))
    torch.testing.assert_close(larger["position_embedding"], torch.full((101, 5), 0.7))
    # A slope down the rows, none along the columns.
    slope = {"position_embedding": torch.arange(4.0).repeat_interleave(4)[:, None]}
    resized = interpolate_grid(slope, 16, 64)["position_embedding"].view(8, 8)
    assert (resized.diff(dim=0) > 0).all()
    torch.testing.assert_close(resized, resized[:, :1].expand(8, 8))
    unchanged = torch.randn(17, 5)
    torch.testing.assert_close(interpolate_grid({"position_embedding": unchanged}, 16, 16)["position_embedding"],
                               unchanged)  # fmt: skip
    with pytest.raises(TrainingError, match="to a larger grid only: 4 x 4 tokens there, 2 x 2 here"):
        interpolate_grid(constant, 16, 4)


def test_fine_tuning_at_twice_the_size(
    run: Any, unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = unbroken["transformer"] / "model"
    small = load_model(start)
    larger = {"init": start, "tokenizer": start, "image_size": 32, "views": 1}
    with pytest.raises(TrainingError, match="num_tokens is 16 there and 64 here; --interpolate goes to a larger grid"):
        run("transformer", tmp_path / "a", **larger)
    # Without training, it is the interpolated model.
    run("transformer", tmp_path / "b", **larger, interpolate=True, lr=0.0, ema=0.0, steps=1)
    assert "from 16 to 64 positions by interpolation" in capsys.readouterr().out
    model = load_model(tmp_path / "b" / "model")
    assert model.tokenizer.config.image_size == 32 and model.transformer.config.num_tokens == 64
    expected = interpolate_grid(small.transformer.state_dict(), 16, 64)
    for name, tensor in model.transformer.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert np.load(tmp_path / "b" / "tokens" / "train" / "tokens.npy").shape[2] == 64
    # Trained, it goes on from there.
    figures = run("transformer", tmp_path / "c", **larger, interpolate=True, steps=4)
    assert np.isfinite(figures["loss"])
    with pytest.raises(TrainingError, match="its tokenizer is not the one"):
        save_tokenizer(tmp_path / "other", VQGAN(small.tokenizer.config))
        run("transformer", tmp_path / "d", **(larger | {"tokenizer": tmp_path / "other"}), interpolate=True)
