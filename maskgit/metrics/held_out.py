"""Held-out images: which of them are measured, their holes, and what else than the model fills those."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit.canvas.holes import paste_known
from maskgit.console import progress_bar
from maskgit.data import DataError, ImageDataset, load_dataset
from maskgit.data.masks import make_mask
from maskgit.data.pixels import plain_views, to_bytes, to_signed
from maskgit.pipeline import InpaintResult, MaskGIT, image_seed

TELEA, TOKENIZER_ONLY = "OpenCV Telea", "tokenizer only (upper bound)"
"""What a model must beat, and about the best that it could do."""

TELEA_RADIUS = 3
"""Neighbourhood of OpenCV's inpainting, in pixels."""

# --- which images -----------------------------------------------------------------------------------------------------


class HeldOut(NamedTuple):
    """The images that are measured."""

    dataset: ImageDataset
    """The validation side that they are of."""
    numbers: list[int]
    """Their positions in it."""
    pixels: Tensor
    """uint8 [n, 3, S, S]."""
    labels: list[int] | None
    """Classes by the model's numbers, if it is to know them."""


def load_held_out(model: MaskGIT, data: str, classes: bool, max_images: int | None, seed: int) -> HeldOut:
    """At most `max_images` of the validation side of `data`, "avatars" or a folder, drawn at random.

    Raises:
        DataError, ImageError: data that can't be used; `classes` are to be told that aren't the model's.
    """
    images = load_dataset(data, model.tokenizer.config.image_size, "val")
    images.number_classes_as(model.class_names)
    if classes and (not model.class_names or model.class_names != images.class_names):
        known = ", ".join(model.class_names) or "none"
        raise DataError(f"--classes and guidance need a model with the classes of {data}; this one knows {known}")
    numbers = choose_images(len(images), max_images, seed).tolist()
    labels = images.labels[numbers].tolist() if classes else None
    return HeldOut(images, numbers, plain_views(images, numbers), labels)


def choose_images(count: int, max_images: int | None, seed: int) -> np.ndarray:
    """The positions of the images to measure, in order. Raises DataError for fewer than two held-out images."""
    if count < 2:
        raise DataError(f"only {count} held-out image(s): figures need at least 2; add images")
    if max_images is None or max_images >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng((seed, 1)).permutation(count)[:max_images])


# --- pixels -----------------------------------------------------------------------------------------------------------


def to_picture(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def from_picture(picture: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@torch.inference_mode()
def reconstruct(model: MaskGIT, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens int64 [n, N] of images uint8 [n, 3, S, S], and what they decode to, uint8 likewise; on the CPU."""
    tokens, decoded = [], []
    with progress_bar(len(pixels), "reconstructing") as bar:
        for batch in pixels.split(64):
            tokens.append(model.tokenizer.encode(to_signed(batch).to(model.device)))
            decoded.append(to_bytes(model.tokenizer.decode(tokens[-1])).cpu())
            bar.update(len(batch))
    return torch.cat(tokens).cpu(), torch.cat(decoded)


# --- holes, and what fills them ---------------------------------------------------------------------------------------


def hole_masks(hole: str, keys: Iterable[int], size: int, seed: int) -> np.ndarray:
    """A hole for each image, bool [n, size, size]: of a mask maker, drawn from `seed` and the image's key alone."""
    seeds = [image_seed(seed, f"{hole}/{key}") % 2**64 for key in keys]
    return np.stack([make_mask(hole, size, size, one) for one in seeds])


def inpaint(
    model: MaskGIT, pixels: Tensor, masks: np.ndarray, keys: Iterable[int], seed: int, **options: Any
) -> list[InpaintResult]:
    """Images uint8 [n, 3, S, S] with their holes, bool [n, S, S], filled by the model.

    Each image's random numbers come from `seed` and its key alone; `options` are those of `MaskGIT.inpaint`.
    """
    pictures = [to_picture(image) for image in pixels]
    return model.inpaint(pictures, list(masks), seeds=[image_seed(seed, int(key)) for key in keys], **options)


def fill_mean(pixels: Tensor, mask: np.ndarray) -> Tensor:
    """The hole in the mean colour of the known pixels. uint8 [3, H, W], bool [H, W] -> uint8 [3, H, W]."""
    hidden = torch.from_numpy(mask)
    mean = pixels[:, ~hidden].float().mean(1).round().byte()
    return torch.where(hidden, mean[:, None, None], pixels)


def import_opencv() -> Any:
    """The module cv2. Raises ImportError, naming the extra to install, where it is missing."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "OpenCV, whose inpainting the model is compared with, is missing: pip install 'maskgit-inpaint[metrics]'"
        ) from error
    return cv2


def fill_telea(pixels: Tensor, mask: np.ndarray) -> Tensor:
    """OpenCV's inpainting after Telea (2004). uint8 [3, H, W], bool [H, W] -> uint8 [3, H, W]."""
    cv2 = import_opencv()
    image = pixels.permute(1, 2, 0).contiguous().numpy()
    filled = cv2.inpaint(image, mask.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA)
    return torch.from_numpy(filled).permute(2, 0, 1)


def paste_decoded(pixels: Tensor, decoded: Tensor, mask: np.ndarray) -> Tensor:
    """The tokenizer's own copy of the original in the hole, pasted as the pipeline does; all uint8 [3, H, W]."""
    return from_picture(paste_known(to_picture(pixels), to_picture(decoded), mask))
