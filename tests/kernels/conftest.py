"""Kernel tests: Triton's interpreter where there is no GPU, no read or write outside a tensor, no unwritten output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.trace_rules import get_torch_obj_rule_map

sys.path.insert(0, str(Path(__file__).parent))  # for the module that tests share

# PyTorch keeps lists of its functions: these are to hold the true torch.empty, not ours.
get_torch_obj_rule_map()  # what a compiler knows
with torch.device("cpu"):  # what such a context concerns
    torch.empty(0)


@pytest.fixture
def far_apart() -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Gives a tensor memory in which neighbours along a dimension lie so far apart that the last one's offset does not
    fit into 32 bits. The memory is hardly touched, and so hardly there."""

    def lay_out(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        strides = list(tensor.contiguous().stride())
        strides[dim] = 2**31 // (tensor.shape[dim] - 1) + 1
        elements = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)) + 1
        memory = torch.UntypedStorage(elements * tensor.element_size(), device=tensor.device)
        whole = torch.tensor([], dtype=tensor.dtype, device=tensor.device).set_(memory)
        return whole.as_strided(tensor.shape, strides).copy_(tensor)

    return lay_out


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty and its kin return with NaN (integers: with their lowest value)."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoning(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoning(torch.Tensor.new_empty))


def _poisoning(make: Any) -> Any:
    def poisoned(*args: Any, **options: Any) -> Any:
        tensor = make(*args, **options)
        if type(tensor) is not torch.Tensor or tensor.device.type == "meta":
            return tensor
        is_float, is_bool = tensor.dtype.is_floating_point, tensor.dtype == torch.bool
        tensor.detach().fill_(torch.nan if is_float else True if is_bool else torch.iinfo(tensor.dtype).min)
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def checked_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Under the interpreter: every load and store must fall into a tensor that was passed to the kernel."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    pytest.importorskip("triton")
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    ranges: list[tuple[int, int]] = []
    launch = GridExecutor.__call__
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def checked_launch(self: Any, *args: Any, **options: Any) -> Any:
        ranges[:] = [_extent(x) for x in (*args, *options.values()) if isinstance(x, torch.Tensor) and x.numel()]
        return launch(self, *args, **options)

    def check(pointers: Any, mask: Any, size: int, what: str) -> None:
        addresses = np.asarray(pointers.data).astype(np.uint64)
        used = np.broadcast_to(np.asarray(mask.data), addresses.shape).astype(bool)
        inside = np.zeros(addresses.shape, bool)
        for first, end in ranges:
            inside |= (addresses >= first) & (addresses + np.uint64(size) <= end)
        outside = int((used & ~inside).sum())
        if outside:
            raise IndexError(f"{what}: {outside} of {int(used.sum())} lanes are outside every tensor of the launch")

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, max(1, pointers.get_element_ty().primitive_bitwidth // 8), "load")
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, max(1, value.dtype.scalar.primitive_bitwidth // 8), "store")
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(GridExecutor, "__call__", checked_launch)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
    yield


@pytest.fixture
def launched_under(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor | None]:
    """For each launch in the interpreter the tensor whose device was made the current one, or None."""
    pytest.importorskip("triton")
    from triton.runtime.interpreter import GridExecutor

    guards: list[torch.Tensor] = []
    seen: list[torch.Tensor | None] = []
    launch = GridExecutor.__call__

    @contextlib.contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        guards.append(tensor)
        yield
        guards.pop()

    def noted_launch(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(guards[-1] if guards else None)
        return launch(self, *args, **options)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(GridExecutor, "__call__", noted_launch)
    return seen


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    elements = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()
