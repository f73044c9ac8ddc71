"""Muon for the matrices of the blocks: what it does to them, in steps that are broken, in a run that goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_train import Interrupted, assert_same_run, curve, interrupt_at, last_state
from torch import nn

from maskgit.training.engine import Engine
from maskgit.training.optimizer import Muon, make_optimizer, set_rate
from maskgit.training.settings import LoopConfig, TrainingError, TransformerTraining
from maskgit.training.transformer import TransformerTask


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_an_update_is_orthogonal_and_as_large_as_adamws(shape: tuple[int, int]) -> None:
    weight = nn.Parameter(torch.zeros(shape))
    gradient = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    muon = Muon([weight], share=4.0, weight_decay=0.1)
    muon.found_inf = torch.zeros(())
    set_rate(muon, 1e-3)
    weight.grad = gradient.float()
    muon.step()
    update = weight.detach().double()
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    alike = torch.nn.functional.cosine_similarity(update.flatten(), -(u @ vh).flatten(), dim=0)
    assert float(alike) > 0.95
    strengths = torch.linalg.svdvals(update)
    assert float(strengths.min() / strengths.max()) > 0.5  # of the gradient's, 0.04 of the square one
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2 * 4e-3, rel=0.2)  # 0.2: arXiv:2502.16982, 2.2


def test_it_has_the_matrices_of_the_blocks(unbroken: Any, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    tasks: list[TransformerTask] = []
    prepare = TransformerTask.prepare
    monkeypatch.setattr(TransformerTask, "prepare", lambda self: (tasks.append(self), prepare(self))[1])
    run("transformer", tmp_path, muon=4.0)
    (task,) = tasks
    adamw, muon = task.optimizers
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    its, rest = ({names[id(p)] for group in o.param_groups for p in group["params"]} for o in (muon, adamw))
    assert its.isdisjoint(rest) and its | rest == set(names.values())
    assert its == {name for name, p in task.model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert len(its) == 8  # of two blocks: queries, keys and values; output; two of the MLP
    assert muon.param_groups[0]["lr"] == pytest.approx(4 * adamw.param_groups[0]["lr"])
    ours, theirs = curve(tmp_path), curve(unbroken["transformer"])
    assert ours[0] == theirs[0] and ours[1] != theirs[1]
    assert last_state(tmp_path)[0].keys() == last_state(unbroken["transformer"])[0].keys()


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing(steps_before: int) -> None:
    config = LoopConfig(output=Path("out"), device="cpu")
    engine, model = Engine(config), nn.Linear(6, 4)
    muon = Muon([model.weight], share=1.0, weight_decay=0.1)
    optimizers = [make_optimizer(model, config, besides=[model.weight]), muon]
    for optimizer in optimizers:
        set_rate(optimizer, 0.1)
    for step in range(steps_before + 2):
        broken = step == steps_before
        before = [tensor.clone() for tensor in (*model.parameters(), muon.state[model.weight]["momentum_buffer"])]
        for optimizer in optimizers:
            optimizer.zero_grad()
        engine.begin(step)
        (model(torch.randn(3, 6)).square().sum() * (math.nan if broken else 1.0)).backward()
        norm = engine.update(optimizers, torch.tensor(1.0))
        after = [*model.parameters(), muon.state[model.weight]["momentum_buffer"]]
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [broken] * 3
        assert bool(engine.broken) == broken == bool(norm.isnan())


def test_gradients_of_both_optimizers_are_clipped_together() -> None:
    config = LoopConfig(output=Path("out"), device="cpu", clip=0.5)
    engine, model = Engine(config), nn.Linear(6, 4)
    optimizers = [make_optimizer(model, config, besides=[model.weight]), Muon([model.weight], 1.0, 0.0)]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert float(engine.update(optimizers, torch.tensor(1.0))) == pytest.approx(math.sqrt(28))
    for parameter in model.parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.5 / math.sqrt(28)))


def test_resumed_equals_unbroken(run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("transformer", tmp_path / "whole", muon=4.0)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(7, "transformer", patch)
        run("transformer", tmp_path / "resumed", muon=4.0)
    run("transformer", tmp_path / "resumed", muon=4.0, resume=True)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")
    with pytest.raises(TrainingError, match="muon"):
        run("transformer", tmp_path / "resumed", muon=2.0, resume=True)


def test_a_negative_rate() -> None:
    with pytest.raises(TrainingError, match="--muon -1.0: must be at least 0"):
        TransformerTraining(muon=-1.0)
