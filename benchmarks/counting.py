"""Counts what eager operations launch and move, without timing anything; on tensors without data too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Count(NamedTuple):
    """Of one call."""

    launches: int
    """Operations that compute something: each at least one kernel on a GPU."""
    bytes: int
    """Of their inputs and outputs; what an operation moves besides, for its own use, is not seen."""
    casts: int = 0
    """Those of the launches that do nothing but change the dtype."""
    cast_bytes: int = 0
    """What these move."""


class Counter(TorchDispatchMode):
    """Counts while it is entered, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = self.casts = self.cast_bytes = 0

    def counted(self) -> Count:
        """So far."""
        return Count(self.launches, self.bytes, self.casts, self.cast_bytes)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        made = list(_tensors(result))
        given = list(_tensors((args, kwargs)))
        name = operation.overloadpacket.__name__
        # A view shares its input's memory; one that writes into its input says so in its name.
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        in_place = operation._schema.is_mutable
        is_view = not in_place and all(tensor.untyped_storage()._cdata in storages for tensor in made)
        if (made or in_place) and not is_view and not name.startswith(("empty", "new_empty")):
            read = given
            if name.endswith("_like"):  # rand_like and its kin want no more than the shape
                read = []
            elif name == "gather":  # of its input no more than it gives out, counted as such
                read = given[1:]
                self.bytes += _bytes(made)
            self.launches += 1
            self.bytes += (moved := _bytes(read) + _bytes(made))
            if name == "_to_copy" and given[0].dtype != made[0].dtype:
                self.casts += 1
                self.cast_bytes += moved
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _bytes(tensors: list[Tensor]) -> int:
    """That a pass over the tensors has to fetch or store: each once, and broadcast dimensions not again."""
    sizes = {}
    for tensor in tensors:
        elements = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            elements *= 1 if stride == 0 else size
        sizes[tensor.untyped_storage()._cdata, tensor.storage_offset()] = elements * tensor.element_size()
    return sum(sizes.values())


def count(run: Callable[[], object]) -> Count:
    """What one call of `run` launches and moves, operation by operation."""
    with torch.no_grad(), Counter() as counter:
        run()
    return counter.counted()
