"""Recipes, run.json and --config: where the settings of a run come from, and that they come back as they were."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_train import watch_training

from maskgit.config import preset
from maskgit.data import AugmentConfig
from maskgit.decoding import DECODERS
from maskgit.training import cli
from maskgit.training.optimizer import learning_rate
from maskgit.training.recipe_file import recipes
from maskgit.training.run_file import describe_run, flat, settings_from_json, settings_to_json
from maskgit.training.settings import COMMANDS, TokenizerTraining, TokensConfig, TransformerTraining

OWN = {"embedded", "finetune", "imagenet", "own-masks", "photos"}
"""Recipes that are ours; each of the others is a source's."""
RECIPES = {name: recipe.settings("transformer") for name, recipe in recipes().items() if name not in OWN}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings with which runs would have been started."""
    started: list[Any] = []
    for name in ("train_tokenizer", "train_transformer"):
        monkeypatch.setattr(cli, name, lambda config: started.append(config) or {"loss": 1.0})
    return started


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_a_recipe_goes_with_each_decoder_that_was_trained_for() -> None:
    assert set(RECIPES) - {"valeo-512"} == set(DECODERS) - {"halton"}
    for recipe in RECIPES.values():
        preset(recipe.model)  # there is one


def test_recipes_on_the_command_line(started: list[Any], tmp_path: Path) -> None:
    for name, recipe in RECIPES.items():
        assert cli.main(["transformer", "--recipe", name, "--steps", "77", "--output", str(tmp_path)]) == 0
        assert started[-1] == dataclasses.replace(recipe, steps=77, output=tmp_path)
    assert cli.main(["transformer", "--steps", "10"]) == 0
    assert started[-1] == TransformerTraining(steps=10)


def test_the_reproductions_settings(started: list[Any]) -> None:
    """Seed 004, section 2, in its own numbers."""
    assert cli.main(["transformer", "--recipe", "valeo"]) == 0
    config = started[-1]
    assert (config.lr, config.beta1, config.beta2, config.weight_decay) == (1e-4, 0.9, 0.96, 1e-5)
    assert (config.schedule, config.mask_per, config.label_smoothing, config.class_dropout) == (
        *("arccos", "image"),
        *(0.1, 0.1),
    )
    assert config.steps * config.batch_size == 755_200 * 512
    assert [learning_rate(config, step) for step in (100, 400_000, 755_199)] == [1e-4] * 3


def test_recipes_that_can_not_be(capsys: Any, tmp_path: Path, started: list[Any]) -> None:
    assert f"--recipe huge: must be one of {', '.join(recipes())}, or a file" in failure(
        capsys, "transformer", "--recipe", "huge"
    )
    assert "--recipe valeo: is for `train.py transformer`" in failure(capsys, "tokenizer", "--recipe", "valeo")
    words = ("transformer", "--recipe", "valeo", "--config", str(tmp_path))
    assert "not together with --config" in failure(capsys, *words)
    assert "--mask-ratio 1.5: must be in (0, 1]" in failure(capsys, "transformer", "--mask-ratio", "1.5")
    assert "--eval-every 3: must be a multiple of --validate-every 500" in failure(
        capsys, "transformer", "--eval-every", "3"
    )
    assert not started


@pytest.mark.parametrize("name", ["lab-perturbed", "lab-sampled", "lab-greedy", "valeo"])
def test_a_step_of_each_recipe(name: str, run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The masks and the loss that the model meets are those of the recipe, written out here."""
    seen = watch_training(monkeypatch)
    recipe = RECIPES[name]
    changes = {field: getattr(recipe, field) for field in ("mask_ratio", "mask_per", "mask_count", "loss_on")}
    changes |= {"schedule": recipe.schedule, "label_smoothing": recipe.label_smoothing, "dropout": 0.0}
    run("transformer", tmp_path, steps=1, batch_size=64, precision="float32", **changes)
    masked = seen["held"] == 16
    counts = masked.sum(1)
    different = len(counts.unique())
    assert (different == 1) == (name in ("lab-perturbed", "lab-greedy"))  # one share for the batch, exact
    if name == "lab-sampled":
        assert abs(masked.double().mean() - 0.5) < 4.5 * 0.5 / (64 * 16) ** 0.5
    scores = seen["logits"].log_softmax(-1)
    losses = -scores.gather(-1, seen["tokens"][..., None])[..., 0]
    losses = (1 - recipe.label_smoothing) * losses - recipe.label_smoothing * scores.mean(-1)
    expected = losses.mean() if name.startswith("lab") else losses[masked].mean()
    assert float(seen["loss"]) == pytest.approx(float(expected), rel=1e-5)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_every_table_starts_its_command(name: str, started: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    """What it says is what the command would do; nothing of the user's machine is in it."""
    monkeypatch.setattr(cli, "write_tokens", lambda config: started.append(config) or [])
    monkeypatch.setattr(cli, "train_model", lambda config, recipe: started.append(config) or {})
    recipe = recipes()[name]
    assert recipe.about.endswith(".") and len(recipe.about) < 100
    for command, table in recipe.tables.items():
        assert cli.main([command, "--recipe", name, "--output", str(tmp_path / "run")]) == 0
        config = started.pop()
        assert type(config) is COMMANDS[command] and config.output == tmp_path / "run"
        for option, value in flat(settings_to_json(config)).items():
            assert flat(table).get(option, value) == value
        assert table.keys().isdisjoint({"output", "tokenizer", "tokens", "init", "device", "seed", "resume"})
        if "model" in table:
            preset(table["model"])
    assert not started


FILE = """
about = "Mine."  # with a comment
[transformer]
lr = 1
steps = 1_000
loss_on = "all"
[transformer.augment]
crop_scale = [0.5, 1]
[tokens]
augment.flip = 0.25
"""


def test_a_file_of_the_user(started: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "write_tokens", lambda config: started.append(config) or [])
    for path in (Path("valeo.toml"), tmp_path / "sub" / "noending"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(FILE.replace("\n", "\r\n").encode("utf-8-sig"))  # as Windows writes it
        assert cli.main(["--recipe", str(path), "transformer", "--steps", "7"]) == 0
        augment = AugmentConfig(crop_scale=(0.5, 1.0))
        assert started.pop() == TransformerTraining(lr=1.0, steps=7, loss_on="all", augment=augment)
        assert cli.main(["tokens", "--recipe", str(path), "--augment.flip", "0.75"]) == 0
        assert started.pop() == TokensConfig(augment=AugmentConfig(flip=0.75))


def test_a_recipe_has_tables_for_its_commands_only(tmp_path: Path, capsys: Any, started: list[Any]) -> None:
    (tmp_path / "my.toml").write_text(FILE)
    for command in ("tokenizer", "model", "speedrun"):
        line = failure(capsys, command, "--recipe", str(tmp_path / "my.toml"))
        assert line.endswith(f"my.toml: is for `train.py tokens`, `train.py transformer`, not for `{command}`")
    assert not started


@pytest.mark.parametrize(
    "text, message",
    [
        ("[transfromer]", "there is no table [transfromer]; the nearest is [transformer]"),
        ("[transformer]\nlable_smoothing = 0.1", "no setting lable_smoothing in this release; the nearest"),
        ("[transformer]\nlable_smoothing = 0.1", "is label_smoothing"),
        ("[tokens]\naugment.flips = 1", "[tokens]: there is no setting augment.flips in this release"),
        ("[tokens]\naugment.flips = 1", "is augment.flip"),
        ("[tokens]\naugment.flip = 2", "[tokens]: flip=2.0: must be"),
        ("[tokens]\naugment.flip = true", "[tokens]: augment.flip is true, which is not of type float"),
        ("[transformer]\nsteps = 1e3", "steps is 1000.0, which is not of type int"),
        ("[transformer]\nsteps = 2020-01-01", 'steps is "2020-01-01", which is not of type int'),
        ("[transformer]\nsteps = [1]", "steps is [1]"),
        ("[transformer]\nlr = nan", "--lr nan: must be at least 0"),
        ("[transformer]\nlr = -1.0", "--lr -1.0: must be at least 0"),
        ("[transformer]\nlr = 1" + "0" * 400, "lr is 1000"),
        ("[transformer]\nlr = 1" + "0" * 5000, "digits"),
        ("[transformer]\nlr = ", "Invalid value"),
        ("[transformer]\nlr = 1\nlr = 2", "overwrite"),
        ('[transformer]\n"a\\nb\\u001b" = 1', "no setting a\\nb\\x1b in"),
        ("lr = 1", "lr is in no table: options come behind a line [model], [tokenizer], [tokens], [transformer]"),
        ("transformer = 1", "transformer is in no table"),
        ("transformer = []", "transformer is in no table"),
        ("[[transformer]]", "transformer is in no table"),
        ("about = 1\n[transformer]", "about is no text"),
        ("", "has no table"),
        ('about = "."', "has no table"),
        ("[model]", "[model] needs [tokenizer] and [transformer] beside it"),
        ("[model]\n[tokenizer]", "[model] needs [transformer] beside it"),
        ("[model]\nminutes = 0\n[tokenizer]\n[transformer]", "[model]: --minutes 0.0: must be above 0"),
        ("#" * 17_000, "has more than 16,384 bytes"),
        ("[transformer]\nsteps = " + "[" * 16_000, ""),
        ("[transformer]\nsteps" + ".a" * 8_000 + " = 1", ""),
        ("[transformer]\naugment" + ".flip" * 400 + " = 1", ""),
    ],
)
def test_files_that_are_no_recipe(text: str, message: str, tmp_path: Path, capsys: Any, started: list[Any]) -> None:
    """Each a line that begins with the file."""
    file = tmp_path / "my.toml"
    file.write_text(text)
    assert cli.main(["transformer", "--recipe", str(file)]) == 1 and not started
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --recipe {file}: ") and message in line and len(line) < 500


def test_paths_that_are_no_file(tmp_path: Path, capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "latin.toml").write_bytes("about = 'Bücher'".encode("latin-1"))
    for path, message in (
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe.toml", "not a file but a pipe"),
        (Path("/dev/zero"), "not a file but a pipe or a device"),
        (tmp_path / "none.toml", "No such file"),
        (tmp_path / "latin.toml", "codec can't decode byte 0xfc"),
    ):
        line = failure(capsys, "transformer", "--recipe", str(path))
        assert line.startswith(f"error: --recipe {path}: ") and message in line


# --- run.json and --config --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TokenizerTraining, TransformerTraining])
def test_settings_come_back(kind: Any) -> None:
    config = kind(lr=1, augment=AugmentConfig(crop_scale=(0.2, 0.9)), kernels="torch", output=Path("some/where"))
    if kind is TransformerTraining:
        config = dataclasses.replace(config, init=Path("a"), dropout=0.25, mask_ratio=0.5)
    values = json.loads(json.dumps(settings_to_json(config)))
    assert settings_from_json(kind, values) == (config, [])
    assert "resume" not in values
    del values["warmup"]
    again, missing = settings_from_json(kind, values)
    assert missing == ["warmup"] and again == config


def test_every_recipe_comes_back() -> None:
    for recipe in RECIPES.values():
        assert settings_from_json(TransformerTraining, settings_to_json(recipe)) == (recipe, [])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": "many"}, 'steps is "many", which is not of type int'),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"compile": 1}, "compile is 1"),
        ({"steps": None}, "steps is null"),
        ({"mask_per": "month"}, 'mask_per is "month"'),
        ({"augment": {"crop_scale": [0.5]}}, "crop_scale is"),
        ({"colour": "red"}, "there is no setting colour in this release"),
        ({"lr": -1.0}, "--lr -1.0: must be at least 0"),
        ({"augment": {"flip": 2.0}}, "flip=2.0"),
        ({"lr": 10**400}, f"lr is 1{'0' * 76}..., which is too large"),
        ({"dropout": -(10**400)}, "dropout is -1000"),
        ({"augment": {"crop_scale": [0.5, 10**400]}}, "crop_scale is 1000"),
        ({"steps": 10**400}, "--steps 1000"),
        ({"steps": [[[[1]]]] * 50}, "steps is [[[[1]]], [[[1]]], "),
        ({"warmup": 10**30}, f"--warmup {10**30}: must be at most 999999999"),
        ({"image_size": 10**30}, f"--image-size {10**30}: must be at most 999999999"),
        ({"seed": 10**13 + 1}, "--seed 10000000000001: must be at most 10000000000000"),
    ],
)
def test_settings_that_can_not_be(change: dict, message: str, capsys: Any, tmp_path: Path) -> None:
    content = describe_run(TransformerTraining())
    content["settings"] |= change
    (tmp_path / "run.json").write_text(json.dumps(content))
    line = failure(capsys, "transformer", "--config", str(tmp_path))
    assert line.startswith(f"error: --config {tmp_path / 'run.json'}: ") and message in line


