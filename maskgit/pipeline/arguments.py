"""What users pass to the pipeline beside pictures and masks (see `maskgit.pipeline.inputs`), checked."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch

from maskgit.console import first_line
from maskgit.decoding import DecodeConfig
from maskgit.machine import cpu_name, is_faster_in_bfloat16

Precision = Literal["auto", "float32", "bf16", "fp16"]

Labels = Sequence[int | str | None] | int | str | None
"""Of each image its class, by number or name, None for none; or one class for all."""

# --- of the model -----------------------------------------------------------------------------------------------------


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device by its name; None: a GPU if there is one. Raises a ValueError: no such device here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros((), device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # of parts that others bring
        raise ValueError(f"device {str(device)!r} can't be used here: {first_line(error).split('. ')[0]}") from error
    return found


def resolve_precision(precision: str, device: torch.device) -> str:
    """float32, bf16 or fp16. Raises a ValueError for what isn't one, or not on this device."""
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU: choose 'bf16' or 'float32'")
    if precision != "auto":
        return precision
    faster = False
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        faster = is_faster_in_bfloat16(cpu_name())
    return "bf16" if faster else "float32"


SMALLEST_WINDOW = 8
"""Pixels of a window's side."""

# --- of a run ---------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What every run is asked for, checked: how, and for each image its seed and class."""

    config: DecodeConfig
    seeds: list[int]
    """Signed 64-bit integers."""
    labels: torch.Tensor | None
    """int64 [count] on the model's device, the number of classes for none; None: no image has a class."""
    batch_size: int

    def of(self, chosen: Sequence[int]) -> Run:
        """The same for some of the images, by their numbers."""
        labels = None if self.labels is None else self.labels[list(chosen)]
        return self._replace(seeds=[self.seeds[i] for i in chosen], labels=labels)


def configure(config: DecodeConfig, overrides: dict[str, Any]) -> DecodeConfig:
    """A config with other values in some fields. Raises a ValueError for impossible ones, and for unknown fields."""
    try:
        return dataclasses.replace(config, **overrides)
    except TypeError as error:
        names = ", ".join(field.name for field in dataclasses.fields(DecodeConfig))
        raise ValueError(f"unknown decoding option ({error}); there are {names}") from error


def image_seed(seed: int, key: int | str) -> int:
    """The 64-bit seed of one image, from the seed of all and the image's number or name: stable for all time."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def image_seeds(count: int, seed: int, seeds: Sequence[int] | None) -> list[int]:
    """The seeds given, or those made of one. Raises a ValueError for another number of them, or another range."""
    if seeds is None:
        return [image_seed(seed, i) for i in range(count)]
    require_as_many(count, seeds, "seeds")
    for one in seeds:
        if not -(2**63) <= one < 2**63:
            raise ValueError(f"seed {one} isn't a signed 64-bit integer")
    return [int(one) for one in seeds]


def class_numbers(count: int, labels: Labels, num_classes: int, names: Sequence[str]) -> list[int] | None:
    """The classes of images by number, `num_classes` for none; None if there are no labels. Raises a ValueError for
    another number of them, or where the model has no such class."""
    if labels is None:
        return None
    require_classes(num_classes)
    if isinstance(labels, (int, str)):
        labels = [labels] * count
    require_as_many(count, labels, "labels")
    return [num_classes if label is None else class_number(label, num_classes, names) for label in labels]


def class_number(label: int | str, num_classes: int, names: Sequence[str]) -> int:
    """As `MaskGIT.class_number`."""
    require_classes(num_classes)
    choices = f"one of {', '.join(names)}" if names else f"a number from 0 to {num_classes - 1}"
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        if not (label.isdecimal() and len(label) < 10):
            near = difflib.get_close_matches(label, names, n=5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"unknown class {label!r}: choose {choices}{hint}")
        label = int(label)
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label} must be in [0, {num_classes}): choose {choices}")
    return label


def require_classes(num_classes: int) -> None:
    """Raise a ValueError unless the model has classes."""
    if not num_classes:
        raise ValueError("labels were given, but the model was trained without classes")


def require_as_many(count: int, given: Sequence[Any], what: str) -> None:
    """Raise a ValueError unless there is one of `given` for each image."""
    if len(given) != count:
        raise ValueError(f"{count} images, but {len(given)} {what}")


def check_edges(crop: str | int, grow: int = 0, feather: int = 0, variants: int = 1) -> int:
    """`grow`. Raises a ValueError: options of `MaskGIT.inpaint` that make no sense."""
    is_side = isinstance(crop, int) and not isinstance(crop, bool) and crop >= SMALLEST_WINDOW
    if crop not in ("auto", "off") and not is_side:
        raise ValueError(f"crop must be auto, off, or a side of at least {SMALLEST_WINDOW} pixels, got {crop!r}")
    for name, value, least in (("feather", feather, 0), ("grow", grow, 0), ("variants", variants, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if feather > grow:
        raise ValueError(f"feather {feather} is more than grow {grow}: only what the hole grows by can be blended")
    return grow
