"""What the commands print, from their inputs on: against what NumPy, SciPy and scikit-learn make of the same."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import maskgit.training.validation
from maskgit.metrics import __main__ as command
from maskgit.metrics.card import measuring
from maskgit.metrics.card.measuring import Options
from maskgit.metrics.figures import spread
from maskgit.tokenizer import VQGAN
from maskgit.training.settings import TokenizerTraining
from maskgit.training.tokenizer import TokenizerTask
from maskgit.training.validation import Validation

pytest.importorskip("torchmetrics")
ndimage = pytest.importorskip("scipy.ndimage")
sklearn = pytest.importorskip("sklearn.metrics")

CODES, TOKENS, COUNT = 7, 16, 6


def random_pixels(count: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def ssim(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Wang et al. (2004) of pixels of 0 to 255, [H, W, 3]."""

    def blur(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, 1.5, truncate=3.4, axes=(0, 1))[5:-5, 5:-5]  # 3.4 deviations: a window of 11

    x, y = a.astype(float), b.astype(float)
    mx, my, c1, c2 = blur(x), blur(y), 2.55**2, 7.65**2
    similarity = (2 * mx * my + c1) * (2 * (blur(x * y) - mx * my) + c2)
    similarity /= (mx**2 + my**2 + c1) * (blur(x * x) - mx**2 + blur(y * y) - my**2 + c2)
    weights = None if mask is None else blur(np.repeat(mask[..., None], 3, 2).astype(float))
    return float(np.average(similarity, weights=weights))


def to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


# --- python -m maskgit.metrics ----------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, list[np.ndarray], list[np.ndarray]]:
    """Noise, a flat picture that is a level lighter, and one that is equal."""
    first = random_pixels(3, 20, 0)
    first[1], second = 124, random_pixels(3, 20, 1)
    second[1], second[2] = 131, first[2]
    for folder, pictures in (("real", first), ("generated", second)):
        (tmp_path / folder).mkdir()
        for i, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    return tmp_path / "real", tmp_path / "generated", list(first), list(second)


