"""What a run must remember, as whole tensors, and folders that hold it and are whole or absent themselves.

However the weights are divided among processes, a checkpoint has them in one piece: a run can go on with another number
of processes, and with copies of the weights or with shards of them.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from maskgit.console import first_line
from maskgit.files import write_atomically
from maskgit.training.settings import TrainingError

NAME = re.compile(r"step-(\d{9})")
BEST = "best"  # a text file with the name of the best validation's checkpoint: not every file system has links

# What a system says that can't flush a folder: Windows can't even open one, some network disks have no such call.
_NO_FLUSH = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


class CheckpointError(TrainingError):
    """A checkpoint that can't be written or read; the message names the file and the reason."""


# --- what it holds ----------------------------------------------------------------------------------------------------


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
    return gathered(nn.ModuleDict(modules).state_dict())


def load_module_states(modules: dict[str, nn.Module], states: dict[str, Tensor]) -> None:
    """The inverse of `module_states`. Raises RuntimeError if the tensors aren't those of the modules."""
    together = nn.ModuleDict(modules)
    current = together.state_dict()
    together.load_state_dict({name: divided(tensor, current.get(name, tensor)) for name, tensor in states.items()})


def architectures(modules: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """The configurations of the networks among named modules: weights alone don't tell all of them from each other."""
    found: dict[str, Any] = {name: getattr(module, "config", None) for name, module in modules.items()}
    return {name: dataclasses.asdict(config) for name, config in found.items() if config is not None}


def check_architectures(modules: dict[str, nn.Module], saved: dict[str, dict[str, Any]] | None) -> None:
    """Raise a ValueError where a checkpoint's networks, None for what the first releases wrote, aren't `modules`."""
    for name, ours in architectures(modules).items():
        # The transformers of theirs were without this one.
        theirs = saved[name] if saved else ours | {"qk_norm": False}
        for field, value in ours.items():
            if theirs.get(field) != value:
                raise ValueError(f"{field} of the {name} was {theirs.get(field)} and is {value}")


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `gathered(optimizer.state_dict())` gave. Raises ValueError if it is of other parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def fit(value: Any, parameter: Tensor) -> Any:
        is_moment = isinstance(value, Tensor) and value.shape == parameter.shape
        return divided(value, parameter) if is_moment else value

    moments = {
        index: {name: fit(value, parameters[index]) for name, value in moment.items()}
        for index, moment in state["state"].items()
        if index < len(parameters)
    }
    optimizer.load_state_dict(state | {"state": moments})


# --- its folder -------------------------------------------------------------------------------------------------------


def _flush(path: Path) -> None:
    """Wait until a file is on the disk, or a folder's list of names, where the system can do that."""
    is_folder = path.is_dir()
    try:
        # Windows flushes only what is open for writing.
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NO_FLUSH:
            raise


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint, oldest first."""
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint; what a killed process leaves of it doesn't pass for one."""
    hidden = checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.discarded"))
    shutil.rmtree(hidden)


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], keep: int, best: int | None = None
) -> Path:
    """Write checkpoint `step`: weights as safetensors, the rest (optimizers) as a torch file.

    The newest `keep` are kept, and the one of step `best`, if it is there, whose name is written into the file `best`.

    A process killed at any moment leaves either the whole checkpoint or none: everything is written and flushed to a
    temporary folder, which is then renamed, as is one that is to go. Raises CheckpointError when the disk refuses;
    older ones stay untouched.
    """
    target = folder / _name(step)
    temporary = folder / f".{target.name}.partial"
    try:
        for left_behind in folder.glob(".step-*"):  # by a process that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / "weights.safetensors")
        with open(temporary / "state.pt", "wb") as file:  # PyTorch's own doesn't say why it fails
            torch.save(state, file)
        for path in (temporary / "weights.safetensors", temporary / "state.pt", temporary):
            _flush(path)
        if target.exists():  # a resumed run reaches the same step again
            _discard(target)
        temporary.rename(target)
        if best is not None and (folder / _name(best)).exists():
            write_atomically({folder / BEST: f"{_name(best)}\n".encode()})
        _flush(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = _disk_error(error) or error
        raise CheckpointError(f"{target}: the checkpoint can't be written: {reason}") from error
    for old_step, old in list_checkpoints(folder)[:-keep]:
        if old_step != best:
            try:
                _discard(old)
            except OSError as error:  # Windows, of a file that some program has open: it goes the next time
                warnings.warn(f"{old}: the old checkpoint can't be removed: {error}", stacklevel=2)
    return target


def _disk_error(error: BaseException | None) -> OSError | None:
    """What the disk said: PyTorch covers it with what that did to its archive."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What save_checkpoint wrote. Raises CheckpointError, naming the file, if it is missing or damaged."""
    file = path / "weights.safetensors"
    try:
        weights = load_file(file)
        file = path / "state.pt"
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError on a damaged file
        advice = f"remove {path} to go on from the one before"
        raise CheckpointError(f"{file}: the checkpoint can't be read: {first_line(error)}; {advice}") from error
    return weights, state
