"""The optimizer's parameters, the learning rate, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from maskgit.training.optimizer import AveragedWeights, growing_decay, learning_rate, make_optimizer, move_together
from maskgit.training.settings import LoopConfig

FINE, BROKEN, AMOUNT = torch.tensor(False), torch.tensor(True), torch.tensor(0.3)


def config(**changes: object) -> LoopConfig:
    values = {"output": Path("out"), "steps": 20, "batch_size": 4, "lr": 1e-3}
    return LoopConfig(**(values | changes))  # type: ignore[arg-type]


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


# --- the average ------------------------------------------------------------------------------------------------------


def small_model() -> nn.Module:
    """Parameters that are trained and that are not, and buffers of floats, integers and booleans."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    model.register_buffer("seen", torch.tensor([True, False]))
    return model


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
        model[1].running_mean += 1.5
        model[1].num_batches_tracked += 1
        model.seen.logical_not_()


def test_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedWeights(model)
    found = []
    for value, broken in ((2.0, FINE), (6.0, FINE), (-2.0, BROKEN), (-1.0, FINE)):
        nn.init.constant_(model.weight, value)
        averaged.update(model, 0.75, broken)
        found.append(averaged.module.weight.item())
    assert found == [2.0, 3.0, 3.0, 2.0]  # copied, (3 * 2 + 6) / 4, left alone, (3 * 3 - 1) / 4
    averaged.update(model, 0.5, FINE)
    assert averaged.module.weight.item() == 0.5  # (2 - 1) / 2: the decay may change from step to step


def test_the_decay_grows() -> None:
    """As diffusers' EMAModel and TensorFlow's ExponentialMovingAverage have it: 1/10, 2/11, 3/12, ... up to the decay.

    The first update copies, so the 1/10 is never met.
    """
    decays = [growing_decay(0.99, step) for step in range(7)]
    assert decays == pytest.approx([1 / 10, 2 / 11, 1 / 4, 4 / 13, 5 / 14, 2 / 5, 7 / 16], rel=1e-12)
    assert growing_decay(0.99, 889) < growing_decay(0.99, 890) == growing_decay(0.99, 10**9) == 0.99  # 891 / 900
    assert growing_decay(0.5, 7) < growing_decay(0.5, 8) == growing_decay(0.5, 9) == 0.5  # 9 / 18
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedWeights(model)
    for step, value in enumerate((11.0, 0.0, 12.0)):
        nn.init.constant_(model.weight, value)
        averaged.update(model, growing_decay(0.99, step), FINE)
    assert averaged.module.weight.item() == pytest.approx(9.5)  # 11, 2/11 * 11 + 0 = 2, 1/4 * 2 + 3/4 * 12


def test_as_pytorchs() -> None:
    model = small_model()

    def interpolate(averages: Any, weights: Any, _: Any) -> None:
        for held, weight in zip(averages, weights, strict=True):
            held.lerp_(weight, 1 - 0.9)

    ours, theirs = AveragedWeights(model), AveragedModel(model, multi_avg_fn=interpolate)
    for _ in range(5):
        change(model)
        ours.update(model, 0.9, FINE)
        theirs.update_parameters(model)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7, msg=name)
    assert ours.n_averaged == 5 and ours.module[1].num_batches_tracked == 5


def test_goes_on_from_pytorchs() -> None:
    """As from the checkpoint of an older release: it isn't copied over as at the first update."""
    model = small_model()
    theirs = AveragedModel(model)
    theirs.update_parameters(model)
    ours = AveragedWeights(small_model())
    ours.load_state_dict(theirs.state_dict())
    before = copy.deepcopy(ours.module)
    change(model)
    ours.update(model, 0.75, FINE)
    for held, old, new in zip(ours.module.parameters(), before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(held, 0.75 * old + 0.25 * new)


def test_the_model_stays_as_it_is() -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    averaged = AveragedWeights(model)
    for _ in range(2):
        averaged.update(model, 0.5, FINE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in averaged.module.parameters()] == [p.requires_grad for p in model.parameters()]


class Calls(TorchDispatchMode):
    """Counts operators, and refuses those that read a tensor on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "_to_copy", "lift_fresh"), func
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_few_operators_on_a_gpu() -> None:
    """Those that have a kernel for all tensors together, which takes the amount from the device."""
    averages, weights = ([torch.randn(size) for size in ((3, 2), (4,), ())] for _ in range(2))
    expected = [0.7 * held + 0.3 * weight for held, weight in zip(averages, weights, strict=True)]
    with Calls() as calls:
        move_together(averages, weights, AMOUNT)
    assert calls.count == 3
    torch.testing.assert_close(averages, expected)
