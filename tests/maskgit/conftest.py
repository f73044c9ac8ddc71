"""A stand-in for `torch.cuda`, with which CUDA graphs are tested on a CPU.

Its graph records every operator of a capture with its tensors, and a replay runs them again on the same tensors, so
what would be frozen in a real graph is frozen in it too. As from a real capture, what was there before comes out of it
unchanged: the tensors and PyTorch's generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        """By its place, memory that is written to and what was in it, as bytes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("lift_fresh", "_local_scalar_dense"), "data from or to the host"
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[place] if place < len(args) else kwargs.get(argument.name)
                for tensor in tree_leaves(written):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self.before:
                        memory = torch.empty(0, dtype=torch.uint8).set_(storage)
                        self.before[storage.data_ptr()] = memory, memory.clone()
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result


class StandInGraph:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextlib.contextmanager
def stand_in_capture(graph: StandInGraph, *, stream: object, capture_error_mode: str) -> Iterator[None]:
    generator = torch.get_rng_state()
    with Recorder() as recorder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        yield
    graph.calls = recorder.calls
    for memory, content in recorder.before.values():
        memory.copy_(content)
    torch.set_rng_state(generator)


@pytest.fixture
def stand_in_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None)
    for name, value in {
        "CUDAGraph": StandInGraph,
        "graph": stand_in_capture,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "Event": lambda: SimpleNamespace(record=lambda: None),
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: False,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
