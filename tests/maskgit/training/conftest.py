"""Tiny presets, tiny pictures, and a run of each stage that everything else is compared with."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import maskgit.training.tokenizer
from maskgit.config import PRESETS, ModelConfig, TokenizerConfig, TransformerConfig
from maskgit.data import parts as parts_module
from maskgit.tokenizer.losses import PERCEPTUAL_NETWORKS, PatchDiscriminator
from maskgit.tokenizer.quantizer import CodebookTracker
from maskgit.training.settings import TokenizerTraining, TransformerTraining
from maskgit.training.tokenizer import train_tokenizer
from maskgit.training.transformer import train_transformer

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that tests share
from tiny_train import make_pictures  # noqa: E402

STAGES = ("tokenizer", "transformer")
STEPS, SAVED = 8, 5  # of the unbroken run, and at which it has a checkpoint on the way

Run = Callable[..., dict[str, float]]
"""run(stage, output, **changes): train a stage with the settings of the unbroken run."""


@pytest.fixture(scope="session", autouse=True)
def tiny_presets(tiny_tokenizer_config: TokenizerConfig, tiny_transformer_config: TransformerConfig) -> Iterator[None]:
    """Presets `tiny` and `tiny-classes`, a small discriminator, and a perceptual network that needs no download."""
    config = dataclasses.replace(tiny_transformer_config, attention_dropout=0.1)
    stand_in = lambda: nn.ModuleList([nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())])  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", ModelConfig(tiny_tokenizer_config, config))
        classes = dataclasses.replace(config, num_classes=1000)
        patch.setitem(PRESETS, "tiny-classes", ModelConfig(tiny_tokenizer_config, classes))
        patch.setitem(PERCEPTUAL_NETWORKS, "vgg16", stand_in)
        patch.setattr(
            maskgit.training.tokenizer, "PatchDiscriminator", lambda: PatchDiscriminator(channels=8, layers=1)
        )
        # Codes die faster than usual: eight steps must see it.
        patch.setattr(
            maskgit.training.tokenizer,
            "CodebookTracker",
            lambda codebook: CodebookTracker(codebook, decay=0.5, dead_fraction=0.2),
        )
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 15 pictures: a bright square on a dark ground, in the first class above and red."""
    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder)
    return folder


COMMON = {
    "steps": STEPS,
    "batch_size": 4,
    "lr": 5e-3,
    "warmup": 2,
    "ema": 0.9,
    "device": "cpu",
    "log_every": 1,
    "validate_every": 4,
    "save_every": SAVED,
}
"""A checkpoint in mid-epoch: 27 pictures or so are left for training."""


@pytest.fixture(scope="session")
def settings(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Settings of each stage: all losses, dropout, averaging and augmentation on; stage 2 in bf16 and with classes."""
    tokenizer = tmp_path_factory.getbasetemp() / "unbroken-tokenizer"
    losses = {"perceptual": "vgg16", "adversarial_weight": 0.5, "adversarial_start": 2}
    first = COMMON | {"data": str(pictures), "model": "tiny", "precision": "float32"} | losses
    second = COMMON | {"data": str(pictures), "model": "tiny-classes", "tokenizer": tokenizer / "model", "views": 3}
    second["precision"] = "bf16"
    return {"tokenizer": first, "transformer": second}


@pytest.fixture(scope="session")
def run(settings: dict[str, dict[str, Any]]) -> Run:
    def run(stage: str, output: Path, **changes: Any) -> dict[str, float]:
        values = settings[stage] | {"output": output} | changes
        if stage == "tokenizer":
            return train_tokenizer(TokenizerTraining(**values))
        return train_transformer(TransformerTraining(**values))

    return run


@pytest.fixture(scope="session")
def unbroken(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders of a run of each stage, from start to end."""
    folders = {stage: tmp_path_factory.getbasetemp() / f"unbroken-{stage}" for stage in STAGES}
    torch.set_num_threads(1)
    for stage, folder in folders.items():
        run(stage, folder)
    return folders


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes: that their number makes no difference is tested where the shards are."""
    real = parts_module.write_in_parts
    monkeypatch.setattr(
        "maskgit.data.tokens.write_in_parts",
        lambda file, description, shape, work, processes, device: real(file, description, shape, work, 0, device),
    )
