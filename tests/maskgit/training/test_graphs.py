"""`--graphs`: on a GPU where there is one, and with the stand-in for `torch.cuda` (see tests/maskgit/conftest.py)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_train import assert_same_run, break_steps, curve
from torch import Tensor

import maskgit.training.transformer
from maskgit.training import graphs
from maskgit.training.graphs import WARM_UP, StepGraph, check_graphs
from maskgit.training.settings import TrainingError, TransformerTraining
from maskgit.training.transformer import TransformerTask

STEPS, SAVED = 12, 5
# A warm-up as long as the run, so that the rate, a float32 in a graph, is exact in it and doesn't depend on the steps.
CHANGES = {"steps": STEPS, "warmup": 16, "lr": 2.0**-6, "save_every": SAVED, "validate_every": 6, "class_dropout": 0.5}


@pytest.fixture
def calls(stand_in_cuda: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were made launch by launch or captured. On the CPU runs what a GPU runs, with `graphs` too."""
    steps: list[int] = []
    real = TransformerTask.training_step

    def training_step(self: TransformerTask, batch: Any, step: int) -> dict[str, Tensor]:
        steps.append(step)
        return real(self, batch, step)

    monkeypatch.setattr(TransformerTask, "_rows", lambda self, counted: None)
    monkeypatch.setattr(TransformerTask, "training_step", training_step)
    monkeypatch.setattr(maskgit.training.transformer, "check_graphs", lambda *_: None)
    return steps


@pytest.mark.parametrize("precision, muon", [("bf16", 0.0), ("float32", 0.0), ("float32", 4.0)])
def test_replays_are_the_steps(
    precision: str, muon: float, calls: list[int], run: Any, unbroken: Any, tmp_path: Path
) -> None:
    """Bit for bit: losses, weights, the optimizer's state and the average; of images, noise and rates of their own."""
    changes = CHANGES | {"precision": precision, "muon": muon}
    run("transformer", tmp_path / "eager", **changes)
    assert calls == list(range(STEPS))
    calls.clear()
    run("transformer", tmp_path / "graph", graphs=True, **changes)
    assert calls == list(range(WARM_UP + 1))
    assert_same_run(tmp_path / "graph", tmp_path / "eager")
    losses = [loss for _, loss in curve(tmp_path / "graph")]
    assert len(set(losses)) == len(losses) == STEPS


def test_what_is_not_finite_is_skipped(
    calls: list[int], run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the warm-up and in a replay; what comes after is as without a graph."""
    break_steps(monkeypatch, lambda step: step in (1, 6, 7), "gradient")
    for name, options in (("eager", {}), ("graph", {"graphs": True})):
        run("transformer", tmp_path / name, **options, **CHANGES)
    assert_same_run(tmp_path / "graph", tmp_path / "eager")
    counts = [count for _, count in curve(tmp_path / "graph", "train/skipped_steps")]
    assert counts == [0] + [1] * 5 + [2] + [3] * 5


def test_resumed_equals_unbroken(calls: list[int], run: Any, unbroken: Any, tmp_path: Path) -> None:
    """Where there were replays are now warm-up steps, and the other way around; with a graph, and going on without."""
    run("transformer", tmp_path / "whole", graphs=True, **CHANGES)
    for name, first, second in (("both", True, True), ("first", True, False), ("second", False, True)):
        run("transformer", tmp_path / name, graphs=first, **(CHANGES | {"steps": SAVED}))
        run("transformer", tmp_path / name, graphs=second, resume=True, **CHANGES)
        assert curve(tmp_path / name)[SAVED:] == curve(tmp_path / "whole")[SAVED:]
        assert_same_run(tmp_path / name, tmp_path / "whole")


def test_the_optimizer_knows_when_it_is_captured(
    calls: list[int], run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch refuses to capture one that doesn't, and warns of one that does and isn't captured."""
    told: list[tuple[bool, bool]] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: Any) -> Any:
        told.extend((group["capturable"], torch.cuda.is_current_stream_capturing()) for group in self.param_groups)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run("transformer", tmp_path, graphs=True, **CHANGES)
    assert told == [(False, False)] * 2 * WARM_UP + [(True, True)] * 2


def test_what_can_not_be_captured(
    calls: list[int], run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TransformerTask.training_step

    def training_step(self: TransformerTask, batch: Any, step: int) -> Any:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")
        return real(self, batch, step)

    monkeypatch.setattr(TransformerTask, "training_step", training_step)
    message = "step 3: --graphs: the step can't be captured: CUDA error: .* is capturing; start again without --graphs"
    with pytest.raises(TrainingError, match=message):
        run("transformer", tmp_path, graphs=True, **CHANGES)


@pytest.mark.parametrize(
    "changes, place, message",
    [
        ({}, ("cpu", False), "needs an NVIDIA GPU, and this is cpu; leave it out"),
        ({}, ("cuda", True), "not with torchrun, whose processes share gradients; leave it out"),
        ({"accumulate": 4}, ("cuda", False), "not with --accumulate 4; leave out one of them"),
        ({"precision": "fp16"}, ("cuda", False), "not with --precision fp16, whose scale .*; use bf16"),
        ({"activation_checkpointing": True}, ("cuda", False), "not with --activation-checkpointing; leave out"),
    ],
)
def test_what_graphs_do_not_go_with(changes: Any, place: tuple[str, bool], message: str) -> None:
    engine: Any = SimpleNamespace(device=torch.device(place[0]), joined=place[1])
    check_graphs(TransformerTraining(**changes), engine)
    with pytest.raises(TrainingError, match=f"--graphs: {message}"):
        check_graphs(TransformerTraining(graphs=True, **changes), engine)
    fine: Any = SimpleNamespace(device=torch.device("cuda", 1), joined=False)
    check_graphs(TransformerTraining(graphs=True, compile=True), fine)


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
def test_the_command_refuses(run: Any, unbroken: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--graphs: needs an NVIDIA GPU"):
        run("transformer", tmp_path / "out", graphs=True)
    assert not (tmp_path / "out").exists()


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_on_a_gpu(
    precision: str, run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    """The losses of a run launch by launch, dropout included, without waiting for the device between two steps."""
    changes = CHANGES | {"device": "cuda", "precision": precision}
    run("transformer", tmp_path / "eager", **changes)
    call = StepGraph.__call__

    def watched(self: StepGraph, *arguments: Any) -> Any:
        if self._graph is not None:
            torch.cuda.set_sync_debug_mode("error")
        try:
            return call(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(graphs.StepGraph, "__call__", watched)
    run("transformer", tmp_path / "graph", graphs=True, **changes)
    tolerance = {"bf16": 2e-2, "float32": 1e-4}[precision]
    for name in ("train/loss", "train/gradient_norm", "validation/loss"):
        ours, theirs = (torch.tensor(curve(tmp_path / folder, name)) for folder in ("graph", "eager"))
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not [str(warning.message) for warning in recwarn if "capturable" in str(warning.message)]
