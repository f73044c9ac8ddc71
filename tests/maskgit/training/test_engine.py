"""Devices, processes and the optimizer's step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskgit.training.engine import Engine, pick_device
from maskgit.training.loop import train
from maskgit.training.optimizer import make_optimizer
from maskgit.training.settings import LoopConfig, TrainingError


def config(**changes: object) -> LoopConfig:
    values = {"output": Path("out"), "steps": 20, "batch_size": 4, "lr": 1e-3}
    return LoopConfig(**(values | changes))  # type: ignore[arg-type]


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(TrainingError, match="--device nonsense: .+"):
        pick_device("nonsense")
    if torch.cuda.is_available():
        pytest.skip("cuda is there")
    with pytest.raises(TrainingError, match="--device cuda: .+"):
        pick_device("cuda")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"batch_size": 6, "accumulate": 4},
            "--batch-size 6: must be a multiple of 4",
        ),
        ({"precision": "fp16"}, "--precision fp16: needs a GPU, and this is cpu; use bf16"),
    ],
)
def test_what_the_device_can_not_do(changes: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Engine(config(device="cpu", **changes))
    with pytest.raises(TrainingError, match="--fsdp: there is one process"):
        Engine(config(device="cpu"), shard=True)


def test_the_precision_is_the_fast_one_of_the_machine_or_that_of_the_run(
    run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settled() -> str:
        return json.loads((tmp_path / "run.json").read_text())["settings"]["precision"]

    for faster, precision in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr("maskgit.pipeline.arguments.is_faster_in_bfloat16", lambda _, faster=faster: faster)
        assert Engine(config(device="cpu", output=tmp_path)).config.precision == precision
    run("transformer", tmp_path, steps=1, precision="bf16")
    assert settled() == "bf16"
    run("transformer", tmp_path, steps=2, precision="auto", resume=True)  # also on a machine that is slower at it
    assert settled() == "bf16"
    (tmp_path / "run.json").unlink()  # as the first releases left a run, which trained in bf16
    run("transformer", tmp_path, steps=3, precision="auto", resume=True)
    with pytest.raises(TrainingError, match=r"precision \(was bf16, now float32\)"):
        run("transformer", tmp_path, steps=4, precision="float32", resume=True)


def test_the_largest_seed_and_step_have_noise_of_their_own() -> None:
    """In the last of very many parts; PyTorch's generators take 64 bits."""
    largest = config(device="cpu", seed=10**13, steps=10**9 - 1, batch_size=10**6, accumulate=10**6)
    engine = Engine(largest)
    engine.begin(largest.steps - 1)
    engine.new_noise(largest.steps - 1, slice(10**6 - 1, 10**6))


def test_processes_that_do_not_divide_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="--batch-size 4: must be a multiple of 3, for 3 processes"):
        Engine(config(device="cpu"))


@pytest.mark.parametrize("loss, gradient", [(1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)])
def test_an_update_that_is_not_finite_changes_nothing(loss: float, gradient: float) -> None:
    engine, model = Engine(config(device="cpu")), nn.Linear(3, 2)
    optimizer = make_optimizer(model, config())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for its_loss, its_gradient in ((1.0, 1.0), (loss, gradient)):
        before = [p.clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.full_like(p, its_gradient)
        engine.begin(0)
        engine.update([optimizer], torch.tensor(its_loss))
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert same == bool(engine.broken)
    assert engine.broken
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_the_optimizer_sees_clipped_gradients(clip: float) -> None:
    engine, model = Engine(config(device="cpu", clip=clip)), nn.Linear(3, 2)
    optimizer = make_optimizer(model, config())
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient.clone()
    norm = engine.update([optimizer], torch.tensor(1.0))
    expected = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    assert float(norm) == pytest.approx(expected)
    factor = min(1.0, clip / expected) if clip else 1.0
    (beta1, _) = optimizer.param_groups[0]["betas"]
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], (1 - beta1) * factor * gradient, rtol=1e-5, atol=0)


def test_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(TrainingError, match="--kernels cuda: must be one of auto, triton, torch"):
        config(kernels="cuda")
    with pytest.raises(TrainingError, match="--kernels triton: .*needs an NVIDIA GPU"):
        settings = config(kernels="triton", output=tmp_path / "out", device="cpu")
        train(pytest.fail, settings, Engine(settings))
    assert not (tmp_path / "out").exists()
