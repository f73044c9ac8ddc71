"""From the tensors of another system to one of our networks, without losing or inventing any."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from maskgit.config import MAX_LAYERS, ConfigError, some
from maskgit.convert.reading import ConvertError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _shape(tensor: Tensor, name: str, dimensions: int) -> tuple[int, ...]:
    if tensor.ndim != dimensions:
        raise ConvertError(f"{name} has shape {list(tensor.shape)}, expected {dimensions} dimensions")
    return tuple(tensor.shape)


class Weights:
    """The tensors of a checkpoint, handed over to our names one by one.

    Each is used once or skipped by name; `build` refuses to leave any behind.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._theirs = dict(tensors)
        self._left = set(tensors)
        self._ours: dict[str, tuple[Tensor, str]] = {}
        self.notes: list[str] = []
        """What a user should know about the conversion."""

    def __contains__(self, name: str) -> bool:
        return name in self._theirs

    def names(self, prefix: str = "") -> list[str]:
        """The names that start with `prefix`, in the file's order, without it."""
        return [name.removeprefix(prefix) for name in self._theirs if name.startswith(prefix)]

    def count(self, prefix: str) -> int:
        """How many of prefix0., prefix1., ... start the name of a tensor, without a gap. Raises ConvertError: more than
        any model has."""
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in self._theirs if name.startswith(prefix)}
        count = next(number for number in range(len(numbers) + 1) if str(number) not in numbers)
        if count > MAX_LAYERS:
            raise ConvertError(f"there are {count} of {prefix}*, and no model has more than {MAX_LAYERS}")
        return count

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor of theirs, which must have so many dimensions."""
        return _shape(self._find(name), name, dimensions)

    def placed(self, ours: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that was put, which must have so many dimensions."""
        return _shape(*self._ours[ours], dimensions)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor of theirs as float32; it counts as used.

        `shape` is what it must be, None for any size; left out, `build` will see to it. Raises ConvertError.
        """
        tensor = self._find(name)
        sizes = [own if size is None else size for size, own in zip(shape, tensor.shape, strict=False)]
        if shape and (len(shape) != tensor.ndim or list(tensor.shape) != sizes):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ConvertError(
                f"{name} doesn't fit the other tensors: {list(tensor.shape)} where [{wanted}] is expected"
            )
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise ConvertError(f"{name} holds {tensor.dtype} ({tensor.layout}), not plain floating-point weights")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            # A view that repeats its few numbers: no model has any, and written out it could fill the memory.
            raise ConvertError(f"{name} claims {tensor.numel()} numbers, but the file holds fewer")
        self._left.discard(name)
        return tensor.float()

    def skip(self, pattern: str) -> None:
        """Do without the tensors whose whole name matches."""
        self._left -= {name for name in self._left if re.fullmatch(pattern, name)}

    def put(self, ours: str, tensor: Tensor, origin: str) -> None:
        """Give a tensor that was made from others our name; `origin` names the main one in errors."""
        self._ours[ours] = tensor, origin

    def move(self, ours: str, theirs: str) -> None:
        """Give a tensor our name, as it is."""
        self.put(ours, self.take(theirs), theirs)

    def layer(self, ours: str, theirs: str) -> None:
        """Give weight and bias of a layer our names."""
        self.layers({ours: theirs})

    def layers(
        self, names: Mapping[str, str], ours: str = "", theirs: str = "", parts: Sequence[str] = ("weight", "bias")
    ) -> None:
        """Give weight and bias of several layers our names: `names` has ours and theirs, behind these prefixes."""
        for our_name, name in names.items():
            for part in parts:
                self.move(f"{ours}{our_name}.{part}", f"{theirs}{name}.{part}")

    def build(self, make: Callable[[], ModuleT]) -> ModuleT:
        """Make a network, on the meta device, and give it all tensors that were put: float32, CPU, evaluation mode.

        Raises ConvertError: the sizes make no such network, a tensor has the wrong shape or values that are no numbers,
        or the file has tensors that the network has no place for.
        """
        try:
            with torch.device("meta"):
                module = make()
        except ConfigError as error:
            raise ConvertError(f"its sizes don't make a model: {error}") from error
        if self._left:
            raise ConvertError(f"{len(self._left)} tensors have no place in such a model: {some(self._left)}")
        expected = module.state_dict()
        missing = expected.keys() - self._ours.keys()
        if missing:
            raise ConvertError(f"it lacks what a model of its sizes has: {some(missing)}")
        for name, (tensor, origin) in self._ours.items():
            if name not in expected:
                raise ConvertError(f"{origin} has no place in such a model")
            if tensor.shape != expected[name].shape:
                raise ConvertError(
                    f"{origin} doesn't fit the other tensors: {list(tensor.shape)} where "
                    f"{list(expected[name].shape)} is expected"
                )
            if not tensor.isfinite().all():
                raise ConvertError(f"{origin} has values that aren't finite: a run that diverged, or a damaged file")
        module.load_state_dict({name: tensor.contiguous() for name, (tensor, _) in self._ours.items()}, assign=True)
        return module.eval()

    def _find(self, name: str) -> Tensor:
        if name not in self._theirs:
            raise ConvertError(f"{name} is missing")
        if self._theirs[name].is_meta or self._theirs[name].is_nested:
            raise ConvertError(f"{name} isn't a plain tensor: it has no numbers, or no single shape")
        if not self._theirs[name].numel():
            raise ConvertError(f"{name} is empty: {list(self._theirs[name].shape)}")
        return self._theirs[name]
