"""The moving average of the weights, which is what is validated and saved."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def growing_decay(decay: float, step: int) -> float:
    """The decay of step `step`, counted from 0: so small at first that the random start is soon forgotten.

    A constant decay of 0.999 would still give the start a weight of 61 % after 500 steps.
    """
    return min(decay, (1 + step) / (10 + step))


class AveragedWeights(nn.Module):
    """An exponential moving average of a model's parameters, updated without waiting for the device.

    PyTorch's AveragedModel copies a number from the host to the device at each update, for which the host has to wait.
    State dicts are alike, so either loads the other's.

    Args:
        model: is copied, with its parameters and buffers.
    """

    n_averaged: Tensor  # int64 [], in main memory

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float, broken: Tensor) -> None:
        """Take the model's parameters in; the first time, and its buffers always, by copying them.

        Args:
            model: of the same kind; divided among the processes as `module` is, if it is.
            decay: in [0, 1): average = decay * average + (1 - decay) * parameter.
            broken: bool [], on the device of the parameters. Where it is True the average stays as it is.
        """
        averages, weights = _local(self.module.parameters()), _local(model.parameters())
        if self.n_averaged == 0:
            torch._foreach_copy_(averages, weights)
        else:
            move = move_each if broken.device.type == "cpu" else move_together
            move(averages, weights, (1 - decay) * (~broken).float())
        for held, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            held.copy_(buffer)
        self.n_averaged += 1


def move_each(averages: list[Tensor], weights: list[Tensor], amount: Tensor) -> None:
    """averages += amount * (weights - averages), in place and in one pass; `amount` is float [] on their device."""
    torch._foreach_lerp_(averages, weights, [amount] * len(averages))


def move_together(averages: list[Tensor], weights: list[Tensor], amount: Tensor) -> None:
    """As `move_each`, for a GPU: a few launches for all tensors.

    An interpolation of all of them would take its amount from the host, which doesn't know whether the step is broken.
    """
    changes = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(changes, amount)
    torch._foreach_add_(averages, changes)


def _local(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of them."""
    return [x.to_local() if isinstance(x, DTensor) else x.detach() for x in parameters]
