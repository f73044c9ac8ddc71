"""`--init` with another model's folder alone: its size, tokenizer and decoding are kept, its classes exchanged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_train import Interrupted, assert_same_run, curve, interrupt_at

from maskgit.config import HaltonConfig, TransformerConfig
from maskgit.decoding import DECODERS, DecodeConfig
from maskgit.network.folder import Model, load_model, load_tokenizer, make_transformer, save_model, save_tokenizer
from maskgit.network.halton import HaltonTransformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN
from maskgit.training.cli import main
from maskgit.training.settings import TrainingError

KINDS = ("plain", "halton")
ORIGIN = {"converted_from": ["a file"]}

Start = Callable[..., Path]
"""start(class_names, num_classes=...): the folder of a model of one kind, with random weights."""


@pytest.fixture(params=KINDS)
def start(request: Any, unbroken: Any, tmp_path: Path) -> Start:
    def start(names: list[str], num_classes: int | None = None, registers: int = 2) -> Path:
        sizes: Any = dict(codebook_size=16, num_tokens=16, dim=16, depth=2, heads=2, mlp_dim=32, attention_dropout=0.1)
        sizes["num_classes"] = len(names) if num_classes is None else num_classes
        plain = TransformerConfig(input_mlp=True, **sizes)
        config = plain if request.param == "plain" else HaltonConfig(registers=registers, **sizes)
        transformer = make_transformer(config)
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter.normal_(0.0, 0.3)
        tokenizer = load_tokenizer(unbroken["tokenizer"] / "model")
        model = Model(tokenizer, transformer, names, ORIGIN, DECODERS["halton"])
        save_model(tmp_path / "start", model)
        return tmp_path / "start"

    return start


@pytest.fixture
def tune(run: Any) -> Callable[..., dict[str, float]]:
    """A run with nothing said but where to start from and the data, which has the classes above and below."""

    def tune(init: Path, output: Path, **changes: Any) -> dict[str, float]:
        given = {"init": init, "model": None, "tokenizer": None, "views": 1}
        return run("transformer", output, **(given | changes))

    return tune


UNTOUCHED: dict[str, Any] = {"lr": 0.0, "ema": 0.0, "weight_decay": 0.0, "steps": 1}


def test_from_folder_to_folder(start: Start, tune: Any, tmp_path: Path, pictures: Path) -> None:
    before, output = load_model(start(["cat", "dog", "owl"])), tmp_path / "run"
    tune(start(["cat", "dog", "owl"]), output, steps=40, batch_size=16, lr=1e-2, ema=0.0, dropout=0.0)
    losses = [loss for _, loss in curve(output)]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    model = load_model(output / "model")
    assert type(model.transformer) is type(before.transformer)
    same = dataclasses.replace(model.transformer.config, num_classes=3, dropout=before.transformer.config.dropout)
    assert same == before.transformer.config
    assert model.class_names == ["above", "below"] and model.decoding == DECODERS["halton"] != DecodeConfig()
    assert model.metadata["init"] == ORIGIN and np.isfinite(model.metadata["validation"]["loss"])
    picture = Image.open(next((pictures / "above").iterdir())).resize((16, 16))
    hole = np.arange(16)[:, None] < np.full(16, 8)
    filled = MaskGIT.from_pretrained(output / "model", device="cpu").inpaint(picture, hole, labels="above")
    assert np.array_equal(np.asarray(filled.image)[12:], np.asarray(picture)[12:])


def test_class_rows(start: Start, tune: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class of the same name stays what it was, a new one starts as none at all, and that stays too."""
    folder = start(["below", "cat", "dog"])
    tune(folder, tmp_path / "run", **UNTOUCHED)
    assert '1 of 2 classes are new to it and start as its "no class"' in capsys.readouterr().out
    old, new = load_model(folder).transformer, load_model(tmp_path / "run" / "model").transformer
    tokens = torch.randint(17, (2, 16))
    for ours, theirs in (([0, 0], [3, 3]), ([1, 1], [0, 0]), ([2, 2], [3, 3]), (None, None)):
        labels, known = (None if x is None else torch.tensor(x) for x in (ours, theirs))
        assert torch.equal(new(tokens, labels), old(tokens, known))
    assert not torch.equal(old(tokens, torch.tensor([0, 0])), old(tokens))


