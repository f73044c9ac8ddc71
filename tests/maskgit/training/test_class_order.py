"""A run, a shard and a model keep the numbers of their classes, in whatever order the folders come now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_train import assert_same_run

import maskgit.data.images
import maskgit.data.parts
from maskgit import MaskGIT
from maskgit.data import load_dataset
from maskgit.metrics.card import __main__ as card
from maskgit.metrics.card.measuring import Options as CardOptions
from maskgit.metrics.held_out import load_held_out
from maskgit.network.folder import load_model
from maskgit.sweep.measuring import load_images
from maskgit.sweep.settings import Options as SweepOptions
from maskgit.training.cli import main
from maskgit.training.transformer import TransformerTask

NAMES = ("1", "2", "10")
OLD = ["1", "10", "2"]  # as text sorts, and so as releases before natural order numbered them


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12 pictures; a picture's first pixel says its class."""
    folder = tmp_path_factory.mktemp("numbered")
    for name in NAMES:
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            pixels[0, 0] = int(name)
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def as_text(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(maskgit.data.images, "as_people_count", lambda name: name)


def named_labels(shard: Path, names: list[str], data: Path, split: Any) -> None:
    """The classes' names, and each picture's, are the right ones."""
    assert json.loads((shard / "images.json").read_text())["class_names"] == names
    images = load_dataset(data, 16, split)
    expected = [str(images.image(i)[0, 0, 0]) for i in range(len(images))]
    assert [names[label] for label in np.load(shard / "labels.npy")] == expected


def test_a_run_of_an_older_release_goes_on(
    run: Any, unbroken: Any, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"data": str(numbered), "class_dropout": 0.0}
    with monkeypatch.context() as patch:
        as_text(patch)
        run("transformer", tmp_path / "whole", **changes)
        real = TransformerTask.training_step

        def training_step(self: Any, batch: Any, step: int) -> Any:
            if step == 7:
                raise KeyboardInterrupt
            return real(self, batch, step)

        patch.setattr(TransformerTask, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            run("transformer", tmp_path / "broken", **changes)
    run("transformer", tmp_path / "broken", resume=True, **changes)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    for split in ("train", "val"):
        named_labels(tmp_path / "broken" / "tokens" / split, OLD, numbered, split)
    assert load_model(tmp_path / "broken" / "model").class_names == OLD
    # A new run counts.
    run("transformer", tmp_path / "new", steps=1, **changes)
    assert load_model(tmp_path / "new" / "model").class_names == list(NAMES)


def test_shards_of_an_older_release(unbroken: Any, numbered: Path, tmp_path: Path, monkeypatch: Any) -> None:
    words = ["tokens", "--data", str(numbered), "--tokenizer", str(unbroken["tokenizer"] / "model"), "--device", "cpu"]
    words += ["--processes", "1", "--output", str(tmp_path / "shards")]
    here = maskgit.data.parts._compute_here  # without processes of its own
    monkeypatch.setattr(maskgit.data.parts, "_compute", lambda parts, work, _, device: here(parts, work, device))
    with monkeypatch.context() as patch:
        as_text(patch)
        assert main(words) == 0
    assert main(words) == 0
    for split in ("train", "val"):
        named_labels(tmp_path / "shards" / split, OLD, numbered, split)


def test_going_on_from_a_model_of_an_older_release(
    run: Any, unbroken: Any, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights know the classes by its numbers."""
    with monkeypatch.context() as patch:
        as_text(patch)
        run("transformer", tmp_path / "old", data=str(numbered), steps=1)
    tasks: list[Any] = []
    prepare = TransformerTask.prepare
    monkeypatch.setattr(TransformerTask, "prepare", lambda self: (tasks.append(self), prepare(self))[1])
    run("transformer", tmp_path / "new", data=str(numbered), steps=1, init=tmp_path / "old" / "model")
    assert load_model(tmp_path / "new" / "model").class_names == OLD
    (task,) = tasks
    images = load_dataset(numbered, 16, "train")
    seen = [OLD[int(task.dataset[i, 0].label)] for i in range(len(images))]
    assert seen == [str(images.image(i)[0, 0, 0]) for i in range(len(images))]


def test_measuring_a_model_of_an_older_release(
    run: Any, unbroken: Any, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told the classes by its own numbers."""
    with monkeypatch.context() as patch:
        as_text(patch)
        run("transformer", tmp_path, data=str(numbered), steps=1)
    model = MaskGIT.from_pretrained(tmp_path / "model", device="cpu")
    images = load_images(model, SweepOptions(data=str(numbered), classes=True))
    assert images.labels is not None and len(images.labels) > 2
    assert [OLD[label] for label in images.labels] == [str(int(value)) for value in images.pixels[:, 0, 0, 0]]

    class Seen(Exception):
        pass

    def seen(*arguments: Any) -> None:
        held_out = load_held_out(*arguments)
        assert held_out.labels is not None
        assert [OLD[label] for label in held_out.labels] == [str(int(value)) for value in held_out.pixels[:, 0, 0, 0]]
        raise Seen

    monkeypatch.setattr(card, "load_held_out", seen)
    options = CardOptions(data=str(numbered), classes=True, output=tmp_path)
    with pytest.raises(Seen):
        card.evaluate(model, torch.nn.Identity(), options)
