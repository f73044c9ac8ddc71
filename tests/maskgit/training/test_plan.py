"""plan.json: what `train.py model` has decided on, with which settings and which recipe."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgit.training import whole
from maskgit.training.recipe_file import Recipe, read_recipe
from maskgit.training.settings import ModelTraining, TrainingError
from maskgit.training.whole import Plan, train_model

RECIPE = read_recipe("embedded")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "can't be read: JSONDecodeError"),
        (b"[]", "can't be read"),
        (b"[" * 100_000, "can't be read: RecursionError"),
        (b"{}", "can't be read: KeyError: 'settings'"),
        (b'{"settings": {}, "seconds_spent": "long", "stages": {}}', "can't be read"),
        (b'{"settings": {}, "seconds_spent": 1, "stages": []}', "can't be read"),
        (b'{"settings": {}, "seconds_spent": 1, "stages": {"third": {}}}', "can't be read: KeyError: 'third'"),
        (b'{"settings": {}, "seconds_spent": 1, "stages": {"tokenizer": {"settings": {"lr": "x"}}}}', 'lr is "x"'),
        (b'{"settings": {"minutes": 5}, "seconds_spent": 1, "stages": {}}', "minutes .was 5, now 60.0."),
    ],
)
def test_a_plan_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(TrainingError, match=message) as error:
        Plan(ModelTraining(tmp_path, resume=True), RECIPE)
    assert str(error.value).startswith(str(tmp_path / "plan.json"))


def test_a_plan_of_the_same_folder_written_differently(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(pictures, target_is_directory=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)

    def plan(data: str) -> Plan:
        return Plan(ModelTraining(tmp_path / "run", data=data, resume=True), RECIPE)

    (tmp_path / "run").mkdir()
    plan("link").save()
    for data in ("link", "./link/", f"{tmp_path}/link", f"{tmp_path}/other/../link", str(pictures)):
        plan(data)
    monkeypatch.chdir(tmp_path / "other")
    plan("../link")
    (tmp_path / "other" / "link").mkdir()  # the same word, but not the same place
    with pytest.raises(TrainingError, match=f"data .was {pictures}, now {tmp_path}/other/link."):
        plan("link")
    with pytest.raises(TrainingError, match="data .was link, now avatars."):
        plan("avatars")


def test_a_plan_of_a_folder_that_was_moved(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "before").mkdir()
    Plan(ModelTraining(tmp_path, data="before", resume=True), RECIPE).save()
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.warns(UserWarning, match=f"--data: {tmp_path}/before is gone; going on with {tmp_path}/after"):
        Plan(ModelTraining(tmp_path, data="after", resume=True), RECIPE).save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Plan(ModelTraining(tmp_path, data=str(tmp_path / "after"), resume=True), RECIPE)


# --- recipes ----------------------------------------------------------------------------------------------------------


def going_on(folder: Path, recipe: Recipe) -> Plan:
    return Plan(ModelTraining(folder, resume=True), recipe)


def test_a_plan_of_another_recipe(tmp_path: Path) -> None:
    """By what it says, not by its name; more or less of it is something else too."""
    tables = RECIPE.tables | {"transformer": {"lr": 1e-3, "augment": {"flip": 0.0}}}
    mine = Recipe("mine.toml", "", tables)
    going_on(tmp_path, mine).save()
    going_on(tmp_path, Recipe("moved.toml", "Otherwise.", json.loads(json.dumps(tables))))
    other = Recipe("mine.toml", "", tables | {"transformer": {"lr": 1e-3, "augment": {"flip": 0.5}, "ema": 0.9}})
    with pytest.raises(TrainingError) as error:
        going_on(tmp_path, other)
    assert "settings: transformer.augment.flip (was 0.0, now 0.5), transformer.ema (was None, now 0.9); go on" in str(
        error.value
    )
    with pytest.raises(TrainingError, match=r"transformer.hole_share .was None, now 0.5"):
        going_on(tmp_path, RECIPE)


def test_a_plan_from_before_there_were_recipes(tmp_path: Path) -> None:
    going_on(tmp_path, RECIPE).save()
    file = tmp_path / "plan.json"
    content: dict[str, Any] = json.loads(file.read_text())
    for stage in ("tokenizer", "transformer", "crops_a_minute"):
        del content["settings"][stage]
    file.write_text(json.dumps(content))
    assert going_on(tmp_path, RECIPE).goes_on
    with pytest.raises(TrainingError, match=r"settings: transformer.warmup .was None, now 200.*holes .was 2, now 1"):
        going_on(tmp_path, read_recipe("photos"))


# --- what of a recipe counts ------------------------------------------------------------------------------------------


def asked(config: ModelTraining, text: str, tmp_path: Path, monkeypatch: Any, device: str = "cpu") -> Any:
    """The settings of the tokenizer with which a recipe's file has the command begin."""
    (tmp_path / "my.toml").write_text(text)

    class Asked(Exception):
        pass

    def task(stage: Any, *_: Any) -> Any:
        raise Asked(stage)

    monkeypatch.setattr(whole, "Engine", lambda config: None)
    monkeypatch.setattr(whole, "TokenizerTask", task)
    monkeypatch.setattr(whole, "pick_device", lambda name: torch.device(device))
    with pytest.raises(Asked) as stage:
        train_model(config, read_recipe(str(tmp_path / "my.toml")))
    return stage.value.args[0]


def test_the_device_the_recipe_and_the_command(tmp_path: Path, monkeypatch: Any) -> None:
    """Each has the last word over those before; what none of them says is at its default."""
    config = ModelTraining(tmp_path / "run", minutes=5, seed=3, val_fraction=0.2)
    text = "[model]\n[transformer]\n[tokenizer]\n"
    assert [
        (stage.batch_size, stage.workers, stage.beta2, stage.seed, stage.val_fraction, stage.augment.flip)
        for stage in (
            asked(config, text, tmp_path, monkeypatch),
            asked(config, text, tmp_path, monkeypatch, "cuda"),
            asked(config, text + "batch_size = 8\nworkers = 1\naugment.flip = 0", tmp_path, monkeypatch, "cuda"),
            asked(replace(config, tokenizer_batch_size=9), text + "batch_size = 8", tmp_path, monkeypatch, "cuda"),
        )
    ] == [
        (16, 0, 0.99, 3, 0.2, 0.5),
        (64, 4, 0.99, 3, 0.2, 0.5),
        (8, 1, 0.99, 3, 0.2, 0.0),
        (9, 4, 0.99, 3, 0.2, 0.5),
    ]


@pytest.mark.parametrize("table, line", [("tokenizer", "steps = 5"), ("transformer", 'init = "a"')])
def test_what_the_command_decides_on(table: str, line: str, tmp_path: Path) -> None:
    """Would be left aside without a word."""
    tables = {"model": "", "tokenizer": "", "transformer": ""} | {table: line}
    (tmp_path / "my.toml").write_text("".join(f"[{name}]\n{text}\n" for name, text in tables.items()))
    message = rf"my.toml: \[{table}\] {line.split()[0]}: `train.py model` decides on that; leave it out"
    with pytest.raises(TrainingError, match=message):
        train_model(ModelTraining(tmp_path / "run"), read_recipe(str(tmp_path / "my.toml")))
    with pytest.raises(TrainingError, match="valeo: is for `train.py transformer`, not for `model`"):
        train_model(ModelTraining(tmp_path / "run"), read_recipe("valeo"))
    assert not (tmp_path / "run").exists()
