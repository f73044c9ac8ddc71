"""Pictures before the first validation: when, and that they change nothing of what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_train import STAGES, as_words, assert_same_run, finish, start

from maskgit.training import loop
from maskgit.training.loop import shows_early
from maskgit.training.settings import LoopConfig
from maskgit.training.tracking import Speed, Tracker

FILES = {"tokenizer": "reconstructions.png", "transformer": "inpaintings.png"}


def test_when() -> None:
    def steps(**changes: int) -> list[int]:
        config = LoopConfig(**changes)  # type: ignore[arg-type]
        return [step for step in range(1, 10_001) if shows_early(step, config)]

    assert steps(steps=20_000, validate_every=500) == [10, 30, 100, 300]
    assert steps(steps=10**6, validate_every=5000) == [10, 30, 100, 300, 1000, 3000]
    assert steps(steps=30, validate_every=500) == [10]  # the validation at the end shows it
    assert steps(steps=300, validate_every=10) == []


@pytest.mark.parametrize("stage", STAGES)
def test_they_change_nothing(
    stage: str, run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    shown, restarted = [], []
    add, restart = Tracker.add_pictures, Speed.restart

    def add_pictures(self: Any, name: str, images: Any, step: int, **options: Any) -> None:
        add(self, name, images, step, **options)
        shown.append((step, len(images), (tmp_path / "shown" / options["file"]).exists()))

    changes: dict[str, Any] = {"steps": 12, "validate_every": 100, "save_every": 100, "log_every": 5}
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "add_pictures", add_pictures)
        patch.setattr(Speed, "restart", lambda self, step: (restarted.append(step), restart(self, step))[1])
        run(stage, tmp_path / "shown", **changes)
    of_images = {"tokenizer": 2, "transformer": 3}[stage]  # pictures of each
    assert shown[0] == (10, 4 * of_images, True) and [step for step, *_ in shown] == [10, 12]
    assert restarted.count(10) == 2  # for the log, and for the time that the picture took
    out = capsys.readouterr().out
    assert out.count(f"step 10: pictures of what it can do so far: {tmp_path / 'shown' / FILES[stage]}") == 1
    assert out.count("pictures of what it can do") == 1
    monkeypatch.setattr(loop, "shows_early", lambda *_: False)
    run(stage, tmp_path / "not", **changes)
    assert_same_run(tmp_path / "shown", tmp_path / "not")


@pytest.mark.parametrize("shared", [["--fsdp"], []])
def test_of_two_processes(shared: list[str], unbroken: Any, pictures: Path, tmp_path: Path) -> None:
    """The others wait, also where each has a part of the weights."""
    options = {"data": pictures, "tokenizer": unbroken["tokenizer"] / "model", "output": tmp_path, "model": "tiny"}
    options |= {"steps": 11, "batch_size": 4, "device": "cpu", "precision": "float32", "views": 1}
    stderr = tmp_path.with_suffix(".txt")
    assert finish(start(["transformer", *as_words(options), *shared], 2, stderr)) == [0, 0], stderr.read_text()
    assert (tmp_path / "inpaintings.png").exists()
