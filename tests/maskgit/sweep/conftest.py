"""Tiny models and pictures, and no real networks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit.sweep import __main__ as command

sys.path.insert(0, str(Path(__file__).parent))  # for the module that tests share
from tiny_sweep import TinyFeatures, save_model  # noqa: E402


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), 0, ["cats", "dogs"])


@pytest.fixture(scope="module")
def classless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("classless"), 1, [])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth random pictures of two classes; about a tenth of them is held out."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng()
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for i in range(40):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((20, 20), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def tiny_features(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No real network, and no weights for the FID."""
    monkeypatch.setattr(command, "EfficientNetFeatures", TinyFeatures)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))
