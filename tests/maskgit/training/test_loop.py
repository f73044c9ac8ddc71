"""The pieces of the loop: order of samples, learning rate, settings, devices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maskgit.training.engine import Engine, pick_device
from maskgit.training.loop import train
from maskgit.training.optimizer import learning_rate, make_optimizer
from maskgit.training.run_file import changed_settings, run_settings
from maskgit.training.samples import SampleOrder
from maskgit.training.settings import LoopConfig, TokenizerTraining, TrainingError, TransformerTraining


def config(**changes: object) -> LoopConfig:
    values = {"output": Path("out"), "steps": 20, "batch_size": 4, "lr": 1e-3}
    return LoopConfig(**(values | changes))  # type: ignore[arg-type]


def test_each_epoch_is_a_permutation() -> None:
    batches = list(SampleOrder(np.arange(10), config(), 0))
    assert [len(batch) for batch in batches] == [4] * 20
    samples = [sample for batch in batches for sample in batch]
    assert [position for _, position in samples] == list(range(80))
    epochs = [[index for index, _ in samples[start : start + 10]] for start in range(0, 80, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8  # another order each time


@pytest.mark.parametrize("start", [1, 2, 3, 19, 20])
def test_any_start_continues_the_same_order(start: int) -> None:
    order = SampleOrder(np.arange(10), config(), start)
    assert list(order) == list(SampleOrder(np.arange(10), config(), 0))[start:]
    assert len(order) == 20 - start


def test_an_epoch_has_one_of_each_family() -> None:
    families = np.array([0, 0, 0, 1, 2, 2, 2, 2])
    order = SampleOrder(families, config(steps=3000, batch_size=1, one_per_family=True), 0)
    drawn = np.array([index for batch in order for index, _ in batch])
    assert (np.sort(families[drawn].reshape(1000, 3), axis=1) == [0, 1, 2]).all()
    expected = 1000 / np.bincount(families)[families]  # members of a family take turns at random
    assert np.abs(np.bincount(drawn, minlength=8) - expected).max() < 4.5 * 1000**0.5 / 2


def test_order_depends_on_the_seed() -> None:
    assert list(SampleOrder(np.arange(10), config(seed=1), 0)) != list(SampleOrder(np.arange(10), config(), 0))
    # But not on the batch size.
    first, second, *_ = SampleOrder(np.arange(3), config(batch_size=2), 0)
    assert next(iter(SampleOrder(np.arange(3), config(), 0))) == first + second


def test_empty_set() -> None:
    with pytest.raises(TrainingError, match="empty"):
        SampleOrder(np.arange(0), config(), 0)


def test_learning_rate() -> None:
    schedule = config(steps=110, warmup=10, lr=1.0, min_lr=0.2)
    rates = [learning_rate(schedule, step) for step in range(111)]
    assert rates[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert rates[60] == pytest.approx(0.6)  # half of the cosine
    assert rates[35] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[110] == pytest.approx(0.2)
    assert learning_rate(config(warmup=0), 0) == 1e-3
    assert learning_rate(config(warmup=100), 19) == pytest.approx(2e-4)  # shorter than its warm-up


def test_weight_decay_is_for_matrices() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4))
    model[2].weight.requires_grad_(False)
    groups = make_optimizer(model, config(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 4)]
    assert groups[0]["params"][0] is model[0].weight


def test_settings_that_count() -> None:
    settings = run_settings(TokenizerTraining())
    assert {"lr", "seed", "batch_size", "steps", "data", "augment", "precision"} <= settings.keys()
    assert settings.keys().isdisjoint({"output", "workers", "resume", "save_every", "device"})
    assert settings["augment"]["crop_scale"] == [0.8, 1.0]
    assert changed_settings(settings, TokenizerTraining(workers=2, accumulate=4)) == []
    assert changed_settings(settings, TokenizerTraining(lr=1.0)) == ["lr (was 0.001, now 1.0)"]


def test_settings_that_an_older_release_did_not_have() -> None:
    settings = run_settings(TokenizerTraining())
    del settings["augment"], settings["one_per_family"]
    assert changed_settings(settings, TokenizerTraining()) == []
    assert changed_settings(settings, TokenizerTraining(one_per_family=True)) == [
        "one_per_family (was False, now True)"
    ]
    assert changed_settings(settings | {"gone": 1}, TokenizerTraining()) == ["gone (was 1, now None)"]


def test_each_process_takes_its_part_of_the_batch() -> None:
    whole = list(SampleOrder(np.arange(10), config(batch_size=6), 3))
    parts = [list(SampleOrder(np.arange(10), config(batch_size=6), 3, process, 3)) for process in range(3)]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"keep": 0}, "--keep 0"),
        ({"lr": -1e-3}, "--lr -0.001: must be at least 0"),
        ({"lr": math.nan}, "--lr nan"),
        ({"clip": math.inf}, "--clip inf"),
        ({"warmup": -1}, "--warmup -1"),
        ({"seed": -1}, "--seed -1"),
        ({"workers": -1}, "--workers -1"),
        ({"beta1": 1.0}, r"--beta1 1.0: must be in \[0, 1\)"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"val_fraction": 0.0}, "--val-fraction 0.0: must be between 0 and 1"),
        ({"steps": 10**9}, "--steps 1000000000: must be at most 999999999"),  # a checkpoint's name has nine digits
        ({"seed": 10**13 + 1}, "--seed 10000000000001: must be at most 10000000000000"),
        ({"precision": "int8"}, "--precision int8: must be one of bf16, fp16, float32"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
    ],
)
def test_impossible_settings(changes: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    "stage, changes, message",
    [
        (TokenizerTraining, {"validation_images": 0}, "--validation-images 0"),
        (TokenizerTraining, {"adversarial_weight": -1.0}, "--adversarial-weight -1.0"),
        (TransformerTraining, {"views": 0}, "--views 0: must be at least 1"),
        (TransformerTraining, {"validation_rounds": 0}, "--validation-rounds 0"),
        (TransformerTraining, {"dropout": 1.5}, "--dropout 1.5"),
        (TransformerTraining, {"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        (TransformerTraining, {"schedule": "steep"}, "--schedule steep: .*cosine, linear"),
        (TransformerTraining, {"lr": -1.0}, "--lr -1.0"),
    ],
)
def test_impossible_settings_of_a_stage(stage: type, changes: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        stage(**changes)


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
        engine.update(optimizer, torch.tensor(its_loss))
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
    norm = engine.update(optimizer, torch.tensor(1.0))
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
