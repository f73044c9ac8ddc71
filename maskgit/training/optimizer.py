"""How the weights move: AdamW, Muon, their learning rate, and the moving average that is validated and saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from maskgit.training.settings import LoopConfig


def make_optimizer(model: nn.Module, config: LoopConfig, besides: Collection[nn.Parameter] = ()) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and convolutions only, not on gains, biases and norms.

    Args:
        besides: parameters that another optimizer moves.
    """
    moved = {id(parameter) for parameter in besides}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in moved]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # The rate is a placeholder: the loop sets it before every step.
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=True)


class Muon(torch.optim.Muon):
    """PyTorch's Muon, which as its fused optimizers do leaves all as it is where `found_inf` is 1, without a wait.

    Momentum whose singular values are all brought near 1 (https://kellerjordan.github.io/posts/muon), by a rate at
    which the elements change as much as AdamW's (Liu et al., arXiv:2502.16982).

    Args:
        matrices: parameters [m, n].
        share: its learning rate as a share of AdamW's, at every step.
        weight_decay: as AdamW's.
    """

    found_inf: Tensor  # float [], on the device of the parameters

    def __init__(self, matrices: Iterable[nn.Parameter], share: float, weight_decay: float) -> None:
        groups = [{"params": list(matrices), "share": share}]
        super().__init__(groups, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        for parameter in self.param_groups[0]["params"]:  # from the start, so that the first step can be undone
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the matrices by their gradients."""
        moved = [tensor for p, state in self.state.items() for tensor in (p, state["momentum_buffer"])]
        held = _local(moved)
        before = [tensor.clone() for tensor in held]
        loss = super().step(closure)
        for tensor, old in zip(held, before, strict=True):
            tensor.copy_(torch.where(self.found_inf.bool(), old, tensor))
        return loss


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine from lr to min_lr at the last step: the same for any number of processes."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    """The learning rate of the next update: a number, or float32 [] on a GPU, from which a CUDA graph reads it."""
    # A fused optimizer can always be captured; but PyTorch refuses unless it is told so, and warns if it needn't be.
    capturable = isinstance(rate, Tensor) and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"] if "share" in group else rate
        group["capturable"] = capturable


def growing_decay(decay: float, step: int) -> float:
    """The average's decay at step `step`, from 0 on: so small at first that the random start is soon forgotten.

    A constant decay of 0.999 would still give the start a weight of 61 % after 500 steps.
    """
    return min(decay, (1 + step) / (10 + step))


class AveragedWeights(nn.Module):
    """An exponential moving average of a model's parameters; all updates but the first don't wait for the device.

    PyTorch's AveragedModel copies a number from the host to the device at each update, for which the host has to wait.
    State dicts are alike, so either loads the other's.
    """

    n_averaged: Tensor  # int64 [], on the model's device

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        device = next(model.parameters()).device
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64, device=device))
        self._started = False

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float | Tensor, broken: Tensor) -> None:
        """Take the model's parameters in; the first time, and its buffers always, by copying them.

        Args:
            model: of the same kind; divided among the processes as `module` is, if it is.
            decay: in [0, 1), a number or float64 []: average = decay * average + (1 - decay) * parameter.
            broken: bool [], on the device of the parameters. Where it is True the average stays as it is.
        """
        averages, weights = _local(self.module.parameters()), _local(model.parameters())
        amount = ((1 - decay) * ~broken).float()
        first = not self._started and int(self.n_averaged) == 0  # it may have been loaded; once, this waits
        self._started = True
        if first:
            torch._foreach_copy_(averages, weights)
        elif broken.device.type == "cpu":  # in one pass over the memory
            torch._foreach_lerp_(averages, weights, [amount] * len(averages))
        else:
            move_together(averages, weights, amount)
        for held, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            held.copy_(buffer)
        self.n_averaged += 1


def move_together(averages: list[Tensor], weights: list[Tensor], amount: Tensor) -> None:
    """averages += amount * (weights - averages), in place, for a GPU: a few launches for all tensors.

    An interpolation of all of them would take its amount, float [], from the host, which doesn't know whether the step
    is broken.
    """
    changes = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(changes, amount)
    torch._foreach_add_(averages, changes)


def _local(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of them."""
    return [x.to_local() if isinstance(x, DTensor) else x.detach() for x in parameters]
