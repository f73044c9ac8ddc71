"""`train.py model`: all of it in a given time, planned from the machine's speed, interrupted and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_train import TASKS, curve, interrupt_at

from maskgit import MaskGIT
from maskgit.config import preset
from maskgit.data import parts
from maskgit.decoding import DECODERS
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit.training import whole
from maskgit.training.checkpoint import list_checkpoints
from maskgit.training.cli import main
from maskgit.training.engine import Engine
from maskgit.training.pace import Pace, measure_pace
from maskgit.training.settings import ModelTraining, TokenizerTraining, TrainingError, TransformerTraining
from maskgit.training.tokenizer import TokenizerTask
from maskgit.training.whole import fit_to_time, train_model

FILES = ("config.json", "tokenizer.safetensors", "transformer.safetensors")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are made without processes: those are tested where the shards are."""
    real = parts.write_in_parts
    monkeypatch.setattr(
        "maskgit.data.tokens.write_in_parts",
        lambda file, description, shape, work, processes, device: real(file, description, shape, work, 0, device),
    )


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that takes 1 s for a step and 2 s for a validation, by its word; and a list of whose pace was asked."""
    asked = []

    def measure(task: Any, config: Any, engine: Any) -> Pace:
        asked.append(type(task).__name__)
        return Pace(1.0, 2.0)

    monkeypatch.setattr(whole, "measure_pace", measure)
    return asked


class Clock:
    """Stands still, but for what is told to take time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.patch = 1000.0, monkeypatch
        monkeypatch.setattr(whole, "monotonic", lambda: self.now)

    def charge(self, name: str, seconds: float) -> None:
        """Let a function of the module take so long."""
        real = getattr(whole, name)

        def slow(*arguments: Any) -> Any:
            self.now += seconds
            return real(*arguments)

        self.patch.setattr(whole, name, slow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def words(pictures: Path, output: Path, *more: str) -> list[str]:
    """Of a run of a minute and a half."""
    common = ["model", "--data", str(pictures), "--model", "tiny-classes", "--output", str(output), "--device", "cpu"]
    return [*common, "--minutes", "1.5", "--tokenizer-batch-size", "4", "--batch-size", "4", *more]


def settings_of(output: Path, stage: str) -> dict[str, Any]:
    return json.loads((output / stage / "run.json").read_text())["settings"]


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_model_in_the_time_that_there_is(
    paced: list[str], clock: Clock, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    """90 s in all: 45 for the tokenizer, of which 4 go for timing and 10 for validations. It then takes 30, the tokens
    6 and timing the transformer 4, which leaves that 46, 10 of them for validations."""
    clock.charge("measure_pace", 4)
    clock.charge("train_tokenizer", 30)
    clock.charge("write_tokens", 6)
    clock.charge("train_transformer", 50)
    output = tmp_path / "run"
    assert main(words(pictures, output, "--tokenizer-share", "0.5", "--decoder", "halton", "--seed", "3")) == 0
    printed = capsys.readouterr().out
    first, second = (settings_of(output, stage) for stage in ("tokenizer", "transformer"))
    assert first["steps"] == 45 - 4 - 10 and second["steps"] == 90 - 4 - 30 - 6 - 4 - 10
    assert paced == ["TokenizerTask", "TransformerTask"]
    assert [step for step, _ in curve(output / "transformer", "validation/loss")] == [8, 16, 24, 32, 36]
    assert curve(output / "transformer", "train/lr")[-1][1] < 1e-5 and second["warmup"] == 3
    assert "stage 1 of 3, tokenizer: 31 steps of 4 images, 1 s each and 2 s a validation: 0.7 minutes, until" in printed
    assert "stage 3 of 3, transformer: 36 steps of 4 images, 1 s each and 2 s a validation: 0.8 minutes" in printed
    assert "after 1.6 minutes of 1.5" in printed
    # The recipe, as the embedded model's card gives it.
    assert first["augment"]["enabled"] is False and first["lr"] == second["lr"] == 1e-3
    expected = {"ema": 0.999, "dropout": 0.0, "views": 1, "hole_share": 0.5, "holes": 2, "class_dropout": 0.3}
    assert expected.items() <= second.items() and first["seed"] == second["seed"] == 3
    # A model folder in half precision, of what the two stages left.
    assert sorted(path.name for path in (output / "model").iterdir()) == sorted(FILES)
    model = MaskGIT.from_pretrained(output / "model")
    assert model.decoding == DECODERS["halton"] and model.class_names == ["above", "below"]
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["metadata"]["steps"] == {"tokenizer": 31, "transformer": 36}
    assert {"loss", "loss in holes"} < config["metadata"]["validation"].keys()
    assert {"psnr", "l1"} < config["metadata"]["tokenizer validation"].keys()
    for name in FILES[1:]:
        halves = load_file(output / "model" / name)
        assert {tensor.dtype for tensor in halves.values() if tensor.is_floating_point()} == {torch.float16}
        stage = output / name.split(".")[0]
        for key, tensor in load_file(stage / "model" / name).items():
            assert torch.equal(tensor.to(halves[key].dtype), halves[key]), key


def test_by_the_real_clock(pictures: Path, tmp_path: Path) -> None:
    """Both stages are timed as they are, and come to an end."""
    assert main(words(pictures, tmp_path, "--minutes", "0.1")) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["stages"].keys() == {"tokenizer", "transformer"} and plan["seconds_spent"] > 0
    for name, stage in plan["stages"].items():
        assert 0 < stage["pace"]["step"] < 10 and stage["pace"]["validation"] > 0
        assert stage["settings"] == settings_of(tmp_path, name) and stage["settings"]["steps"] >= 20
    assert MaskGIT.from_pretrained(tmp_path / "model")


def test_the_embedded_model_fits_into_the_repository() -> None:
    """Each file of it, in float16, is below 16 MB."""
    with torch.device("meta"):
        config = preset("embedded")
        networks = [VQGAN(config.tokenizer), Transformer(config.transformer)]
    for network in networks:
        assert 2 * sum(tensor.numel() for tensor in network.state_dict().values()) < 16e6 - 100_000


# --- the time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pace, seconds, steps, warmup, log, save, validate",
    [
        (Pace(0.5, 6.0), 1830, 3600, 100, 20, 600, 720),
        (Pace(0.5, 6.0), 230, 400, 40, 20, 600, 80),
        (Pace(0.01, 0.0), 300, 30_000, 100, 1000, 30_000, 6000),
        (Pace(700.0, 0.0), 7200, 20, 2, 1, 1, 4),  # so few that there is no time for them, but the least that will do
        (Pace(1.0, 30.0), 100, 20, 2, 10, 300, 4),
        (Pace(1.0, 0.0), -5, 20, 2, 10, 300, 4),
        (Pace(1.0, 0.0), 31, 31, 3, 10, 300, 7),
    ],
)
def test_steps_that_fit(
    pace: Pace, seconds: float, steps: int, warmup: int, log: int, save: int, validate: int
) -> None:
    config = fit_to_time(TransformerTraining(warmup=100, lr=0.5), pace, seconds)
    intervals = config.log_every, config.save_every, config.validate_every
    assert (config.steps, config.warmup, *intervals, config.lr) == (steps, warmup, log, save, validate, 0.5)


def test_the_pace(pictures: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Of steps of 0.5 s, the first one and one in between much longer; nothing of it is written or said."""
    steps: list[int] = []
    passed = [0.0]

    def training_step(self: Any, batch: Any, step: int) -> dict[str, torch.Tensor]:
        assert batch.shape == (4, 3, 16, 16) and self.model.training
        steps.append(step)
        passed[0] += 60.0 if step in (0, 12) else 0.5
        return {"loss": torch.zeros(())}

    def validate(self: Any, model: Any, tracker: Any, step: int) -> dict[str, float]:
        assert not model.training
        tracker.add_pictures("pictures", torch.zeros(4, 3, 8, 8), step, columns=2, file="pictures.png")
        print("collapsed")
        passed[0] += 7.0
        return {}

    monkeypatch.setattr("maskgit.training.pace._now", lambda device: passed[0])
    monkeypatch.setattr(TokenizerTask, "training_step", training_step)
    monkeypatch.setattr(TokenizerTask, "validate", validate)
    config = TokenizerTraining(output=tmp_path / "run", data=str(pictures), model="tiny", batch_size=4, device="cpu")
    engine = Engine(config)
    assert measure_pace(TokenizerTask(config, preset("tiny").tokenizer, engine), config, engine) == Pace(0.5, 7.0)
    assert steps == list(range(25)) and list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_an_hour_with_a_gpu_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger batches and reading processes there; compiled where there is a compiler, and time enough."""
    chosen = []

    class Asked(Exception):
        pass

    def task(config: Any, *_: Any) -> Any:
        chosen.append(config)
        raise Asked

    monkeypatch.setattr(whole, "Engine", lambda config: None)
    monkeypatch.setattr(whole, "TokenizerTask", task)
    for device, minutes, compiler in (("cpu", 60, "c++"), ("cpu", 60, None), ("cpu", 30, "c++"), ("cuda", 60, "c++")):
        monkeypatch.setattr(whole, "pick_device", lambda name, device=device: torch.device(device))
        monkeypatch.setattr(whole.shutil, "which", lambda name, compiler=compiler: compiler)
        with pytest.raises(Asked):
            train_model(ModelTraining(Path("nowhere"), minutes=minutes))
    assert [config.compile for config in chosen] == [True, False, False, False]
    assert [(config.batch_size, config.workers) for config in chosen] == [(16, 0)] * 3 + [(64, 4)]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_interrupted_and_resumed(
    paced: list[str], clock: Clock, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """In either stage and between them: it ends with the model of the unbroken run, and does nothing twice."""
    monkeypatch.setattr(whole, "SAVE_SECONDS", 5)
    clock.charge("train_tokenizer", 20)
    assert main(words(pictures, tmp_path / "unbroken")) == 0
    output = tmp_path / "broken"
    paced.clear()
    again = words(pictures, output, "--resume")

    def broken(stage: str, step: int) -> str:
        with monkeypatch.context() as patch:
            interrupt_at(step, stage, patch)
            with pytest.raises(Exception, match="^$"):
                main(again)
        return capsys.readouterr().out

    broken("tokenizer", 13)
    assert json.loads((output / "plan.json").read_text())["seconds_spent"] == 20
    assert [step for step, _ in list_checkpoints(output / "tokenizer" / "checkpoints")][-1] == 12  # validated
    # What came before counts; what the second start takes for the tokenizer does too.
    with monkeypatch.context() as patch:
        patch.setattr(whole, "write_tokens", lambda config: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(again)
    assert "tokenizer: 20 steps of 4 images, of which 12 are done, 1 s each" in capsys.readouterr().out
    assert json.loads((output / "plan.json").read_text())["seconds_spent"] == 40
    clock.now += 10_000  # between the starts
    broken("transformer", 14)
    assert settings_of(output, "transformer")["steps"] == 90 - 40 - 10
    made = {path: path.stat().st_mtime_ns for part in ("tokenizer", "tokens") for path in (output / part).rglob("*.*")}
    text = broken("transformer", 24)
    assert "of which 10 are done" in text and "stage 1" not in text and "stage 2" not in text
    assert main(again) == 0 and main(again) == 0
    assert paced == ["TokenizerTask", "TransformerTask"]
    assert {path: path.stat().st_mtime_ns for path in made} == made
    tokenizers = [tmp_path / run / "model" / "tokenizer.safetensors" for run in ("unbroken", "broken")]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_asked_to_stop(paced: list[str], pictures: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def training_step(self: Any, batch: Any, step: int) -> dict[str, torch.Tensor]:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, step)

    real = TASKS["tokenizer"].training_step
    with monkeypatch.context() as patch:
        patch.setattr(TASKS["tokenizer"], "training_step", training_step)
        assert main(words(pictures, tmp_path)) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 7 of 20" in (error := capsys.readouterr().err)
    assert "the same command with --resume goes on" in error
    assert main(words(pictures, tmp_path)) == 1
    assert f"{tmp_path} already holds a run: go on with --resume" in capsys.readouterr().err
    assert main(words(pictures, tmp_path, "--resume")) == 0
    assert "20 steps of 4 images, of which 7 are done" in capsys.readouterr().out
    assert load_file(tmp_path / "model" / FILES[2])


def test_on_another_machine(paced: list[str], pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A run that has moved goes on as it was begun, whatever this machine would choose."""
    with monkeypatch.context() as patch:
        interrupt_at(5, "tokenizer", patch)
        with pytest.raises(Exception, match="^$"):
            main([*words(pictures, tmp_path / "here")[:-4]])
    monkeypatch.setattr(whole, "CPU_BATCHES", {"tokenizer": 3, "transformer": 4})
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert main([*words(pictures, tmp_path / "there")[:-4], "--resume"]) == 0
    assert [settings_of(tmp_path / "there", stage)["batch_size"] for stage in ("tokenizer", "transformer")] == [16, 4]


# --- what can't be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, message",
    [
        (["--minutes", "0"], "--minutes 0.0: must be above 0"),
        (["--minutes", "nan"], "--minutes nan: must be above 0"),
        (["--minutes", "inf"], "--minutes inf: must be above 0, and a year (525600) at most"),
        (["--tokenizer-share", "1"], "--tokenizer-share 1.0: must be between 0 and 1"),
        (["--tokenizer-share", "nan"], "--tokenizer-share nan"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--tokenizer-batch-size", "-1"], "--tokenizer-batch-size -1: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--val-fraction", "0"], "--val-fraction 0.0: must be between 0 and 1"),
        (["--decoder", "best"], "--decoder best: must be one of maskgit, "),
        (["--model", "huge"], "there is no preset 'huge': choose one of embedded, lab,"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--device", "teapot"], "--device teapot: "),
        (["--image-size", "18"], "--image-size: image_size 18 is not a multiple of the patch size 4: take 16 or 20"),
        (["--image-size", "20000"], "--image-size: image_size 20000 is more than 16384"),
        (["--recipe", "valeo"], "--recipe valeo: is for `train.py transformer`"),
    ],
)
def test_bad_values(more: list[str], message: str, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(words(pictures, tmp_path / "run", *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and not (tmp_path / "run").exists()


def test_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="train.py model: start it without torchrun"):
        train_model(ModelTraining(Path("nowhere")))


def test_a_plan_of_other_settings(paced: list[str], pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(2, "tokenizer", patch)
        with pytest.raises(Exception, match="^$"):
            main(words(pictures, tmp_path))
    config = ModelTraining(tmp_path, minutes=1.5, data=str(pictures), model="tiny-classes", resume=True)
    with pytest.raises(TrainingError, match="settings: tokenizer_batch_size .was 4, now None., batch_size .was 4, now"):
        train_model(config)
