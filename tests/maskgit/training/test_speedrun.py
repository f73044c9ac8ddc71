"""`train.py speedrun`: it ends where the loss is reached, and leaves a line either way."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import maskgit.training.speedrun
from maskgit.training.cli import main
from maskgit.training.settings import TrainingError
from maskgit.training.speedrun import HEADER, TASK, Mark, SpeedrunTraining, seconds_to, speedrun


@pytest.fixture
def tiny(unbroken: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a speedrun over tiny pictures, which here may be asked for."""
    monkeypatch.setattr(maskgit.training.speedrun, "TASK", ())
    changes = {"data": str(pictures), "tokenizer": unbroken["tokenizer"] / "model", "model": "tiny", "device": "cpu"}
    changes |= {"steps": 6, "batch_size": 4, "warmup": 2, "validate_every": 2, "validation_images": 2}
    return changes | {"output": tmp_path / "runs", "record": tmp_path / "record.md"}


def rows(record: Path) -> list[dict[str, str]]:
    names, _, *lines = (
        [cell.strip() for cell in line.strip("|\n").split("|")] for line in record.read_text().splitlines(True)
    )
    return [dict(zip(names, line, strict=True)) for line in lines]


def test_a_line_for_each_run(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskgit.training.speedrun, "GOAL", 1e-3)
    assert "seconds" not in speedrun(SpeedrunTraining(**tiny))
    monkeypatch.setattr(maskgit.training.speedrun, "GOAL", 100.0)
    figures = speedrun(SpeedrunTraining(**tiny | {"lr": 2e-3, "note": "what | was\ntried"}))
    failed, reached = rows(tiny["record"])
    assert (failed["steps"], failed["seconds"], failed["note"]) == ("6", "not reached", "")
    assert (reached["steps"], reached["seconds"]) == ("2", f"{figures['seconds']:.0f}")
    assert reached["note"] == "what / was tried"
    assert "lr 0.002" in reached["changed"] and "lr" not in failed["changed"]
    assert float(reached["loss"]) == pytest.approx(figures["loss"], abs=1e-3)
    assert re.fullmatch(r"[0-9a-f]{7}: 100.0", reached["task"])
    assert reached["task"][:7] == failed["task"][:7]
    # Runs of their own, with the model as it was then, over the same tokens.
    for number, steps in (("1", 6), ("2", 2)):
        folder = tiny["output"] / number
        assert (folder / "model" / "config.json").exists()
        assert json.loads((folder / "validation.json").read_text())["step"] == steps
        assert not (folder / "tokens").exists()
    assert json.loads((tiny["output"] / "tokens" / "train" / "tokens.json").read_text())["views"] == 1


def test_seconds_between_two_validations() -> None:
    marks = [Mark(25, 10.0, 5.0), Mark(50, 20.0, 4.0), Mark(75, 40.0, 3.0)]
    assert seconds_to(3.0, marks) == 40.0
    assert seconds_to(3.25, marks) == 35.0
    assert seconds_to(2.9, marks) is None and seconds_to(2.9, [*marks, Mark(100, 50.0, math.nan)]) is None
    assert seconds_to(5.0, marks[:1]) == 10.0


@pytest.mark.parametrize("name", ["data", "schedule", "validation_rounds", "tokenizer"])
def test_the_task_stays(name: str, tmp_path: Path, capsys: Any) -> None:
    assert name in TASK
    values = {"schedule": "linear", "validation_rounds": "9"}
    option, value = f"--{name.replace('_', '-')}", values.get(name, "elsewhere")
    words = ["speedrun", option, value, "--output", str(tmp_path / "runs"), "--record", str(tmp_path / "record.md")]
    assert main(words) == 1
    assert f"error: {option} {value}: is the speedrun's task, which stays" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"# mine\n", HEADER.encode() + b"| a |\n\nand more\n", b"\xff"])
def test_a_record_of_something_else_stays_as_it_is(content: bytes, tiny: Any) -> None:
    tiny["record"].write_bytes(content)
    with pytest.raises(TrainingError, match=f"--record {re.escape(str(tiny['record']))}: "):
        speedrun(SpeedrunTraining(**tiny))
    assert tiny["record"].read_bytes() == content and not tiny["output"].exists()
