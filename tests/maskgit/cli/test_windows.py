"""inpaint.py on pictures larger than the model: windows, grown and feathered holes, several answers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit.cli.inpaint import main, rate

WIDTH, HEIGHT = 150, 90
HOLE = (slice(20, 60), slice(40, 80))


@pytest.fixture
def arguments(model: Path, tmp_path: Path, images: Path) -> list[str]:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "photo.png")
    hole = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    hole[HOLE] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    files = ["--images", str(images), "--mask", str(tmp_path / "hole.png"), "--output", str(tmp_path / "out")]
    return [*files, "--model", str(model), "--device", "cpu", "--steps", "2"]


def changed(tmp_path: Path, name: str = "photo.png") -> np.ndarray:
    """bool [H, W]: where a result isn't the picture that came in."""
    with Image.open(tmp_path / "images" / "photo.png") as before, Image.open(tmp_path / "out" / name) as after:
        assert before.size == after.size
        return (np.asarray(before) != np.asarray(after)).any(2)


def test_what_was_done_is_said(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    said = re.search(r"filled in 17 windows, in pixels: 1 of 80 \(scale 0.2\), 16 of 20", capsys.readouterr().out)
    assert said
    assert changed(tmp_path)[HOLE].mean() > 0.9 and changed(tmp_path).sum() == changed(tmp_path)[HOLE].sum()
    assert main([*arguments, "--crop", "off"]) == 0
    assert "filled in 1 window, in pixels: 1 of 150 (scale 0.11)" in capsys.readouterr().out
    assert main([*arguments, "--crop", "64"]) == 0
    assert "1 of 80" in capsys.readouterr().out


def test_grown_and_feathered(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--grow", "5", "--feather", "2"]) == 0
    rows, columns = np.nonzero(changed(tmp_path))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 64, 35, 84)


def test_variants(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--variants", "3", "--no-save-steps"]) == 0
    names = {"photo.png", "photo.variant2.png", "photo.variant3.png", "photo.variants.png", "photo.strip.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert "photo.variants.png" in capsys.readouterr().out
    fills = set()
    for name in ("photo.png", "photo.variant2.png", "photo.variant3.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            fills.add(picture.crop((40, 20, 80, 60)).tobytes())
    assert len(fills) == 3
    assert not changed(tmp_path, "photo.variant3.png")[:20].any()
    # A variant can't take the place of a picture of that name.
    (tmp_path / "images" / "photo.variant2.png").write_bytes((tmp_path / "images" / "photo.png").read_bytes())
    assert main([*arguments, "--variants", "2", "--output", str(tmp_path / "out2")]) == 0
    assert len(list((tmp_path / "out2").glob("*.png"))) == 2 * 4 + 1


def test_maps_are_of_the_first_window(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--maps", "--map-at", "95", "50"]) == 0
    assert (tmp_path / "out" / "photo.maps.png").exists()
    assert main([*arguments, "--maps", "--map-at", "140", "50"]) == 1
    where = "--map-at 140 50 is outside of where the model looks, from 20 0 to 100 80; --crop off looks at all"
    assert where in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--crop", "on"], "--crop on: neither auto nor off nor at least 8 pixels"),
        (["--crop", "7"], "--crop 7: neither"),
        (["--crop", "9" * 4000], "neither auto nor off"),
        (["--grow", "-1"], "--grow -1: must be at least 0"),
        (["--feather", "3", "--grow", "2"], "--feather 3 is more than --grow 2"),
        (["--variants", "0"], "--variants 0: must be at least 1"),
        (["--variants", "65"], "--variants 65: at most 64"),
        (["--outpaint", "0", "0", "1", "0", "--variants", "2"], "--outpaint and --mask exclude each other"),
    ],
)
def test_what_makes_no_sense(
    arguments: list[str], options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *options]) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_empty_folder_of_masks(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([*arguments, "--mask", str(tmp_path / "empty")]) == 2
    assert f"--mask {tmp_path / 'empty'}: no masks in this folder" in capsys.readouterr().err


def test_a_folder_that_cant_be_written_is_said_at_once(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "out" and access(path, mode))
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert f"{tmp_path / 'out'}: can't write results there" in error and "loaded in" not in out


def test_files_without_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["my photo.jpg", "hole.png", "--seed", "3"]) == 2
    assert "did you mean --images 'my photo.jpg' --mask hole.png?" in capsys.readouterr().err


def test_the_rate_of_slow_work() -> None:
    assert rate(30, 4.0) == "7.5 images/s" and rate(2, 41.0) == "20.5 s/image"
