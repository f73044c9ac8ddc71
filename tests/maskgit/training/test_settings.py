"""Settings that can't be, and those that a run is known by."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from maskgit.training.run_file import changed_settings, run_settings, settings_from_json, settings_to_json
from maskgit.training.settings import LoopConfig, TokenizerTraining, TrainingError, TransformerTraining


def config(**changes: object) -> LoopConfig:
    values = {"output": Path("out"), "steps": 20, "batch_size": 4, "lr": 1e-3}
    return LoopConfig(**(values | changes))  # type: ignore[arg-type]


def test_settings_that_count() -> None:
    settings = run_settings(TokenizerTraining())
    assert {"lr", "seed", "batch_size", "steps", "data", "augment", "precision"} <= settings.keys()
    assert settings.keys().isdisjoint({"output", "workers", "resume", "save_every", "device"})
    assert settings["augment"]["crop_scale"] == [0.8, 1.0]
    assert changed_settings(settings, TokenizerTraining(workers=2, accumulate=4)) == []
    assert changed_settings(settings, TokenizerTraining(lr=1.0)) == ["lr (was 0.001, now 1.0)"]


def test_settings_that_an_older_release_did_not_have() -> None:
    settings = run_settings(TokenizerTraining())
    del settings["augment"], settings["compile"]
    assert changed_settings(settings, TokenizerTraining()) == []
    assert changed_settings(settings, TokenizerTraining(compile=True)) == ["compile (was False, now True)"]
    assert changed_settings(settings | {"gone": 1}, TokenizerTraining()) == ["gone (was 1, now None)"]


def test_settings_that_this_release_has_no_more() -> None:
    settings = run_settings(TokenizerTraining())
    assert changed_settings(settings | {"one_per_family": False}, TokenizerTraining()) == []
    assert changed_settings(settings | {"one_per_family": True}, TokenizerTraining()) == [
        "one_per_family (was True, now None)"
    ]
    values = settings_to_json(TokenizerTraining())
    assert settings_from_json(TokenizerTraining, values | {"one_per_family": False}) == (TokenizerTraining(), [])
    with pytest.raises(ValueError, match="no setting one_per_family"):
        settings_from_json(TokenizerTraining, values | {"one_per_family": True})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"keep": 0}, "--keep 0"),
        ({"lr": -1e-3}, "--lr -0.001: must be at least 0"),
        ({"lr": math.nan}, "--lr nan"),
        ({"clip": math.inf}, "--clip inf"),
        ({"warmup": -1}, "--warmup -1"),
        ({"seed": -1}, "--seed -1"),
        ({"workers": -1}, "--workers -1"),
        ({"beta1": 1.0}, r"--beta1 1.0: must be in \[0, 1\)"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"val_fraction": 0.0}, "--val-fraction 0.0: must be between 0 and 1"),
        ({"steps": 10**9}, "--steps 1000000000: must be at most 999999999"),  # a checkpoint's name has nine digits
        ({"seed": 10**13 + 1}, "--seed 10000000000001: must be at most 10000000000000"),
        ({"precision": "int8"}, "--precision int8: must be one of auto, bf16, fp16, float32"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
    ],
)
def test_impossible_settings(changes: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    "stage, changes, message",
    [
        (TokenizerTraining, {"validation_images": 0}, "--validation-images 0"),
        (TokenizerTraining, {"adversarial_weight": -1.0}, "--adversarial-weight -1.0"),
        (TransformerTraining, {"views": 0}, "--views 0: must be at least 1"),
        (TransformerTraining, {"validation_rounds": 0}, "--validation-rounds 0"),
        (TransformerTraining, {"dropout": 1.5}, "--dropout 1.5"),
        (TransformerTraining, {"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        (TransformerTraining, {"schedule": "steep"}, "--schedule steep: .*cosine, linear"),
        (TransformerTraining, {"lr": -1.0}, "--lr -1.0"),
    ],
)
def test_impossible_settings_of_a_stage(stage: type, changes: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        stage(**changes)
