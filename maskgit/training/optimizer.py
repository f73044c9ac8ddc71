"""How the weights move: AdamW, Muon, their learning rate, and the moving average that is validated and saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

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


class Muon(torch.optim.Optimizer):
    """Momentum whose singular values are all brought near 1 (https://kellerjordan.github.io/posts/muon).

    As PyTorch's own, with the rates of Liu et al. (arXiv:2502.16982), at which elements change as much as AdamW's.
    That one works in bfloat16 everywhere, in which many CPUs are slow, on one matrix after the other, and the host
    decides on its rate and whether it steps. This one takes all matrices of a shape together, and does nothing where
    `found_inf` is 1, as PyTorch's fused optimizers do.

    Args:
        matrices: parameters [m, n].
        share: its learning rate as a share of AdamW's, at every step.
        weight_decay: as AdamW's.
    """

    found_inf: Tensor  # float [], on the device of the parameters

    def __init__(self, matrices: Iterable[nn.Parameter], share: float, weight_decay: float) -> None:
        alike: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            alike.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": group, "share": share, "weight_decay": weight_decay} for group in alike.values()]
        super().__init__(groups, {"lr": 0.0})
        for matrix in (matrix for group in alike.values() for matrix in group):
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the matrices by their gradients."""
        for group in self.param_groups:
            matrices = group["params"]
            weights, buffers = _local(matrices), _local(self.state[matrix]["momentum_buffer"] for matrix in matrices)
            before, gradients = torch.stack(buffers), torch.stack(_local(matrix.grad for matrix in matrices))
            gradients = torch.where(self.found_inf.bool(), before, gradients)  # which leaves the momentum as it is
            momentum = before.lerp(gradients, 0.05)
            torch._foreach_copy_(buffers, momentum.unbind())
            update = _of_whole(orthogonal, gradients.lerp(momentum, 0.95), matrices[0])
            rate = group["lr"] * (1 - self.found_inf)
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            size = 0.2 * math.sqrt(max(matrices[0].shape))
            torch._foreach_sub_(weights, (rate * size * update).unbind())


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly U V of each U S V, float32 [k, m, n], by five Newton-Schulz iterations with Jordan's coefficients."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.float().mT if wide is not matrices else x.float()


def _of_whole(function: Callable[[Tensor], Tensor], parts: Tensor, parameter: Tensor) -> Tensor:
    """The parts, [k, rows, n], of a function of whole matrices, divided among the processes as a parameter is."""
    if not isinstance(parameter, DTensor):
        return function(parts)
    mesh, shape = parameter.device_mesh, torch.Size((len(parts), *parameter.shape))
    stride = (shape[1] * shape[2], shape[2], 1)
    whole = DTensor.from_local(parts, mesh, [Shard(1)], shape=shape, stride=stride).full_tensor()
    return DTensor.from_local(function(whole), mesh, [Replicate()]).redistribute(mesh, [Shard(1)]).to_local()


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
