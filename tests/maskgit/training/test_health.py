"""What goes wrong is said, once and in words that lead on; what goes well is not remarked upon."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_train import TASKS
from torch import Tensor

from maskgit.training import health
from maskgit.training.cli import main
from maskgit.training.health import Checked, length_warnings, less_memory, overfitting, settled
from maskgit.training.settings import LoopConfig, TokenizerTraining, TrainingError, TransformerTraining
from maskgit.training.tracking import Tracker

# --- the length of a run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, batch, steps, words",
    [
        (5367, 32, 5000, []),
        (5367, 16, 20_000, []),
        (1_281_167, 512, 755_200, []),
        (100, 100, 1, []),
        (100, 100, 1000, []),
        (40, 64, 10, ["a step of 64 images", "lower --batch-size to 40 or less"]),
        (5367, 16, 20, ["0.06 epochs of the 5,367", "336 would show each once (--steps"]),
        (30, 10, 3001, ["1,000 epochs of the 30", "300 for 100 epochs"]),
    ],
)
def test_the_length_of_a_run(images: int, batch: int, steps: int, words: list[str]) -> None:
    found = length_warnings(images, LoopConfig(batch_size=batch, steps=steps))
    assert len(found) == bool(words) and all(word in found[0] for word in words)


def test_it_is_said_at_the_start_and_not_again(run: Any, tmp_path: Path, capsys: Any) -> None:
    short: dict[str, Any] = {"perceptual": "none", "adversarial_weight": 0.0, "validation_images": 2}
    run("tokenizer", tmp_path, steps=2, **short)
    assert "warning: 2 steps of 4 images are 0.32 epochs of the 25 training images" in capsys.readouterr().out
    run("tokenizer", tmp_path, steps=2, resume=True, **short)
    assert "epochs" not in capsys.readouterr().out


# --- pictures, codes, losses ------------------------------------------------------------------------------------------


def test_when_a_run_can_be_judged() -> None:
    config = LoopConfig(steps=20_000, warmup=100)
    assert [settled(step, config) for step in (500, 999, 1000)] == [False, False, True]
    assert not settled(500, dataclasses.replace(config, steps=5000, warmup=400))
    assert [settled(step, dataclasses.replace(config, steps=60)) for step in (50, 60)] == [False, True]


def test_contrast() -> None:
    originals = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    means = originals.mean((2, 3), keepdim=True)
    assert health.one_colour(means + 0.3 * (originals - means), originals) is None  # pale, but pictures
    assert "have 5.0% of the originals' contrast" in (
        health.one_colour(means + 0.05 * (originals - means), originals) or ""
    )
    flat = means.expand_as(originals)
    assert health.one_colour(flat, flat) is None  # where nothing was to be seen


def test_codes_of_fills() -> None:
    originals = torch.arange(256) % 64
    assert health.few_codes(originals % 16, originals, 64) is None
    assert "perplexity is 1.0, and that of the originals 64.0" in (
        health.few_codes(torch.full((256,), 7), originals, 64) or ""
    )
    assert health.few_codes(torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64), 64) is None


def test_a_guess_by_frequency() -> None:
    """Near the entropy where both have the same frequencies; a code that was never seen is possible."""
    rng, shares = np.random.default_rng(0), np.array([0.5, 0.25, 0.125, 0.125])
    seen, tokens = (torch.from_numpy(rng.choice(4, 20_000, p=shares)) for _ in range(2))
    assert health.guess_by_frequency(seen, tokens, 4) == pytest.approx(1.75 * math.log(2), rel=0.01)
    assert health.guess_by_frequency(torch.zeros(98, dtype=torch.int64), torch.tensor([1]), 2) == pytest.approx(
        math.log(100)
    )


def checks(validated: list[float], trained: list[float]) -> list[Checked]:
    return [Checked(500 * (i + 1), a, b) for i, (a, b) in enumerate(zip(validated, trained, strict=True))]


def test_overfitting() -> None:
    falling = [4.0, 3.5, 3.0, 2.5, 2.0, 1.5]
    text = overfitting(checks([3.9, 3.6, 3.5, 3.7, 3.8, 3.9], falling), "loss", "take more images")
    assert text is not None and "from 3.5 at step 1500 to 3.9" in text and "fell from 3 to 1.5" in text
    assert overfitting(checks([3.9, 3.6, 3.5, 3.7, 3.8], falling[:5]), "loss", "") is None  # may still turn
    assert overfitting(checks([3.9, 3.6, 3.5, 3.7, 3.55, 3.8], falling), "loss", "") is None  # noise
    assert overfitting(checks([3.9, 3.6, 3.5, 3.7, 3.8, 3.9], falling[::-1]), "loss", "") is None  # gone astray


def test_noise_is_no_overfitting() -> None:
    """A thousand runs that have come to rest, with a percent of noise in each figure."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        validated, trained = 3 + 0.03 * rng.standard_normal((2, 20))
        series = checks(validated.tolist(), trained.tolist())
        assert all(overfitting(series[:n], "loss", "") is None for n in range(1, 21))


