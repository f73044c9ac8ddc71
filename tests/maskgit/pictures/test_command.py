"""python -m maskgit.pictures from the outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from maskgit.decoding.schedules import SCHEDULES
from maskgit.pictures import __main__ as command


def test_help_names_all_schedules(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert command.main(["--help"]) == 0
    assert f"Which to compare: {', '.join(SCHEDULES)}. (default:" in " ".join(capsys.readouterr().out.split())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--schedules", "linear", "square", "--steps", "2", "--device", "cpu", "--output", str(tmp_path)]
    assert command.main([*arguments, "--animation", "webp"]) == 0
    files = {"evolution.png", "evolution.webp", "linear.strip.png", "square.strip.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    out = capsys.readouterr().out
    assert str(tmp_path) in out and all(name in out for name in files)
    # One picture has both; a schedule has a strip for itself, of original, hole, two steps and result.
    with Image.open(tmp_path / "linear.strip.png") as picture:
        assert 5 * 128 < picture.width < 6 * 128
    with Image.open(tmp_path / "evolution.png") as picture:
        assert picture.height > 4 * 128
    with Image.open(tmp_path / "evolution.webp") as moving:
        assert moving.n_frames == 4
    wrong = (
        (["missing.png"], "no such file"),
        (["--model", "missing"], "no such model"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--schedules", "linear", "sine"], "schedule must be one of cosine"),
        (["--schedules"], "--schedules: name at least one"),
        (["--mask", "circle"], "--mask circle: no such file, and not one of center"),
        (["--output", __file__], "can't write pictures there"),
    )
    for wrong_arguments, reason in wrong:
        assert command.main([*arguments, *wrong_arguments]) == 1
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1 and reason in error[0]
    assert command.main(["--steps", "many"]) == 2


def test_the_command_replaces_neither_image_nor_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.MaskGIT, "from_pretrained", lambda *args, **options: pytest.fail("work was done"))
    Image.new("RGB", (8, 8), "red").save("evolution.png")
    Image.new("L", (8, 8), 255).save("mask.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "square.strip.png").symlink_to("../mask.png")
    cases = (
        (["evolution.png", "--output", "."], "evolution.png"),
        (["evolution.png", "--mask", "mask.png", "--output", "out"], "mask.png"),
    )
    for arguments, name in cases:
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
        assert command.main(arguments) == 2
        assert capsys.readouterr().err == (f"error: {name} would be replaced by a picture; choose another --output\n")
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == before
