"""Runs in processes of their own: two that train together, one that is told to stop, some that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_train import as_words, assert_same_run, curve, finish, last_state, start

from maskgit.config import HaltonConfig
from maskgit.network.folder import Model, load_model, load_tokenizer, save_model
from maskgit.network.halton import HaltonTransformer
from maskgit.training.checkpoint import list_checkpoints

STEPS = 50
HERE = Path(__file__).parent
OPTIONS = {
    **{"device": "cpu", "steps": STEPS, "batch_size": 8, "lr": 1e-3, "warmup": 5, "ema": 0.9, "precision": "float32"},
    **{"log_every": 1, "validate_every": 50, "save_every": 25},
}


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture(scope="module")
def options(pictures: Path, unbroken: dict[str, Path]) -> dict[str, dict[str, Any]]:
    adversarial = {"adversarial_weight": 0.5, "adversarial_start": 2}
    shared = OPTIONS | {"data": pictures}
    return {
        "tokenizer": shared | {"model": "tiny"} | adversarial,
        "transformer": shared | {"model": "tiny-plain", "tokenizer": unbroken["tokenizer"] / "model", "views": 3},
    }


def train(stage: str, options: dict[str, Any], output: Path, count: int = 1, **changes: Any) -> Path:
    """Run to the end, in `count` processes."""
    assert finish(start([stage, *as_words(options | changes | {"output": output})], count)) == [0] * count
    return output


def largest_difference(a: Path, b: Path, name: str = "train/loss", before: int = STEPS) -> float:
    ours, theirs = dict(curve(a, name)), dict(curve(b, name))
    assert ours.keys() == theirs.keys() and len(ours) >= STEPS // 2
    return max(abs(ours[step] - theirs[step]) for step in ours if step < before)


@pytest.mark.slow
def test_two_processes_train_the_transformer_as_one(options: Any, tmp_path: Path) -> None:
    """Copied weights (DDP) and divided ones (FSDP2); half a run of each goes on as the other, and in one process."""
    settings = options["transformer"]
    one = train("transformer", settings, tmp_path / "one")
    copied = train("transformer", settings, tmp_path / "copied", 2)
    divided = train("transformer", settings, tmp_path / "divided", 2, fsdp=True)
    for two in (copied, divided):
        assert largest_difference(two, one) < 1e-4
        assert largest_difference(two, one, "train/gradient_norm") < 1e-3
        assert dict(curve(two, "validation/loss"))[STEPS] == pytest.approx(
            dict(curve(one, "validation/loss"))[STEPS], abs=1e-4
        )
        torch.testing.assert_close(last_state(two)[0], last_state(one)[0], rtol=0, atol=2e-3)
        load_model(two / "model")


@pytest.mark.slow
def test_two_processes_go_on_from_another_model_as_one(options: Any, tmp_path: Path) -> None:
    """A Halton transformer, with new classes, copied and divided."""
    sizes: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
    transformer = HaltonTransformer(HaltonConfig(16, 16, num_classes=3, registers=0, **sizes))
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(0.0, 0.1)
    settings = {name: value for name, value in options["transformer"].items() if name != "model"}
    save_model(tmp_path / "start", Model(load_tokenizer(settings.pop("tokenizer")), transformer))
    settings |= {"init": tmp_path / "start", "steps": STEPS // 2}
    one = train("transformer", settings, tmp_path / "one")
    for name, divides in (("copied", {}), ("divided", {"fsdp": True})):
        two = train("transformer", settings, tmp_path / name, 2, **divides)
        assert largest_difference(two, one) < 1e-4
        assert load_model(two / "model").class_names == ["above", "below"]


@pytest.mark.slow
def test_two_processes_in_half_precision(options: Any, tmp_path: Path) -> None:
    """Divided weights are bfloat16 in a step, those of the head too: of the table of embeddings, and its bias."""
    settings = options["transformer"] | {"precision": "bf16", "steps": STEPS // 2}
    one = train("transformer", settings, tmp_path / "one")
    for name, divides in (("copied", {}), ("divided", {"fsdp": True})):
        two = train("transformer", settings, tmp_path / name, 2, **divides)
        assert largest_difference(two, one) < 0.02


@pytest.mark.slow
def test_several_processes_train_with_muon_as_one(options: Any, tmp_path: Path) -> None:
    """Of divided weights whole matrices are made orthogonal all the same, also where their parts aren't alike."""
    settings = options["transformer"] | {"muon": 4.0, "steps": STEPS // 2, "batch_size": 6}
    one = train("transformer", settings, tmp_path / "one")
    for name, count, divides in (("copied", 2, {}), ("divided", 3, {"fsdp": True})):
        several = train("transformer", settings, tmp_path / name, count, **divides)
        assert largest_difference(several, one) < 1e-4
        torch.testing.assert_close(last_state(several)[0], last_state(one)[0], rtol=0, atol=2e-3)
        assert last_state(several)[1][1].keys() == last_state(one)[1][1].keys()


def test_two_processes_train_the_tokenizer_as_one(options: Any, tmp_path: Path) -> None:
    """With discriminator; the codebook follows the vectors of both.

    Squared differences: absolute ones turn a gradient wherever a rounding error takes a pixel across its goal, as
    happens in many a run of this length.
    """
    settings = options["tokenizer"] | {"pixel_loss": "l2"}
    one = train("tokenizer", settings, tmp_path / "one")
    two = train("tokenizer", settings, tmp_path / "two", 2)
    for name in ("train/loss", "train/discriminator", "train/adaptive_weight"):
        assert largest_difference(two, one, name, before=STEPS // 2) < 1e-5
        assert largest_difference(two, one, name) < 3e-5
    assert curve(two, "train/revived") == curve(one, "train/revived")


def test_parts_of_a_batch_and_processes_are_the_same(options: Any, tmp_path: Path) -> None:
    """With dropout too: two processes have the noise that one has for two parts."""
    settings = options["transformer"] | {"model": "tiny", "steps": STEPS // 2}
    parts = train("transformer", settings, tmp_path / "parts", accumulate=2)
    assert largest_difference(train("transformer", settings, tmp_path / "two", 2), parts) < 1e-5


@pytest.mark.slow
def test_resuming_with_other_processes(options: Any, tmp_path: Path) -> None:
    """Two, stopped by SIGTERM to one of them, go on exactly as two; from there as one, and divided, to rounding."""
    settings = options["transformer"]
    whole = train("transformer", settings, tmp_path / "whole", 2)
    output = tmp_path / "stopped"
    processes = start(["transformer", *as_words(settings | {"output": output})], 2)
    wait_for_checkpoint(output, processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert finish(processes) == [128 + signal.SIGTERM] * 2
    (reached, _), *_ = reversed(list_checkpoints(output / "checkpoints"))
    assert 25 <= reached < STEPS
    for name, count, changes in (("two", 2, {}), ("one", 1, {}), ("divided", 2, {"fsdp": True})):
        copied = tmp_path / name
        subprocess.run(["cp", "-a", str(output), str(copied)], check=True)
        train("transformer", settings, copied, count, resume=True, **changes)
        if name == "two":
            assert_same_run(copied, whole)
        else:
            assert largest_difference(copied, whole) < 1e-4


def wait_for_checkpoint(output: Path, processes: list[Any]) -> None:
    until = time.monotonic() + 60
    while not list_checkpoints(output / "checkpoints"):
        assert all(process.is_alive() for process in processes) and time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_being_told_to_stop(number: signal.Signals, options: Any, tmp_path: Path) -> None:
    """With data loading workers, which must not be taken away by a signal to all."""
    arguments = ["tokenizer", *as_words(options["tokenizer"] | {"output": tmp_path, "steps": 2000, "workers": 2})]
    (process,) = start(arguments, stderr=tmp_path / "complaints")
    wait_for_checkpoint(tmp_path, [process])
    os.kill(process.pid, number)
    assert finish([process]) == [128 + number]
    (reached, _), *_ = reversed(list_checkpoints(tmp_path / "checkpoints"))
    last, _ = curve(tmp_path)[-1]
    assert last + 1 == reached
    message = (tmp_path / "complaints").read_text()
    assert f"stopped by {number.name} after step {reached} of 2000, with a checkpoint in {tmp_path}" in message
    assert "the same command with --resume goes on" in message and "Traceback" not in message


@pytest.mark.slow
def test_kills_at_random_moments() -> None:
    """A short run of the script; see there."""
    done = subprocess.run([sys.executable, str(HERE / "kill.py"), "--kills", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "every run ended with the losses and weights of the unbroken one" in done.stdout
