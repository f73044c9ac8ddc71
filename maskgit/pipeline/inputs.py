"""The kinds of pictures and masks that people have, made one: Pillow's images, and bool arrays.

Conventions are those of torchvision and diffusers: NumPy has channels last, PyTorch first; floats are in [0, 1].
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from PIL import ExifTags, Image

from maskgit.data.carried import carry, turn_mask
from maskgit.data.masks import load_mask, to_mask
from maskgit.data.reading import read_as
from maskgit.pipeline.arguments import require_as_many

Picture = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike[str]
"""PIL, of any mode; NumPy [H, W] or [H, W, 1, 3 or 4], uint8 or float in [0, 1], or uint16 [H, W]; PyTorch
[1, 3 or 4, H, W], uint8 or float in [0, 1]; a path."""

Mask = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike[str]
"""True, or from half of white on, is to be filled. PIL, of any mode (see `maskgit.data.masks.to_mask`); NumPy [H, W] or
[H, W, 1] or PyTorch [H, W] or [1, H, W], bool, uint8 or float in [0, 1]; a path."""

_PICTURES = (
    "a PIL image, a NumPy array [H, W] or [H, W, 1, 3 or 4], a torch tensor [1, 3 or 4, H, W] (of uint8, or floats in "
    "[0, 1]) or a path"
)
_MASKS = (
    "a PIL image, a NumPy array [H, W] or a torch tensor [H, W] (of bool, uint8, or floats in [0, 1]) of its image's "
    "size, or a path"
)


class Given(NamedTuple):
    """A picture as it came in."""

    upright: Image.Image
    """As its result will be (see `maskgit.data.carried.carry`)."""
    lost: tuple[str, ...]
    """What that doesn't have any more, in words."""
    size: tuple[int, int]
    """As it was stored."""
    orientation: int
    """Of its EXIF data."""
    file: str
    """Its name, or ""."""


def is_one(given: Any) -> TypeGuard[Picture | Mask]:
    """Whether it is a single picture or mask, and not several."""
    if isinstance(given, (np.ndarray, torch.Tensor)):
        return given.ndim < 4
    return isinstance(given, (Image.Image, str, os.PathLike))


def as_list(given: Any, what: str) -> list[Any]:
    """One or several as a list. Raises ValueError: it is neither."""
    if is_one(given):
        return [given]
    if isinstance(given, (np.ndarray, torch.Tensor, Sequence)) and not isinstance(given, bytes):
        return list(given)
    raise ValueError(f"{what} must be one or a list of them, got {type(given).__name__}")


def read_pictures(pictures: Sequence[Any]) -> list[Given]:
    """Several pictures. What their results won't have of them is a warning of whoever calls the method of the pipeline
    that calls this. Raises ValueError as `read_given`."""
    given = [read_given(picture, number) for number, picture in enumerate(pictures)]
    for number, one in enumerate(given):
        for what in one.lost:
            file = f" ({one.file})" if one.file else ""
            warnings.warn(f"image {number}{file}: the result won't have {what}", stacklevel=3)
    return given


def read_holes(masks: Sequence[Any], pictures: Sequence[Given]) -> list[np.ndarray]:
    """bool [H, W] of each upright picture. Raises ValueError: there aren't as many, or as `read_hole`."""
    require_as_many(len(pictures), masks, "masks")
    return [read_hole(*pair, number) for number, pair in enumerate(zip(masks, pictures, strict=True))]


def read_given(picture: Any, number: int) -> Given:
    """Raises ValueError: it is no picture, has no pixels, or can't be read (ImageError)."""
    name = f"image {number}"
    if isinstance(picture, (str, os.PathLike)):
        return read_as(picture, lambda image: _given(image, os.fspath(picture)))
    if isinstance(picture, (np.ndarray, torch.Tensor)):
        picture = _from_array(picture, name)
    elif not isinstance(picture, Image.Image):
        raise ValueError(f"{name} must be {_PICTURES}; got {type(picture).__name__}")
    if not (picture.width and picture.height):
        raise ValueError(f"{name} has no pixels: it is {picture.width}x{picture.height}")
    return _given(picture, str(getattr(picture, "filename", "")))


def _given(image: Image.Image, file: str) -> Given:
    upright, lost = carry(image)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged data makes Pillow raise nearly anything
        orientation = 1
    return Given(upright, lost, image.size, orientation, file)


def read_hole(mask: Any, given: Given, number: int) -> np.ndarray:
    """bool [H, W] of the upright picture. Raises ValueError: it is no mask, or not one of this picture."""
    name, size = f"mask {number}", given.upright.size
    if isinstance(mask, (str, os.PathLike)):
        return load_mask(mask, size)
    if isinstance(mask, torch.Tensor):
        mask = _to_numpy(mask)
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if isinstance(mask, Image.Image):
        return to_mask(mask, size, name=name)
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"{name} must be {_MASKS}; got {type(mask).__name__}")
    values = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if values.dtype == np.uint8:
        hole = np.asarray(to_mask(Image.fromarray(values), name=name)) if values.ndim == 2 else values
    elif values.dtype.kind == "f":
        _check_range(values, name)
        hole = values >= 0.5
    else:
        hole = values
    hole = turn_mask(hole, given.size, given.orientation, given.upright.size) if hole.dtype == bool else hole
    if hole.dtype != bool or hole.shape != size[::-1]:
        got = f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"{name} must be {_MASKS}; its image is {list(size[::-1])}, got {got}")
    return hole


def _from_array(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    values = array
    if isinstance(values, torch.Tensor):
        values = _to_numpy(values)
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    known = values.dtype == np.uint8 or values.dtype.kind == "f" or (values.dtype == np.uint16 and values.ndim == 2)
    if not known or values.shape[2:] not in ((), (3,), (4,)) or values.ndim < 2:
        kind = type(array).__module__.split(".")[0]
        raise ValueError(f"{name} must be {_PICTURES}; got {array.dtype} {list(array.shape)} of {kind}")
    if not values.size:
        raise ValueError(f"{name} has no pixels: it is {values.shape[1]}x{values.shape[0]}")
    if values.dtype.kind == "f":
        _check_range(values, name)
        values = (values * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16


def _check_range(values: np.ndarray, name: str) -> None:
    """Raises ValueError: floats outside of [0, 1]."""
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # so for NaN too
        raise ValueError(f"{name} has floats from {values.min():g} to {values.max():g}: they must be in [0, 1]")
