"""The command line: one clear line and an exit status instead of a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgit.training.cli import main

ROOT = Path(__file__).resolve().parents[3]


def arguments(stage: str, settings: dict[str, dict[str, Any]], **changes: Any) -> list[str]:
    values = settings[stage] | changes
    return [stage, *(str(x) for name, value in values.items() for x in (f"--{name.replace('_', '-')}", value))]


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run train.py with these arguments, which must fail with status 1, and return its one line."""
    assert main(words) == 1
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in captured.err + captured.out
    return line


@pytest.mark.parametrize(
    "words, message",
    [
        (["tokenizer", "--model", "huge"], "there is no preset 'huge': choose one of embedded, lab,"),
        (["tokenizer", "--lr", "-1"], "--lr -1.0: must be at least 0"),
        (["tokenizer", "--data", "nowhere"], "nowhere: no such folder"),
        (["tokenizer", "--precision", "int4"], "--precision int4"),
        (["transformer", "--schedule", "steep"], "--schedule steep"),
        (["transformer", "--views", "0"], "--views 0"),
        (["transformer", "--tokenizer", "nowhere"], "nowhere"),
    ],
)
def test_bad_values(words: list[str], message: str, capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["decoder"],
        ["tokenizer", "--colour", "red"],
        ["tokenizer", "--steps", "many"],
        ["tokenizer", "--pixel-loss", "l3"],
        ["tokenizer", "--augment.flip", "2"],
        ["transformer", "--augment.crop-scale", "0", "1"],
    ],
)
def test_bad_usage(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and captured.err + captured.out


def test_help(capsys: Any) -> None:
    for words in (["--help"], ["tokenizer", "--help"], ["transformer", "--help"]):
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "--resume" in text and "Mask schedule gamma" in " ".join(text.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
def test_missing_device(capsys: Any, tmp_path: Path) -> None:
    assert "--device cuda: " in failure(capsys, "tokenizer", "--device", "cuda", "--output", str(tmp_path))


def test_output_that_is_a_file(capsys: Any, tmp_path: Path, settings: dict) -> None:
    file = tmp_path / "file"
    file.touch()
    assert str(file) in failure(capsys, *arguments("tokenizer", settings, output=file))
    assert str(file) in failure(capsys, *arguments("tokenizer", settings, output=file / "run"))


def test_a_run_and_its_damaged_checkpoint(capsys: Any, tmp_path: Path, settings: dict) -> None:
    words = arguments("tokenizer", settings, output=tmp_path, steps=2, perceptual="none", save_every=1)
    assert main(words) == 0
    assert "psnr" in capsys.readouterr().out
    assert "already holds a run" in failure(capsys, *words)
    assert "lr (was 0.005, now 0.1)" in failure(capsys, *words, "--resume", "--lr", "0.1")
    damaged = tmp_path / "checkpoints" / "step-000000002" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert f"{damaged}: the checkpoint can't be read" in failure(capsys, *words, "--resume")
    assert main([*words, "--resume", "--log-every", "5"]) == 1
    for path in damaged.parent.iterdir():  # what the message says
        path.unlink()
    damaged.parent.rmdir()
    assert main([*words, "--resume"]) == 0


def test_an_interruption(capsys: Any, tmp_path: Path, settings: dict, monkeypatch: Any) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("maskgit.training.tokenizer.TokenizerTask.training_step", interrupt)
    assert main(arguments("tokenizer", settings, output=tmp_path)) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err


def test_the_script() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "tokenizer", "--steps", "0"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: --steps 0: must be at least 1")
    assert "Traceback" not in done.stderr


def test_help_whose_reader_has_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "transformer", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
