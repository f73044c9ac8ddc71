"""Ways to train that are for GPUs: fp16, compiled code, NCCL, FSDP2. Each gives the losses of the plain way.

What a CPU can do too, it does here in the same tests: fp16, and all of several processes by one (with Gloo for NCCL).
CUDA graphs are tested in test_graphs.py, the losses of every precision in test_loss.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from tiny_train import assert_same_run, break_steps, curve, last_state, torchrun_says
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from maskgit.config import PRESETS
from maskgit.training.checkpoint import list_checkpoints, load_checkpoint
from maskgit.training.engine import Engine
from maskgit.training.optimizer import AveragedWeights, Muon, set_rate
from maskgit.training.settings import TransformerTraining

ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_A_GPU)]
CHANGES: dict[str, Any] = {"steps": 12, "save_every": 5, "validate_every": 6, "warmup": 16, "lr": 2.0**-6}
TOLERANCE = {"float32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}  # the precision's own, over these steps


@pytest.fixture(autouse=True)
def without_dropout(tiny_presets: None, unbroken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose noise compiled code draws by itself."""
    tiny = PRESETS["tiny-classes"]
    plain = dataclasses.replace(tiny.transformer, dropout=0.0, attention_dropout=0.0)
    monkeypatch.setitem(PRESETS, "tiny-classes", dataclasses.replace(tiny, transformer=plain))


def assert_same_losses(ours: Path, theirs: Path, tolerance: float) -> None:
    for name in ("train/loss", "train/gradient_norm", "validation/loss"):
        curves = [torch.tensor(curve(output, name)) for output in (ours, theirs)]
        torch.testing.assert_close(*curves, rtol=tolerance, atol=tolerance)


# --- fp16 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine refuses fp16 on a CPU, where it gains nothing; PyTorch has it."""
    monkeypatch.setattr(Engine, "_check", lambda *_: None)


def scale(output: Path) -> float:
    """Of the loss, at the last checkpoint."""
    _, state = load_checkpoint(list_checkpoints(output / "checkpoints")[-1][1])
    return state["scaler"]["scale"]


