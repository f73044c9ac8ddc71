"""`--hole-masks`: runs, shards and validation whose holes are masks of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_train import as_words, assert_same_run, failure, watch_training

from maskgit.data import DataError
from maskgit.data.tokens import HIDDEN
from maskgit.training import validation, whole
from maskgit.training.cli import main
from maskgit.training.pace import Pace
from maskgit.training.run_file import changed_settings, run_settings
from maskgit.training.settings import TransformerTraining

CELLS = ({0, 1, 2}, {7, 11})
"""The tokens that the two masks hide: of 4x4, row by row."""


def save(folder: Path, name: str, rows: slice, columns: slice) -> None:
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[rows, columns] = 255
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    save(tmp_path / "masks", "a.png", slice(1, 3), slice(2, 9))
    save(tmp_path / "masks", "b.png", slice(6, 9), slice(13, 15))
    return tmp_path / "masks"


def cells(inside: torch.Tensor | np.ndarray) -> list[set[int]]:
    """The numbers of the tokens where bool [n, N] is True."""
    return [set(np.flatnonzero(row)) for row in inside]


def hidden(shard: Path) -> list[set[int]]:
    """Of all holes of a shard: first those of all its plain views."""
    return cells(np.load(shard / "holes.npy").reshape(-1, 16) == HIDDEN)


# --- training and validation ------------------------------------------------------------------------------------------


def test_trained_and_validated_in_these_holes(
    run: Any, unbroken: Any, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is masked, in a step, in the loss in holes, and in the pictures of the Fréchet distance."""
    monkeypatch.setattr(validation, "efficientnet_lite0", torch.nn.Identity)
    monkeypatch.setattr(validation.Validation, "_features", lambda self, tokens: tokens.double())
    judged: list[tuple[list[set[int]], list[set[int]]]] = []
    losses = validation.Validation.losses

    def watched(self: Any, model: Any, samples: Any) -> torch.Tensor:
        if not samples.candidates.all():
            judged.append((cells(samples.candidates), cells(self.judged.candidates)))
        return losses(self, model, samples)

    monkeypatch.setattr(validation.Validation, "losses", watched)
    seen = watch_training(monkeypatch)
    changes = {"hole_masks": masks, "hole_share": 0.999999, "validation_rounds": 1, "eval_every": 1}
    figures = run("transformer", tmp_path / "run", steps=1, validate_every=1, **changes)
    assert {"loss in holes", validation.DISTANCE} <= figures.keys()
    for split in ("train", "val"):
        drawn = hidden(tmp_path / "run" / "tokens" / split)
        assert all(hole in CELLS for hole in drawn) and all(hole in drawn for hole in CELLS)
    masked = cells(seen["held"] == 16)
    assert len(masked) == 4 and all(chosen and any(chosen <= hole for hole in CELLS) for chosen in masked)
    # The first holes of the held-out images' plain views, in both.
    count = np.load(tmp_path / "run" / "tokens" / "val" / "labels.npy").size
    first = hidden(tmp_path / "run" / "tokens" / "val")[:count]
    assert judged == [(first, first)]


def test_a_run_goes_on_exactly_with_its_masks_only(run: Any, unbroken: Any, masks: Path, tmp_path: Path) -> None:
    options = {"hole_share": 0.5, "min_lr": 5e-3, "save_every": 2, "validate_every": 4}
    run("transformer", tmp_path / "whole", hole_masks=masks, steps=4, **options)
    run("transformer", tmp_path / "parts", hole_masks=masks, steps=2, **options)
    run("transformer", tmp_path / "parts", hole_masks=masks, steps=4, resume=True, **options)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    before = (tmp_path / "parts" / "tokens" / "train" / "holes.npy").read_bytes()

    def go_on(folder: Path | None) -> None:
        run("transformer", tmp_path / "parts", hole_masks=folder, steps=5, resume=True, **options)

    copy = Path(shutil.copytree(masks, tmp_path / "copy"))
    with pytest.raises(RuntimeError, match=rf"hole_masks \(was {masks}, now {copy}\)"):
        go_on(copy)
    with pytest.raises(RuntimeError, match=rf"hole_masks \(was {masks}, now None\)"):
        go_on(None)
    save(masks, "b.png", slice(6, 9), slice(0, 3))
    with pytest.raises(DataError, match="holes.npy: is there already, made with other masks; choose another"):
        go_on(masks)
    assert (tmp_path / "parts" / "tokens" / "train" / "holes.npy").read_bytes() == before
    shutil.rmtree(masks)
    with pytest.warns(UserWarning, match=f"--hole-masks: {masks} is gone; going on with {copy}"):
        go_on(copy)  # as they were, in another place


def test_runs_of_older_releases_had_none() -> None:
    settings = run_settings(TransformerTraining(hole_share=0.5))
    del settings["hole_masks"]
    assert changed_settings(settings, TransformerTraining(hole_share=0.5)) == []
    (change,) = changed_settings(settings, TransformerTraining(hole_share=0.5, hole_masks=Path("masks")))
    assert change == "hole_masks (was None, now masks)"


# --- shards -----------------------------------------------------------------------------------------------------------


