"""The scripts that find photographs and measure what is filled in them, on pictures made up here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import find_photographs  # noqa: E402
import measure_photographs  # noqa: E402


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        small.resize((1240, 1210), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg")
    return folder


def test_crops_are_of_all_scales(photographs: Path, tmp_path: Path) -> None:
    find_photographs.crop(sorted(photographs.glob("*.jpg")), tmp_path / "crops", 40, 32)
    names = [path.name for path in (tmp_path / "crops").iterdir()]
    assert len(names) == 40 and sum(name.startswith("a-") for name in names) == 20
    # A crop of a few pixels of the photograph is smooth, one of all of it has edges everywhere.
    steps = []
    for name in names:
        with Image.open(tmp_path / "crops" / name) as crop:
            assert crop.size == (32, 32)
            steps.append(np.abs(np.diff(np.asarray(crop, dtype=float), axis=1)).mean())
    assert max(steps) > 5 * min(steps)


def test_every_photograph_named_is_for_training_or_for_testing() -> None:
    names = [name for those in find_photographs.PHOTOGRAPHS.values() for name in those.split()]
    assert len(names) == len(set(names)) and len(find_photographs.TEST) == 12 and find_photographs.TEST < set(names)


@pytest.mark.slow
def test_measuring(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("cv2")
    torch.manual_seed(0)
    stages = (Stage(8, 1, resample=True), Stage(8, 1, resample=True))
    tokenizer = VQGAN(TokenizerConfig(64, 32, 4, 8, 8, stages, stages, groups=4))
    transformer = Transformer(TransformerConfig(32, 256, dim=32, depth=1, heads=2, mlp_dim=64))
    MaskGIT(tokenizer, transformer, device="cpu").save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--photographs", str(photographs), "--output", str(tmp_path / "out")]
    assert measure_photographs.main([*options, "--kinds", "stamp", "60 pixels", "--steps", "1"]) == 0
    report = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert report["photographs"] == 2 and list(report["figures"]) == ["stamp", "60 pixels"]
    for methods in report["figures"].values():
        assert list(methods) == list(measure_photographs.METHODS)
        # These pictures are smooth, which Telea's way continues better than a model without training.
        assert methods["OpenCV Telea"]["perceptual"] < methods["windows"]["perceptual"]
        assert all(figures["frechet"] > 0 for figures in methods.values())
    assert "| OpenCV Navier-Stokes |" in capsys.readouterr().out
    for name in ("stamp.webp", "60-pixels.webp"):
        with Image.open(tmp_path / "out" / name) as sheet:
            assert sheet.width > 6 * measure_photographs.SHOWN
    assert measure_photographs.main([*options[:2], "--photographs", str(tmp_path)]) == 2
    assert "no photographs; scripts/find_photographs.py fetches them" in capsys.readouterr().err
