"""Crops of photographs: `train.py model` cuts them, at all scales, and trains on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskgit.data import ImageFolder, parts
from maskgit.data.images import in_validation
from maskgit.training import whole
from maskgit.training.cli import main
from maskgit.training.crops import cut_crops
from maskgit.training.pace import Pace

SIZE = 16


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twenty of 320x256 (one of them upright), whose red and green say where a pixel is; blue, in which picture."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    y, x = np.mgrid[:256, :320]
    for number in range(20):
        pixels = np.stack([x * 0.75, y * 0.75, np.full_like(x, 10.0 * number)], axis=2).astype(np.uint8)
        Image.fromarray(pixels if number else pixels.transpose(1, 0, 2)).save(folder / f"{number}.png")
    return folder


def cut(photographs: Path, folder: Path, count: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    splits = [ImageFolder(photographs, SIZE, split, 0.3) for split in ("train", "val")]
    cut_crops(splits, folder, count, 0.3, seed)
    return {path.name: np.asarray(Image.open(path)) for path in folder.iterdir()}


def test_crops_at_all_scales_on_the_side_of_their_photograph(photographs: Path, tmp_path: Path) -> None:
    crops = cut(photographs, tmp_path / "crops")
    assert len(crops) == 2000 and {crop.shape for crop in crops.values()} == {(SIZE, SIZE, 3)}
    held_out = {number for number in range(20) if in_validation(f"{number}.png", 0.3)}
    assert 0 < len(held_out) < 20
    shown: dict[int, int] = {}
    sides = []
    for name, crop in crops.items():
        number = round(crop[..., 2].mean() / 10)
        shown[number] = shown.get(number, 0) + 1
        assert in_validation(name, 0.3) == (number in held_out)
        ramp = crop[SIZE // 2, :, 0 if number else 1].astype(float)
        sides.append((ramp[-2] - ramp[1]) / (SIZE - 3) * SIZE / 0.75)
    assert shown == dict.fromkeys(range(20), 100)
    assert min(sides) < 20 and max(sides) > 230  # of 16 to 256 pixels
    scales = np.log2(np.array(sides) / SIZE) / 4  # uniform in [0, 1]: four octaves
    assert abs(scales.mean() - 0.5) < 4.5 / (12 * 2000) ** 0.5 + 0.01 and abs(scales.std() - 12**-0.5) < 0.02


def test_cut_again_they_are_the_same(photographs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """After an interruption too, of which nothing is taken for all of them; by another seed, they are others."""
    first = cut(photographs, tmp_path / "one", 50)
    real, saved = Image.Image.save, []

    def save(self: Image.Image, *arguments: Any) -> None:
        saved.append(arguments)
        real(self, *arguments) if len(saved) < 20 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        with pytest.raises(ZeroDivisionError):
            cut(photographs, tmp_path / "two", 50)
    assert not (tmp_path / "two").exists()
    again = cut(photographs, tmp_path / "two", 50)
    assert len(first) == 60  # three of each: no photograph has fewer than another
    assert first.keys() == again.keys() and all((first[name] == again[name]).all() for name in first)
    other = cut(photographs, tmp_path / "three", 50, seed=1)
    assert not any((other[name] == crop).all() for name, crop in first.items() if name in other)


def test_a_model_of_crops(photographs: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """By `--recipe photos`: its stages are trained on crops, by its settings, and go on with the same ones."""
    real = parts.write_in_parts
    monkeypatch.setattr(
        "maskgit.data.tokens.write_in_parts",
        lambda file, description, shape, work, processes, device: real(file, description, shape, work, 0, device),
    )
    monkeypatch.setattr(whole, "measure_pace", lambda task, config, engine: Pace(1.0, 0.0))
    words = ["model", "--recipe", "photos", "--data", str(photographs), "--model", "tiny", "--minutes", "0.5"]
    words += ["--output", str(tmp_path / "run"), "--device", "cpu", "--val-fraction", "0.3"]
    train = whole.train_tokenizer
    monkeypatch.setattr(whole, "train_tokenizer", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(words)
    assert "cutting 200 crops of the images" in capsys.readouterr().out
    cut = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "crops").iterdir()}
    assert len(cut) == 200
    monkeypatch.setattr(whole, "train_tokenizer", train)
    assert main(words) == 1 and "already holds a run: go on with --resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "crops").iterdir()} == cut
    for stage in ("tokenizer", "transformer"):
        settings = json.loads((tmp_path / "run" / stage / "run.json").read_text())["settings"]
        assert settings["data"] == str(tmp_path / "run" / "crops") and settings["lr"] == 1e-3
    assert settings["hole_share"] == 0.6 and settings["ema"] == 0.995
    tokens = json.loads((tmp_path / "run" / "tokens" / "train" / "holes.json").read_text())
    assert tokens["views"] == tokens["holes"] == 1
    assert not (tmp_path / "run" / "crops-unfinished").exists()


def test_crops_that_are_not_ours(photographs: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run" / "crops").mkdir(parents=True)
    words = ["model", "--data", str(photographs), "--output", str(tmp_path / "run"), "--crops-a-minute", "1"]
    assert main(words) == 1
    assert f"{tmp_path / 'run' / 'crops'}: is there already: choose another --output" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["crops"]


def test_photographs_must_be_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["model", "--recipe", "photos"]) == 1
    assert "error: photos: no such folder" in capsys.readouterr().err and not list(tmp_path.iterdir())