@pytest.mark.parametrize("device", DEVICES)
def test_fp16_and_its_scale(device: str, anywhere: None, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A gradient that isn't finite halves it and leaves the weights; a run that goes on has that of its checkpoint."""
    changes = CHANGES | {"device": device, "precision": "fp16"}
    run("transformer", tmp_path / "float32", **(changes | {"precision": "float32"}))
    run("transformer", tmp_path / "fp16", **changes)
    assert_same_losses(tmp_path / "fp16", tmp_path / "float32", TOLERANCE["fp16"])
    assert curve(tmp_path / "fp16") != curve(tmp_path / "float32")
    assert scale(tmp_path / "fp16") == 2**16  # as PyTorch starts with

    break_steps(monkeypatch, lambda step: step in (2, 6, 7), "gradient")
    run("transformer", tmp_path / "broken", **changes)
    assert scale(tmp_path / "broken") == 2**13
    skipped = [count for _, count in curve(tmp_path / "broken", "train/skipped_steps")]
    assert skipped == [0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3]
    run("transformer", tmp_path / "resumed", **(changes | {"steps": 5}))
    assert scale(tmp_path / "resumed") == 2**15
    run("transformer", tmp_path / "resumed", resume=True, **changes)
    assert scale(tmp_path / "resumed") == 2**13
    if device == "cpu":  # a GPU adds up in any order
        assert_same_run(tmp_path / "resumed", tmp_path / "broken")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("muon", [0.0, 4.0])
def test_what_is_skipped_leaves_the_weights(
    device: str, muon: float, anywhere: None, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, lambda step: step > 0, "gradient")
    changes = CHANGES | {"device": device, "precision": "fp16", "ema": 0, "muon": muon}
    for steps in (1, 4):
        run("transformer", tmp_path / str(steps), **(changes | {"steps": steps}))
    one, four = (last_state(tmp_path / str(steps))[0] for steps in (1, 4))
    torch.testing.assert_close(four, one, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_tokenizer(device: str, precision: str, anywhere: None, run: Any, tmp_path: Path) -> None:
    """With discriminator, whose gradients have the same scale. It may be too high for the first steps."""
    changes = CHANGES | {"device": device, "precision": precision}
    run("tokenizer", tmp_path, **changes)
    losses = [loss for _, loss in curve(tmp_path)]
    skipped = [count for _, count in curve(tmp_path, "train/skipped_steps")]
    assert losses[-1] < losses[0] / 2 and skipped[-1] == skipped[4] <= (3 if precision == "fp16" else 0)
    assert precision == "bf16" or scale(tmp_path) == 2 ** (16 - skipped[-1])


# --- what follows the backward pass -----------------------------------------------------------------------------------


@contextlib.contextmanager
def no_wait() -> Iterator[None]:
    """The host may not wait for the GPU within."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", [DEVICES[1]])
def test_the_host_does_not_wait_for_the_average(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(device)  # with buffers of floats and integers
    broken = torch.tensor(True, device=device)
    averaged = AveragedWeights(model)
    averaged.update(model, 0.9, broken)
    with no_wait():
        averaged.update(model, 0.9, broken)
        averaged.update(model, 0.9, ~broken)
    for held, parameter in zip(averaged.module.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(held, parameter)


@pytest.mark.parametrize("device", [DEVICES[1]])
def test_the_host_does_not_wait_for_muon(device: str) -> None:
    weight = nn.Parameter(torch.eye(8, 6, device=device))
    muon, before = Muon([weight], share=1.0, weight_decay=0.1), weight.detach().clone()
    set_rate(muon, 1e-2)
    for found_inf in (1.0, 0.0):
        weight.grad, muon.found_inf = torch.ones_like(weight), torch.tensor(found_inf, device=device)
        with no_wait():
            muon.step()
        assert torch.equal(weight, before) == bool(found_inf)


@pytest.mark.parametrize("device", DEVICES)
def test_the_steps_of_muon_are_those_of_pytorchs(device: str) -> None:
    """Which is in bfloat16; matrices of three shapes, two of them of the same."""
    torch.manual_seed(0)
    start = [torch.randn(shape, device=device) for shape in ((24, 8), (8, 24), (24, 8), (16, 16))]
    ours, theirs = ([nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    muon = Muon(ours, share=4.0, weight_decay=0.1)
    muon.found_inf = torch.zeros((), device=device)
    reference = torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    set_rate(reference, 4e-2)
    set_rate(muon, 1e-2)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        reference.step()
    for weight, a, b in zip(start, ours, theirs, strict=True):
        assert float((a - b).detach().norm() / (b - weight).detach().norm()) < 0.02
        torch.testing.assert_close(muon.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"])


# --- processes --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torchrun() -> Iterator[None]:
    """One process, told what torchrun tells it."""
    (told,) = torchrun_says(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            yield
        finally:
            if dist.is_initialized():  # which a run that ends has left
                dist.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("device", DEVICES)
def test_collectives(device: str) -> None:
    with torchrun():
        engine = Engine(TransformerTraining(device=device, batch_size=4))
        assert engine.joined and dist.get_backend() == ("nccl" if device == "cuda" else "gloo")
        assert engine.device.type == device
        values = torch.arange(3.0, device=engine.device)
        assert engine.mean(values).tolist() == [0, 1, 2]
        totals = engine.totals([{"loss": values[1], "hits": values[2]}, {"loss": values[2], "hits": values[2]}])
        assert {name: float(total) for name, total in totals.items()} == {"loss": 3, "hits": 4}
        assert engine.whole(values[:, None]).tolist() == [[0], [1], [2]]
        assert engine.highest(0.1) == 0.1  # among the hosts
        engine.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("fsdp", [False, True], ids=["copied", "divided"])
def test_one_process_as_one_of_many(
    device: str, precision: str, fsdp: bool, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP and FSDP2 (in bf16: with bf16 weights in a step), from whose checkpoint the plain way goes on."""
    changes = CHANGES | {"device": device, "precision": precision}
    run("transformer", tmp_path / "plain", **changes)
    wrap, wrapped = Engine.wrap, []

    def watched(self: Engine, network: nn.Module) -> nn.Module:
        wrapped.append(wrap(self, network))
        return wrapped[-1]

    monkeypatch.setattr(Engine, "wrap", watched)
    with torchrun():
        run("transformer", tmp_path / "joined", fsdp=fsdp, **(changes | {"steps": 5}))
    assert isinstance(wrapped[0], FSDPModule if fsdp else DistributedDataParallel)
    run("transformer", tmp_path / "joined", resume=True, **changes)
    assert_same_losses(tmp_path / "joined", tmp_path / "plain", TOLERANCE[precision])


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [DEVICES[1]])  # on a CPU: test_stages.py, and without code to compile test_graphs.py
@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "captured"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_compiled(device: str, graphs: bool, precision: str, run: Any, tmp_path: Path) -> None:
    changes = CHANGES | {"device": device, "precision": precision}
    run("transformer", tmp_path / "plain", **changes)
    run("transformer", tmp_path / "compiled", compile=True, graphs=graphs, **changes)
    assert_same_losses(tmp_path / "compiled", tmp_path / "plain", TOLERANCE[precision])
