"""The card: its parts against definitions written out, the whole on a tiny random model and synthetic images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.data import DataError
from maskgit.metrics.card import __main__ as card
from maskgit.metrics.card.__main__ import main
from maskgit.metrics.card.measuring import average, fixed_losses, model_losses, stratified_masks
from maskgit.metrics.held_out import choose_images, fill_mean, fill_telea, paste_decoded
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

SIZE, CODES, TOKENS = 16, 32, 16


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    stages = (Stage(8, 1, resample=True), Stage(8, 1, resample=True), Stage(8, 1))
    tokenizer = VQGAN(
        TokenizerConfig(SIZE, CODES, 4, latent_channels=8, stem_channels=8, encoder=stages, decoder=stages, groups=4)
    )
    nn.init.normal_(tokenizer.codebook.weight)
    transformer = Transformer(TransformerConfig(CODES, TOKENS, dim=32, depth=1, heads=2, mlp_dim=32))
    folder = tmp_path_factory.mktemp("model")
    MaskGIT(tokenizer, transformer, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth random pictures; about a tenth of them is held out."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 20), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


class TinyNetwork(nn.Module):
    """Stands for EfficientNet-Lite0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(3, 12, 4, stride=4)

    def extract_features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.convolution(inputs).relu()


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "efficientnet_lite0", TinyNetwork)


# --- masked-token loss ------------------------------------------------------------------------------------------------


def test_stratified_masks_follow_the_cosine():
    rounds, count, num_tokens = 8, 500, 64
    masks = stratified_masks(count, num_tokens, rounds, seed=0)
    counts = masks.sum(2)
    assert masks.shape == (rounds, count, num_tokens) and counts.min() >= 1
    for i in range(rounds):
        # r in [i, i + 1) / rounds, and gamma falls.
        assert counts[i].max() <= math.ceil(num_tokens * math.cos(math.pi / 2 * i / rounds))
        assert counts[i].min() >= math.floor(num_tokens * math.cos(math.pi / 2 * (i + 1) / rounds))
    # The mean over r of cos(pi r / 2) is 2 / pi; the ceiling adds half a token.
    assert counts.double().mean() == pytest.approx(64 * 2 / math.pi + 0.5, abs=0.3)
    assert torch.equal(masks, stratified_masks(count, num_tokens, rounds, seed=0))
    assert not torch.equal(masks, stratified_masks(count, num_tokens, rounds, seed=1))


def test_fixed_losses_written_out():
    training = torch.tensor([[0, 1], [0, 2], [3, 1]])
    tokens = torch.tensor([[0, 1], [1, 3]])
    losses, hits = fixed_losses(training, tokens, codebook_size=4)
    counts = [[2, 0, 0, 1], [0, 2, 1, 0]]
    overall = [3 / 10, 3 / 10, 2 / 10, 2 / 10]  # each code counted once more than it is there
    for i in range(2):
        for position in range(2):
            code = int(tokens[i, position])
            seen = counts[position][code]
            assert float(losses["0.3 uniform"][i, position]) == pytest.approx(-math.log((seen + 0.3) / (3 + 1.2)))
            wanted = -math.log((seen + 1.2 * overall[code]) / (3 + 1.2))
            assert float(losses["0.3 overall"][i, position]) == pytest.approx(wanted)
    assert hits.tolist() == [[True, True], [False, False]]


def test_fixed_losses_come_from_distributions():
    training = torch.randint(8, (20, 3), generator=torch.Generator().manual_seed(0))
    every_code = torch.arange(8)[:, None].expand(8, 3)
    for kind, values in fixed_losses(training, every_code, 8)[0].items():
        assert torch.allclose((-values).exp().sum(0), torch.ones(3).double()), kind


def test_average_by_image_and_by_token():
    values = torch.tensor([[[1.0, 2, 3, 100], [5, 100, 100, 100]]])
    masks = torch.tensor([[[True, True, True, False], [True, False, False, False]]])
    assert average(values, masks) == pytest.approx(((2 + 5) / 2, 11 / 4))


