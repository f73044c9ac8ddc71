"""Everything that a run must remember, as a checkpoint holds it: whole tensors, however they are divided here.

So a run can go on with another number of processes, and with copies of the weights or with shards of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(value: Any) -> Any:
    """A state dict with its shards put together, in main memory; all processes must call this."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, list):
        return [gathered(item) for item in value]
    return value


def divided(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, divided among the processes as `like` is, if it is; all processes must call this."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def module_states(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of named modules, as "name.tensor"."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, module in modules.items()
        for name, tensor in gathered(module.state_dict()).items()
    }


def load_module_states(modules: dict[str, nn.Module], states: dict[str, Tensor]) -> None:
    """The inverse of `module_states`. Raises RuntimeError if the tensors aren't those of the modules."""
    for prefix, module in modules.items():
        start, current = f"{prefix}.", module.state_dict()
        given = {name[len(start) :]: tensor for name, tensor in states.items() if name.startswith(start)}
        module.load_state_dict({name: divided(t, current.get(name, t)) for name, t in given.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `gathered(optimizer.state_dict())` gave. Raises ValueError if it is of other parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            name: divided(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in moment.items()
        }
        for index, moment in state["state"].items()
        if index < len(parameters)
    }
    optimizer.load_state_dict(state | {"state": moments})