def test_classes_without_names(start: Start, tune: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many as the data has are taken for these; of other numbers, none is."""
    folder = start([], num_classes=2)
    tune(folder, tmp_path / "two", **UNTOUCHED)
    assert "its 2 classes have no names; taken for those of the data" in capsys.readouterr().out
    model, old = load_model(tmp_path / "two" / "model"), load_model(folder).transformer.state_dict()
    assert model.class_names == ["above", "below"]
    assert all(torch.equal(tensor, old[name]) for name, tensor in model.transformer.state_dict().items())
    tune(start([], num_classes=5), tmp_path / "five", **UNTOUCHED)
    assert "2 of 2 classes are new to it" in capsys.readouterr().out


@pytest.fixture
def flat(tmp_path: Path, pictures: Path) -> Path:
    """The pictures, without classes."""
    (tmp_path / "flat").mkdir()
    for path in pictures.rglob("*.png"):
        shutil.copy(path, tmp_path / "flat" / path.name)
    return tmp_path / "flat"


def test_data_without_classes(
    start: Start, tune: Any, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trains what stands for no class; the others stay in the model as they are."""
    folder = start(["cat", "dog"])
    tune(folder, tmp_path / "run", data=str(flat), weight_decay=0.0, steps=2, ema=0.0)
    assert f"flat has no classes (folders of their own): training without; the 2 of {folder} stay" in (
        capsys.readouterr().out
    )
    model = load_model(tmp_path / "run" / "model")
    assert model.class_names == ["cat", "dog"]
    name = "class_embedding" if isinstance(model.transformer, HaltonTransformer) else "token_embedding"
    old, new = (
        network.get_submodule(name).weight[-3:] for network in (load_model(folder).transformer, model.transformer)
    )
    assert torch.equal(old[:2], new[:2]) and not torch.equal(old[2], new[2])


def test_a_model_without_classes(start: Start, tune: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = start([])
    tune(folder, tmp_path / "run", steps=2)
    assert f"{folder} has no classes: training without the 2 of " in capsys.readouterr().out
    model = load_model(tmp_path / "run" / "model")
    assert model.transformer.config.num_classes == 0 and model.class_names == []


def test_resumed_as_unbroken(start: Start, tune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, checkpointing of activations and holes; the resumed command names model and tokenizer."""
    folder = start(["below", "cat"], registers=0)
    options = {"hole_share": 0.5, "holes": 1, "activation_checkpointing": True, "loss_on": "all"}
    tune(folder, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt_at(6, "transformer", patch)
        with pytest.raises(Interrupted):
            tune(folder, tmp_path / "broken", **options)
    tune(folder, tmp_path / "broken", **options, resume=True, tokenizer=folder)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_run_that_an_older_release_began(run: Any, unbroken: Any, tmp_path: Path, tune: Any) -> None:
    """There, model and tokenizer were always named, by default too."""
    init = unbroken["transformer"] / "model"
    run("transformer", tmp_path / "run", init=init, steps=3, views=1)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (settings["model"], settings["init"]) == ("tiny-classes", str(init)) and settings["tokenizer"]
    tune(init, tmp_path / "run", steps=4, resume=True)
    words = ["transformer", "--config", str(tmp_path / "run"), "--output", str(tmp_path / "run"), "--resume"]
    assert main([*words, "--steps", "5"]) == 0
    run("transformer", tmp_path / "run", init=init, steps=6, views=1, resume=True)


def test_a_larger_grid(start: Start, tune: Any, tmp_path: Path) -> None:
    folder = start(["above", "below"])
    with pytest.raises(TrainingError, match="is 16 there and 64 here; --interpolate .* --image-size 16 takes"):
        tune(folder, tmp_path / "no", image_size=32)
    tune(folder, tmp_path / "run", image_size=32, interpolate=True, **UNTOUCHED)
    old, new = load_model(folder).transformer, load_model(tmp_path / "run" / "model").transformer
    theirs = old.state_dict()
    changed = [
        name
        for name, tensor in new.state_dict().items()
        if tensor.shape != theirs[name].shape or not torch.equal(tensor, theirs[name])
    ]
    halton = isinstance(new, HaltonTransformer)
    assert sorted(changed) == (["position_embedding"] if halton else ["bias", "position_embedding"])
    assert new.position_embedding.shape[0] == (64 if halton else 65)


def test_errors(start: Start, tune: Any, tmp_path: Path, tiny_tokenizer: VQGAN) -> None:
    folder, output = start(["above", "below"]), tmp_path / "run"
    with pytest.raises(TrainingError, match="dim is 16 there and 256 here.*; leave --model out"):
        tune(folder, output, model="embedded")
    with pytest.raises(TrainingError, match="num_tokens is 16 there and 4 here; --image-size 16 takes pictures"):
        tune(folder, output, image_size=8)
    with pytest.raises(TrainingError, match="goes to a larger grid only: 4 x 4 tokens there, 2 x 2 here"):
        tune(folder, output, image_size=8, interpolate=True)
    save_tokenizer(tmp_path / "other", tiny_tokenizer)
    with pytest.raises(TrainingError, match="its tokenizer is not the one to be trained on.*; leave --tokenizer out"):
        tune(folder, output, tokenizer=tmp_path / "other")
    larger = VQGAN(dataclasses.replace(tiny_tokenizer.config, codebook_size=20))
    save_tokenizer(tmp_path / "larger", larger)
    with pytest.raises(TrainingError, match="codebook_size is 16 there and 20 here; leave --tokenizer out"):
        tune(folder, output, tokenizer=tmp_path / "larger")
    assert not (output / "model").exists()
    before = (folder / "config.json").read_bytes()
    with pytest.raises(TrainingError, match=f"--output {tmp_path}: the model that .* would replace that of --init"):
        folder.rename(tmp_path / "model")
        tune(tmp_path / "model", tmp_path)
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_dry_run(start: Start, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--init", start(["cat"]), "--data", pictures, "--output", tmp_path / "run", "--batch-size", 4]
    assert main([*map(str, ["transformer", "--dry-run", *words, "--device", "cpu", "--steps", 2])]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 classes are new to it" in said and "2 classes (" in said and not (tmp_path / "run").exists()