def test_model_losses_see_no_masked_token(model_folder: Path):
    model = MaskGIT.from_pretrained(model_folder, device="cpu", precision="float32")
    tokens = torch.randint(CODES, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    masks = stratified_masks(3, TOKENS, 2, seed=0)
    losses, hits = model_losses(model, tokens, None, masks, batch_size=2)
    assert losses.shape == hits.shape == masks.shape
    with torch.inference_mode():
        logits = model.transformer(tokens.masked_fill(masks[1], CODES))
    wanted = -logits.log_softmax(2).gather(2, tokens[..., None])[..., 0]
    assert torch.allclose(losses[1], wanted, atol=1e-5)
    assert torch.equal(hits[1], logits.argmax(2) == tokens)


# --- fills ------------------------------------------------------------------------------------------------------------


def test_fills_depend_on_known_pixels_only():
    pixels = torch.randint(256, (3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask = np.zeros((12, 12), dtype=bool)
    mask[3:9, 4:8] = True
    hidden = torch.from_numpy(mask)
    other = torch.where(hidden, 255 - pixels, pixels)
    fills = [fill_mean]
    if pytest.importorskip("cv2", reason="OpenCV is not installed"):
        fills.append(fill_telea)
    for fill in fills:
        filled = fill(pixels, mask)
        assert filled.dtype == torch.uint8 and filled.shape == pixels.shape
        assert torch.equal(filled[:, ~hidden], pixels[:, ~hidden])
        assert torch.equal(filled, fill(other, mask))
        assert not torch.equal(filled[:, hidden], pixels[:, hidden])


def test_mean_fill_is_the_mean():
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    pixels[0, :2] = 200
    mask = np.zeros((4, 4), dtype=bool)
    mask[:1] = True
    assert fill_mean(pixels, mask)[:, 0, 0].tolist() == [67, 0, 0]  # 4 of 12 known pixels are 200


def test_pasted_copy_is_the_copy_in_the_hole():
    pixels = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
    mask = np.zeros((16, 16), dtype=bool)
    mask[6:10, 6:10] = True
    decoded = pixels.clone()
    decoded[:, 7:9, 7:9] = 255 - pixels[:, 7:9, 7:9]
    assert torch.equal(paste_decoded(pixels, decoded, mask), decoded)
    decoded[:, 0, 0] = 255 - pixels[:, 0, 0]  # outside the hole
    pasted = paste_decoded(pixels, decoded, mask)
    assert torch.equal(pasted[:, ~torch.from_numpy(mask)], pixels[:, ~torch.from_numpy(mask)])


# --- all of it --------------------------------------------------------------------------------------------------------


def test_report_and_pictures(model_folder: Path, photos: Path, tmp_path: Path, tiny_network: None, capsys):
    pytest.importorskip("cv2")
    arguments = [str(model_folder), "--data", str(photos), "--seeds", "2", "--rounds", "2", "--steps", "2"]
    arguments += ["--feature-size", "32", "--device", "cpu", "--output"]
    assert main([*arguments, str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "not FID" in out and "OpenCV Telea" in out
    report = json.loads((tmp_path / "a" / "report.json").read_text(encoding="utf-8"))
    assert (tmp_path / "a" / "report.md").read_text(encoding="utf-8") in out
    assert report["held_out_images"] + report["training_images"] == 60
    assert str(photos) in report["command"] and report["torch"] == torch.__version__
    loss = report["masked_token_loss"]
    assert loss["ratio"] == pytest.approx(loss["loss"] / loss["fixed_loss"])
    assert 0 < report["tokenizer"]["codes_used_in_data_set"] <= 1
    for methods in report["inpainting"].values():
        assert len(methods) == 4
        for method, figures in methods.items():
            for figure in figures.values():
                assert math.isfinite(figure["mean"])
                assert len(figure["values"]) == (2 if method == "MaskGIT" else 1)
                assert ("std" in figure) == (method == "MaskGIT")
        ours, telea = (methods[name]["frechet"]["mean"] for name in ("MaskGIT", "OpenCV Telea"))
        assert f"Fréchet distance of MaskGIT: {ours / telea:.2f} of OpenCV Telea's, " in out
    for name in ("inpaintings.png", "reconstructions.png"):
        with Image.open(tmp_path / "a" / name) as picture:
            assert picture.width > 300

    # Everything random comes from the seed.
    assert main([*arguments, str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b" / "report.json").read_text(encoding="utf-8"))
    for part in ("tokenizer", "masked_token_loss", "inpainting", "weights_sha256"):
        assert again[part] == report[part]
    assert (tmp_path / "a" / "inpaintings.png").read_bytes() == (tmp_path / "b" / "inpaintings.png").read_bytes()


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["--seeds", "0"], 2, "--seeds 0: must be at least 1"),
        (["--max-images", "1"], 2, "--max-images 1"),
        (["--seed", "-1"], 2, "--seed -1: must be at least 0"),
        (["--seed", str(2**64)], 2, "must be below 2**64"),
        (["--unknown"], 2, "unknown"),
        (["no/such/model/here"], 1, "no such model"),
        (["{model}", "--data", "no/such/folder"], 1, "no such folder"),
        (["{model}", "--device", "nonsense"], 1, "nonsense"),
        (["--help"], 0, ""),
    ],
)
def test_exit_status(
    arguments: list[str], status: int, message: str, model_folder: Path, tmp_path: Path, tiny_network: None, capsys
):
    pytest.importorskip("cv2")
    filled = [argument.format(model=model_folder) for argument in arguments]
    assert main([*filled, "--output", str(tmp_path)]) == status
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert not list(tmp_path.iterdir())


def test_the_pictures_that_are_measured_are_not_replaced(tmp_path: Path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "inpaintings.png")
    before = (tmp_path / "inpaintings.png").read_bytes()
    assert main(["--data", str(tmp_path), "--output", str(tmp_path)]) == 2
    expected = f"error: {tmp_path / 'inpaintings.png'} would be replaced: choose another --output\n"
    assert capsys.readouterr().err == expected
    assert (tmp_path / "inpaintings.png").read_bytes() == before


@pytest.mark.parametrize("package", ["cv2", "torchmetrics.functional"])
def test_missing_packages_are_named(
    package: str, model_folder: Path, tmp_path: Path, tiny_network: None, monkeypatch, capsys
):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert main([str(model_folder), "--output", str(tmp_path)]) == 1
    assert "[metrics]" in capsys.readouterr().err


def test_too_few_held_out_images():
    with pytest.raises(DataError, match="at least 2"):
        choose_images(1, None, 0)
