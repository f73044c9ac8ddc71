"""Both stages meet losses, gradients and weights that aren't finite: what would do harm is skipped, or ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_train import STAGES, Interrupted, break_steps, curve, interrupt_at
from torch import Tensor

import maskgit.training.loop as loop
from maskgit.training.checkpoint import list_checkpoints, load_checkpoint, module_states
from maskgit.training.settings import TrainingError
from maskgit.training.tokenizer import TokenizerTask


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(
    stage: str, what: str, run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    states: list[Any] = []
    runs: list[Any] = []
    start, rate = loop._start, loop.learning_rate

    def snapshot(config: Any, step: int) -> float:  # called between two steps
        modules, optimizers = runs[0].modules(), runs[0].task.optimizers
        weights = {name: t.clone() for name, t in module_states(modules).items() if not name.endswith("n_averaged")}
        moments = [{k: v.clone() for k, v in m.items()} for o in optimizers for m in o.state_dict()["state"].values()]
        states.append((weights, moments))
        return rate(config, step)

    monkeypatch.setattr(loop, "_start", lambda *args: runs.append(start(*args)) or runs[0])
    monkeypatch.setattr(loop, "learning_rate", snapshot)
    break_steps(monkeypatch, lambda step: step == 4, what)
    run(stage, tmp_path)
    torch.testing.assert_close(states[5], states[4], rtol=0, atol=0)
    for earlier, later in ((3, 4), (5, 6)):
        assert any(not torch.equal(a, states[later][0][name]) for name, a in states[earlier][0].items())
    assert [count for _, count in curve(tmp_path, "train/skipped_steps")] == [0] * 4 + [1] * 4
    _, state = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1][1])
    assert state["skipped"] == [1, 0, 1]


@pytest.mark.parametrize("stage", STAGES)
def test_ten_skipped_steps_in_a_row(stage: str, run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        break_steps(patch, lambda step: step == 1 or step >= 3, "gradient")
        interrupt_at(7, stage, patch)
        run(stage, tmp_path, steps=20)
    # The count goes on where it was: at the checkpoint after step 5, two in a row.
    break_steps(monkeypatch, lambda step: True, "gradient")
    with pytest.raises(TrainingError, match="step 12: .* not finite in 10 steps in a row, 11 in all; start again with"):
        run(stage, tmp_path, steps=20, resume=True)


@pytest.mark.parametrize("stage, every", [*((stage, 50) for stage in STAGES), ("transformer", 2)])
def test_a_run_that_diverges(stage: str, every: int, run: Any, unbroken: Any, tmp_path: Path) -> None:
    """Also where that is met in a validation, or in its picture."""
    with pytest.raises(TrainingError, match="step [0-9]+: .*(not finite|no longer finite).* start again with a lower"):
        run(stage, tmp_path, steps=30, lr=1e30, warmup=0, clip=0.0, precision="float32", ema=0.0, validate_every=every)


def test_weights_that_are_not_finite_are_not_saved(
    run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TokenizerTask.training_step

    def training_step(self: TokenizerTask, batch: Tensor, step: int) -> dict[str, Tensor]:
        logged = real(self, batch, step)
        if step == 4:
            self.model.decoder.last_layer.detach().fill_(float("inf"))
        return logged

    monkeypatch.setattr(TokenizerTask, "training_step", training_step)
    with pytest.raises(TrainingError, match="step 4: 2 tensors are no longer finite"):  # averaged ones included
        run("tokenizer", tmp_path, validate_every=100)
    assert list_checkpoints(tmp_path / "checkpoints") == []