def test_shards_of_these_holes(
    here: None, run: Any, unbroken: Any, pictures: Path, masks: Path, tmp_path: Path, capsys: Any
) -> None:
    """The same as a run makes by itself; and a run can make sure of them."""
    shards = tmp_path / "shards"
    places = {"tokenizer": unbroken["tokenizer"] / "model", "data": pictures, "device": "cpu"}
    words = ["tokens", *as_words(places | {"output": shards, "holes": 2, "views": 3})]
    assert main([*words, "--hole-masks", str(masks)]) == 0
    run("transformer", tmp_path / "run", steps=1, hole_share=0.5, hole_masks=masks)
    for split in ("train", "val"):
        ours, theirs = ((folder / split / "holes.npy").read_bytes() for folder in (shards, tmp_path / "run" / "tokens"))
        assert ours == theirs
    assert "made with other kinds" in failure(capsys, *words)
    with_tokens = {"tokens": shards, "data": "gone", "hole_share": 0.5, "steps": 1}
    run("transformer", tmp_path / "a", **with_tokens)
    run("transformer", tmp_path / "b", **with_tokens, hole_masks=masks)
    save(masks, "c.png", slice(0, 1), slice(0, 1))
    with pytest.raises(DataError, match="train.holes.npy: its holes come from other masks; leave --hole-masks out"):
        run("transformer", tmp_path / "c", **with_tokens, hole_masks=masks)
    assert "made with other masks" in failure(capsys, *words, "--hole-masks", masks)


# --- before any work --------------------------------------------------------------------------------------------------


def test_masks_are_looked_at_first(
    run: Any, unbroken: Any, pictures: Path, masks: Path, tmp_path: Path, capsys: Any
) -> None:
    save(tmp_path / "black", "a.png", slice(0), slice(0))
    output = tmp_path / "run"
    for command, needed in (("transformer", "hole_share"), ("tokens", "holes")):
        places = {"tokenizer": unbroken["tokenizer"] / "model", "data": pictures, "output": output}
        words = [command, *as_words(places), "--hole-masks"]
        enough = [f"--{needed.replace('_', '-')}", "1" if command == "tokens" else "0.5"]
        assert f"--hole-masks {masks}: needs {enough[0]}" in failure(capsys, *words, masks)
        with pytest.warns(UserWarning, match="hides nothing"):
            assert "none of its 1 masks can be used" in failure(capsys, *words, tmp_path / "black", *enough)
        assert "lies in --data" in failure(capsys, *words, pictures / "above", *enough)
    assert not any((output / name).exists() for name in ("tokens", "train", "val"))
    settings = {"hole_share": 0.5, "hole_masks": masks, "steps": 1}
    for inside in (masks, masks / "run"):
        with pytest.raises(RuntimeError, match="lies in --hole-masks .*, where its pictures would be taken for masks"):
            run("transformer", inside, **settings)
    assert sorted(path.name for path in masks.iterdir()) == ["a.png", "b.png"]


def test_a_dry_run_counts_them(unbroken: Any, pictures: Path, masks: Path, tmp_path: Path, capsys: Any) -> None:
    places = {"tokenizer": unbroken["tokenizer"] / "model", "data": pictures, "output": tmp_path / "run"}
    words = as_words(places | {"model": "tiny", "hole_share": 0.5, "hole_masks": masks, "batch_size": 2})
    assert main(["transformer", *words, "--dry-run", "--device", "cpu"]) == 0
    assert f"holes    of 2 masks ({masks})" in capsys.readouterr().out and not (tmp_path / "run").exists()


# --- train.py model ---------------------------------------------------------------------------------------------------


def test_a_whole_model(
    here: None, pictures: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(whole, "measure_pace", lambda *_: Pace(1.0, 2.0))
    output = tmp_path / "run"
    options = {"data": pictures, "model": "tiny", "device": "cpu", "minutes": 1, "batch_size": 4}
    words = ["model", *as_words(options | {"tokenizer_batch_size": 4})]
    with monkeypatch.context() as patch:
        patch.setattr(whole, "train_tokenizer", lambda _: 1 / 0)
        (tmp_path / "r.toml").write_text("[model]\n[tokenizer]\n[transformer]\nhole_share = 0.0\n")
        recipe = ["--recipe", tmp_path / "r.toml"]
        for dry in ([], ["--dry-run"]):
            line = failure(capsys, *words, "--output", output, "--hole-masks", masks, *recipe, *dry)
            assert f"--hole-masks {masks}: --recipe {tmp_path / 'r.toml'} trains without holes" in line
        bad = {"nowhere": "no such folder", pictures: "lies in --data"}
        for folder, why in bad.items():
            assert why in failure(capsys, *words, "--output", output, "--hole-masks", folder)
        line = failure(capsys, *words, "--output", masks / "run", "--hole-masks", masks)
        assert "lies in --hole-masks" in line and not output.exists()
    assert main([*words, "--output", str(output), "--hole-masks", str(masks)]) == 0
    assert all(hole in CELLS for hole in hidden(output / "tokens" / "train"))
    settings = json.loads((output / "transformer" / "run.json").read_text())["settings"]
    assert settings["hole_masks"] == str(masks) and settings["hole_share"] == 0.5
    # Another start may find the same folder by another path, but not another folder.
    again = [*words, "--output", str(output), "--resume", "--hole-masks"]
    assert main([*again, f"{masks}/../masks"]) == 0
    copy = shutil.copytree(masks, tmp_path / "copy")
    assert f"hole_masks (was {masks}, now {copy})" in failure(capsys, *again, copy)