def test_what_a_run_wrote_starts_another(
    unbroken: dict[str, Path], capsys: Any, tmp_path: Path, started: list[Any], settings: Any
) -> None:
    for stage, folder in unbroken.items():
        content = json.loads((folder / "run.json").read_text())
        assert content["stage"] == stage and content["settings"]["seed"] == 0
        assert content["versions"]["torch"] == torch.__version__ and "python" in content["versions"]
        assert content["git"] is None or len(content["git"].removesuffix("-dirty")) == 40
        # The stage needn't be said, and options override what is there.
        assert cli.main(["--config", str(folder / "run.json"), "--output", str(tmp_path), "--seed", "5"]) == 0
        kind = TokenizerTraining if stage == "tokenizer" else TransformerTraining
        assert started[-1] == kind(**(settings[stage] | {"output": tmp_path, "seed": 5}))
        assert cli.main([stage, "--lr", "1", "--config", str(folder)]) == 0
        assert started[-1].lr == 1 and started[-1].output == folder and not started[-1].resume
    line = failure(capsys, "tokenizer", "--config", str(unbroken["transformer"]))
    assert "holds the settings of `transformer`, not of `tokenizer`" in line


def test_a_config_of_an_older_release(capsys: Any, tmp_path: Path, started: list[Any]) -> None:
    content = describe_run(TransformerTraining(lr=3e-4))
    del content["settings"]["mask_count"], content["settings"]["eval_every"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert cli.main(["--config", str(tmp_path)]) == 0
    assert started == [TransformerTraining(lr=3e-4)]
    assert "doesn't say mask_count, eval_every: at the defaults" in capsys.readouterr().out


def test_deeply_nested(capsys: Any, tmp_path: Path) -> None:
    """At any depth: what the parser refuses, and what only the message about it would not stand."""
    for depth in (10, 200, 900, 980, 1_100, 100_000):
        for inner in ("[" * depth + "]" * depth, '{"flip":' * depth + "1" + "}" * depth):
            text = json.dumps(describe_run(TransformerTraining(steps=77))).replace("77", inner)
            (tmp_path / "run.json").write_text(text)
            assert failure(capsys, "--config", str(tmp_path)).startswith(f"error: --config {tmp_path / 'run.json'}: ")
            text = json.dumps(describe_run(TransformerTraining()))
            (tmp_path / "run.json").write_text(text.replace('"flip": 0.5', f'"flip": {inner}'))
            assert failure(capsys, "--config", str(tmp_path)).startswith(f"error: --config {tmp_path / 'run.json'}: ")


def test_what_never_ends(capsys: Any, tmp_path: Path) -> None:
    """A pipe without a writer, a device."""
    os.mkfifo(tmp_path / "run.json")
    for path in (tmp_path, tmp_path / "run.json", Path("/dev/zero")):
        assert "run.json: is not a file" in failure(capsys, "--config", str(path)).replace("/dev/zero", "run.json")


def test_as_windows_writes_it(tmp_path: Path, started: list[Any]) -> None:
    """With a byte order mark, in either encoding."""
    text = json.dumps(describe_run(TransformerTraining(lr=3e-4, data="Bücher")), ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "run.json").write_text(text, encoding=encoding)
        assert cli.main(["--config", str(tmp_path)]) == 0
        assert started.pop() == TransformerTraining(lr=3e-4, data="Bücher")


def test_files_that_are_no_config(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    assert f"--config {file}: no such file" in failure(capsys, "--config", str(tmp_path), "transformer")
    for content, message in (("{", "can't be read"), ("[]", "not a run.json"), ('{"settings": {}}', "not a run.json")):
        file.write_text(content)
        assert message in failure(capsys, "transformer", "--config", str(file))
    file.write_text('{"settings": {}, "stage": "third"}')
    assert "stage 'third' is none of tokenizer, transformer" in failure(capsys, "--config", str(file))