@pytest.mark.parametrize("masked", [False, True], ids=["pictures", "holes"])
def test_figures_of_pairs(folders: Any, masked: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    real, generated, first, second = folders
    monkeypatch.setattr(command, "efficientnet_stages", lambda: nn.ModuleList([nn.Conv2d(3, 4, 1)]))
    arguments = ["--masks", "left"] if masked else ["--pairs"]
    assert command.main([str(real), str(generated), "--network", "none", "--device", "cpu", *arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["pairs"]
    mask = np.zeros((20, 20), dtype=bool)
    mask[:, : 10 if masked else 20] = True
    differences = [a[mask].astype(float) - b[mask] for a, b in zip(first, second, strict=True)]
    # Each picture counts the same, and the PSNR is that of the mean squared error.
    assert figures["psnr"] == pytest.approx(10 * math.log10(255**2 / np.mean(np.square(differences))), rel=1e-5)
    assert figures["l1_of_255"] == pytest.approx(np.mean(np.abs(differences)), rel=1e-5)
    wanted = [ssim(a, b, mask if masked else None) for a, b in zip(first, second, strict=True)]
    assert wanted[1:] == pytest.approx([32494.5025 / 32543.5025, 1])
    assert figures["ssim"] == pytest.approx(statistics.mean(wanted), abs=1e-5)
    assert command.main([str(real), str(generated), "--network", "none", "--device", "cpu", *arguments]) == 0
    printed = capsys.readouterr().out
    for text in (f"{figures['psnr']:.2f} dB", f"{figures['l1_of_255']:.2f} of 255", f"{figures['ssim']:.4f}"):
        assert text in printed


def test_torchmetrics_is_missed_before_the_work(folders: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    assert command.main([str(folders[0]), str(folders[1]), "--network", "none", "--pairs"]) == 1
    assert "torchmetrics: pip install 'maskgit-inpaint[metrics]'" in capsys.readouterr().err
    with pytest.raises(ImportError, match="torchmetrics"):
        TokenizerTask(*[None] * 3)  # type: ignore[list-item]


def damaged_statistics(folder: Path) -> dict[str, Path]:
    mu, sigma = np.zeros(27), np.eye(27)
    contents: dict[str, dict[str, np.ndarray]] = {
        "instead of real": {"mu": mu + 1j, "sigma": sigma},
        "instead of real ones": {"mu": mu, "sigma": sigma.astype(str)},
        "no covariance": {"mu": mu, "sigma": -sigma},
        "not symmetric": {"mu": mu, "sigma": sigma + np.triu(np.ones((27, 27)), 1)},
        "don't fit": {"mu": mu, "sigma": sigma[1:]},
        "not finite": {"mu": mu * np.nan, "sigma": sigma},
        "statistics of 5 features": {"mu": mu[:5], "sigma": sigma[:5, :5]},
        "Object arrays": {"mu": np.array([{}]), "sigma": sigma},
    }
    paths = {reason: folder / f"{i}.npz" for i, reason in enumerate(contents)}
    for reason, path in paths.items():
        np.savez(path, **contents[reason])
    paths["a single array"] = folder / "array.npz"
    with open(paths["a single array"], "wb") as file:
        np.save(file, sigma)
    paths["no such file"] = folder / "folder.npz"
    paths["no such file"].mkdir()
    return paths


def test_statistics_that_are_none(folders: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any):
    class Network(nn.Module):
        name = "inception"

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

    monkeypatch.setattr(command, "inception", lambda weights: Network())
    monkeypatch.setattr(command, "extract_features", lambda network, files, *rest: torch.randn(len(files), 27))
    for reason, path in damaged_statistics(tmp_path).items():
        assert command.main([str(path), str(folders[1]), "--network", "inception", "--device", "cpu"]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and f"error: {path}: " in printed.err and reason in printed.err, printed.err


# --- python -m maskgit.metrics.card -----------------------------------------------------------------------------------


class Lookup(nn.Module):
    """Stands for the networks: its answer to the i-th image of a batch is the i-th that it was given."""

    def __init__(self, answers: Tensor, **config: int) -> None:
        super().__init__()
        self.answers, self.config, self.asked = answers, SimpleNamespace(**config), []

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        self.asked.append(tokens)
        return self.answers[: len(tokens)]

    def encode(self, images: Tensor) -> Tensor:
        return self.answers


def test_figures_of_a_tokenizer():
    originals, copies = random_pixels(COUNT, 16, 0), random_pixels(COUNT, 16, 1)
    originals[4:], copies[4:] = 124, 131
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, CODES - 2, (COUNT, TOKENS)))
    tokenizer = Lookup(tokens, codebook_size=CODES)
    tokenizer.decode = lambda tokens: to_tensor(copies) / 127.5 - 1
    model: Any = SimpleNamespace(tokenizer=tokenizer, device=torch.device("cpu"))
    _, figures, decoded = measuring.measure_tokenizer(model, to_tensor(originals))
    assert torch.equal(decoded, to_tensor(copies))
    pairs = list(zip(originals, copies, strict=True))
    assert figures["psnr"] == pytest.approx(np.mean([psnr(a, b) for a, b in pairs]), rel=1e-5)
    assert figures["psnr_of_mean_error"] == pytest.approx(psnr(originals, copies), rel=1e-5)
    assert figures["ssim"] == pytest.approx(np.mean([ssim(a, b) for a, b in pairs]), abs=1e-5)
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / counts.sum()
    assert figures["codes_used"] == pytest.approx(len(counts) / CODES)
    assert figures["perplexity"] == pytest.approx(np.prod(shares**-shares))


def test_figures_of_the_masked_token_loss():
    rng, codes = np.random.default_rng(0), np.arange(CODES)
    tokens, training = rng.integers(0, CODES, (COUNT, TOKENS)), rng.integers(0, CODES, (30, TOKENS))
    logits = rng.normal(0, 2, (COUNT, TOKENS, CODES))
    transformer = Lookup(torch.from_numpy(logits), mask_token_id=CODES)
    model: Any = SimpleNamespace(
        transformer=transformer, device=torch.device("cpu"), dtype=torch.bfloat16, autocast=False,
        tokenizer=SimpleNamespace(config=SimpleNamespace(codebook_size=CODES)),
    )  # fmt: skip
    options = Options(rounds=3, batch_size=COUNT)
    held_out, fitted = torch.from_numpy(tokens), torch.from_numpy(training)
    figures = measuring.measure_loss(model, held_out, None, fitted, options)
    masks = torch.stack(transformer.asked).numpy() == CODES  # what was hidden from it

    def of_masked(measure: Any, values: np.ndarray) -> tuple[float, float]:
        """The mean over images and rounds of the mean over masked tokens, and over all masked tokens."""
        chosen = [(i, round_[i]) for round_ in masks for i in range(COUNT)]
        each = [measure(tokens[i][mask], values[i][mask]) for i, mask in chosen]
        return float(np.mean(each)), float(np.average(each, weights=[mask.sum() for _, mask in chosen]))

    def loss(wanted: np.ndarray, p: np.ndarray) -> float:
        return sklearn.log_loss(wanted, p, labels=codes)

    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    assert (figures["loss"], figures["loss_over_tokens"]) == pytest.approx(of_masked(loss, p), rel=1e-5)
    accuracy = of_masked(sklearn.accuracy_score, logits.argmax(2))[0]
    assert figures["accuracy"] == pytest.approx(accuracy)
    # The fixed distribution: counts of the training tokens at a position, smoothed as its name says.
    amount, prior = figures["smoothing"].split()
    counts = np.stack([np.bincount(column, minlength=CODES) for column in training.T])
    overall = (counts.sum(0) + 1) / (counts.sum() + CODES) if prior == "overall" else np.full(CODES, 1 / CODES)
    fixed = (counts + float(amount) * CODES * overall) / (len(training) + float(amount) * CODES)
    wanted = of_masked(loss, np.broadcast_to(fixed, (COUNT, TOKENS, CODES)))
    assert figures["fixed_loss"] == pytest.approx(wanted[0]) and figures["fixed_loss_over_tokens"] <= wanted[1] + 1e-9
    wanted = of_masked(sklearn.accuracy_score, np.broadcast_to(counts.argmax(1), (COUNT, TOKENS)))
    assert figures["fixed_accuracy"] == pytest.approx(wanted[0])


def test_mean_and_deviation():
    numbers = [3.0, 4.5, 9.0]
    figure = spread(numbers)
    assert figure["mean"] == pytest.approx(5.5) and figure["std"] == pytest.approx(np.std(numbers, ddof=1))
    assert "std" not in spread([3.0])  # one decoding has none


# --- python train.py --------------------------------------------------------------------------------------------------


def test_validation_of_a_tokenizer():
    originals, copies = random_pixels(COUNT, 16, 2), random_pixels(COUNT, 16, 3)

    class Tokenizer(VQGAN):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.config: Any = SimpleNamespace(codebook_size=CODES)

        def encode(self, images: Tensor) -> Tensor:
            return torch.full((len(images), TOKENS), 3)  # a codebook that has collapsed

        def decode(self, tokens: Tensor) -> Tensor:
            return to_tensor(copies) / 127.5 - 1

    config = TokenizerTraining(steps=2)
    task: Any = SimpleNamespace(validation=to_tensor(originals), device=torch.device("cpu"), config=config)
    tracker: Any = SimpleNamespace(add_pictures=lambda *_, **__: None, warn=lambda _: None)
    figures = TokenizerTask.validate(task, Tokenizer(), tracker, 1)
    pairs = list(zip(originals, copies, strict=True))
    assert figures["psnr"] == pytest.approx(np.mean([psnr(a, b) for a, b in pairs]), rel=1e-5)
    assert figures["ssim"] == pytest.approx(np.mean([ssim(a, b) for a, b in pairs]), abs=1e-5)
    assert figures["l1"] == pytest.approx(np.mean(np.abs(originals.astype(float) - copies)) / 127.5, rel=1e-5)
    assert (figures["codes_used"], figures["perplexity"]) == pytest.approx((1 / CODES, 1))


def test_validation_of_a_transformer(monkeypatch: pytest.MonkeyPatch):
    rng, drawn = np.random.default_rng(0), []
    tokens, logits = rng.integers(0, CODES, (COUNT, TOKENS)), rng.normal(0, 2, (COUNT, TOKENS, CODES))

    def masks(count: int, *_: Any, **__: Any) -> Tensor:
        """1, 4, 5, 8, 12 and 16 of 16 tokens: a quarter, half and three quarters belong to what begins there."""
        drawn.append(np.stack([rng.permutation(TOKENS) < n for n in (1, 4, 5, 8, 12, 16)]))
        return torch.from_numpy(drawn[-1])

    class Shard(SimpleNamespace):
        def __len__(self) -> int:
            return COUNT

    monkeypatch.setattr(maskgit.training.validation, "mvtm_masks", masks)
    monkeypatch.setattr(Validation, "_show", lambda *_: None)
    config: Any = SimpleNamespace(validation_rounds=2, validation_images=100, schedule="cosine", eval_every=0)
    architecture: Any = SimpleNamespace(mask_token_id=CODES, num_classes=0)
    held_out: Any = Shard(tokens=tokens[None], labels=np.zeros(COUNT, dtype=np.int64), holes=None)
    engine: Any = SimpleNamespace(autocast=contextlib.nullcontext, device=torch.device("cpu"))
    model, unused = Lookup(torch.from_numpy(logits)), SimpleNamespace()
    validate = Validation(config, architecture, held_out, unused, engine)  # type: ignore[arg-type]
    figures = validate(model, unused, 1)  # type: ignore[arg-type]
    assert np.array_equal(torch.stack(model.asked) == CODES, drawn)
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)

    def pooled(rows: slice) -> tuple[float, float]:
        """Loss and accuracy over all tokens that are masked in some of the images, in both rounds."""
        wanted, given = [], []
        for masked in drawn:
            wanted.append(tokens[rows][masked[rows]])
            given.append(p[rows][masked[rows]])
        truth, shares = np.concatenate(wanted), np.concatenate(given)
        loss = sklearn.log_loss(truth, shares, labels=np.arange(CODES))
        return loss, sklearn.accuracy_score(truth, shares.argmax(1))

    each = [
        sklearn.log_loss(tokens[i][masked[i]], p[i][masked[i]], labels=np.arange(CODES))
        for masked in drawn
        for i in range(COUNT)
    ]
    assert figures["loss"] == pytest.approx(np.mean(each), rel=1e-5)
    assert (figures["token_loss"], figures["accuracy"]) == pytest.approx(pooled(slice(None)), rel=1e-5)
    parts = {"0-25%": slice(0, 1), "25-50%": slice(1, 3), "50-75%": slice(3, 4), "75-100%": slice(4, 6)}
    for name, rows in parts.items():
        got = figures[f"loss at {name} masked"], figures[f"accuracy at {name} masked"]
        assert got == pytest.approx(pooled(rows), rel=1e-5)


# --- python -m maskgit.sweep ---------------------------------------------------------------------------------------


def test_figures_of_a_sweep():
    from maskgit.sweep.making import Images, Judge

    originals, filled = random_pixels(4, 16, 5), random_pixels(4, 16, 6)
    masks = np.random.default_rng(0).random((4, 16, 16)) < 0.3
    judge = Judge([], Images(list(range(4)), to_tensor(originals), masks, None))
    # Each picture counts the same, however large its hole.
    errors = [np.mean((a[m].astype(float) - b[m]) ** 2) for a, b, m in zip(originals, filled, masks, strict=True)]
    figures = judge.figures([Image.fromarray(pixels) for pixels in filled])
    assert figures == pytest.approx({"psnr_in_hole": 10 * math.log10(255**2 / np.mean(errors))}, rel=1e-5)
    equal = judge.figures([Image.fromarray(pixels) for pixels in originals])
    assert equal == pytest.approx({"psnr_in_hole": 106.0206}, abs=1e-3)