def test_each_kind_is_said_once_until_it_is_over(tmp_path: Path, capsys: Any) -> None:
    tracker = Tracker(LoopConfig(output=tmp_path), 0, write=False)
    for text in ("first", "second", None, "third"):
        tracker.warn({"a": text, "b": "other"})
    assert capsys.readouterr().out.split("\n") == ["warning: first", "warning: other", "warning: third", ""]


# --- planted faults, and none -----------------------------------------------------------------------------------------

LONG = {"steps": 60, "batch_size": 8, "save_every": 100, "validate_every": 30, "precision": "float32"}
PLAIN: dict[str, dict[str, Any]] = {
    "tokenizer": LONG | {"perceptual": "none", "adversarial_weight": 0.0},
    "transformer": LONG | {"dropout": 0.0},
}


@pytest.mark.parametrize("stage", TASKS)
def test_a_healthy_run_and_one_that_learns_nothing(
    stage: str, run: Any, unbroken: Any, tmp_path: Path, capsys: Any
) -> None:
    run(stage, tmp_path / "healthy", **PLAIN[stage])
    assert "warning:" not in capsys.readouterr().out
    run(stage, tmp_path / "stalled", **PLAIN[stage] | {"lr": 1e-9})
    assert capsys.readouterr().out.count("warning: nothing has been learned yet: the loss is ") == 1


@pytest.mark.parametrize("loss, flat", [("l1", True), ("l2", False)])
def test_reconstructions_of_one_colour(loss: str, flat: bool, run: Any, tmp_path: Path, capsys: Any) -> None:
    """Of pictures that are dark but for a small square, dark ones have the least absolute error."""
    run("tokenizer", tmp_path, **PLAIN["tokenizer"] | {"steps": 200, "validate_every": 200, "pixel_loss": loss})
    assert ("warning: the reconstructions are of one colour each: they have " in capsys.readouterr().out) == flat


def test_fills_of_one_code(run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(
        "maskgit.training.validation.Validation.fill", lambda self, model, samples: torch.zeros_like(samples.tokens)
    )
    monkeypatch.setattr(health, "FEW_CODES", 0.5)  # of pictures of so few codes
    run("transformer", tmp_path, steps=1)
    assert "warning: the fills repeat a few codes" in capsys.readouterr().out


# --- out of memory ----------------------------------------------------------------------------------------------------


def on_a_gpu() -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def on_the_host() -> Tensor:
    return torch.empty(2**50, dtype=torch.uint8)  # PyTorch's own error


@pytest.mark.parametrize("allocate", [on_a_gpu, on_the_host])
@pytest.mark.parametrize("dry", [False, True])
def test_out_of_memory(
    allocate: Any, dry: bool, settings: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(TASKS["transformer"], "training_step", lambda *_: allocate())
    values = settings["transformer"] | {"output": tmp_path / "run"}
    words = [str(x) for name, value in values.items() for x in (f"--{name.replace('_', '-')}", value)]
    assert main(["transformer", *words, *["--dry-run"] * dry]) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert "error: out of memory: a step of 4 images, 4 at a time, takes more than cpu has free of its " in line
    assert "--accumulate 2 (the same step, in more parts), --activation-checkpointing, or a lower --batch-size" in line
    assert "Traceback" not in captured.err


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="^size mismatch$"):
        with health.out_of_memory_said(LoopConfig(), torch.device("cpu")):
            raise RuntimeError("size mismatch")
    with pytest.raises(TrainingError, match="^--lr"):
        with health.out_of_memory_said(LoopConfig(), torch.device("cpu")):
            raise TrainingError("--lr")


def test_options_that_take_less_memory() -> None:
    config = TransformerTraining(batch_size=24, accumulate=2, precision="float32")
    found = ["--precision bf16", "--accumulate 3 (the same step, in more parts)", "--activation-checkpointing"]
    assert less_memory(config) == [*found, "or a lower --batch-size"]
    assert less_memory(dataclasses.replace(config, batch_size=8), processes=8) == [
        "--precision bf16",
        "--activation-checkpointing",
        "--fsdp",
        "or a smaller --model or --image-size",
    ]
    of_tokenizer = less_memory(TokenizerTraining(batch_size=7, precision="bf16"))
    assert of_tokenizer == [
        "--accumulate 7 (the same step, in more parts)",
        "or a lower --batch-size (of `train.py model`: --tokenizer-batch-size)",
    ]
