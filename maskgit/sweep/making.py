"""What a sweep makes with one setting, filled holes or whole pictures; what else there could be; how they compare."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit.data import DataError, load_dataset
from maskgit.data.pixels import plain_views, to_signed
from maskgit.metrics import held_out
from maskgit.metrics.features import FeatureNetwork, extract_features
from maskgit.metrics.held_out import from_picture, to_picture
from maskgit.metrics.pairs import hole_errors, psnr_of_mean_error
from maskgit.metrics.sets import Gaussian, class_score, fit_gaussian, frechet_distance, manifold_scores
from maskgit.pipeline import MaskGIT, image_seed
from maskgit.sweep.settings import NEIGHBORS, Options, Setting

FIGURES = {
    "frechet": "Fréchet, EfficientNet-Lite0 (not FID)",
    "fid": "FID",
    "precision": "precision",
    "recall": "recall",
    "class_score": "class-entropy score (not IS)",
    "psnr_in_hole": "PSNR in the hole (dB)",
    "milliseconds": "ms per image",
}
"""What is measured of a cell, as it is called in tables and plots: of whole pictures precision, recall and class score,
of holes the PSNR. `fid` only where its weights are."""
DISTANCES = {"efficientnet-lite0": "frechet", "inception": "fid"}
"""The distance in the features of each network. Precision, recall and class score are in those of the first."""


class Images(NamedTuple):
    """What is inpainted, or what whole pictures are compared with."""

    numbers: list[int]
    """Positions in the validation side of the data set."""
    pixels: Tensor
    """uint8 [n, 3, S, S]."""
    masks: np.ndarray | None
    """bool [n, S, S], True = fill. None: whole pictures are made."""
    labels: list[int] | None
    """Classes, if the model is to know them."""

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        shape = None if self.masks is None else self.masks.shape
        digest = hashlib.sha256(repr((self.numbers, self.labels, shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        if self.masks is not None:
            digest.update(self.masks.tobytes())
        return digest.hexdigest()


def load_images(model: MaskGIT, options: Options) -> Images:
    """Choose images and make their holes. Raises DataError, ImageError for data that can't be used."""
    _, numbers, pixels, labels = held_out.load_held_out(
        model, options.data, options.tells_classes, options.max_images, options.seed
    )
    if options.generate and len(numbers) <= NEIGHBORS:
        raise DataError(
            f"only {len(numbers)} held-out images: precision and recall need at least {NEIGHBORS + 1}; add images"
        )
    size, hole = pixels.shape[2], options.hole
    masks = None if options.generate else held_out.hole_masks(hole, numbers, size, options.seed)
    return Images(numbers, pixels, masks, labels)


@dataclass(frozen=True)
class Judge:
    """Compares what was made with the originals, in the features of the networks."""

    networks: Sequence[FeatureNetwork]
    images: Images

    @functools.cached_property  # never asked for where all cells are finished already
    def originals(self) -> list[Tensor]:
        """The originals' features in each network, float32 [n, D]."""
        pictures = [to_picture(image) for image in self.images.pixels]
        return [extract_features(network, pictures) for network in self.networks]

    @functools.cached_property
    def gaussians(self) -> list[Gaussian]:
        """Of these features."""
        return [fit_gaussian(features) for features in self.originals]

    def figures(self, made: Sequence[Image.Image]) -> dict[str, float]:
        """Those of FIGURES, except for the time."""
        features = [extract_features(network, made) for network in self.networks]
        figures = {
            DISTANCES[network.name]: frechet_distance(some, gaussian)
            for network, some, gaussian in zip(self.networks, features, self.gaussians, strict=True)
        }
        if self.images.masks is None:
            scores = manifold_scores(self.originals[0], features[0], NEIGHBORS)
            parameter = next(self.networks[0].parameters())
            entropy, _ = class_score(self.networks[0].logits(features[0].to(parameter)))
            return figures | {"precision": scores.precision, "recall": scores.recall, "class_score": entropy}
        pixels = torch.stack([from_picture(picture) for picture in made])
        _, square = hole_errors(to_signed(pixels), to_signed(self.images.pixels), torch.from_numpy(self.images.masks))
        return figures | {"psnr_in_hole": psnr_of_mean_error(float(square.mean()))}


def make(
    model: MaskGIT,
    images: Images,
    setting: Setting,
    seed: int,
    batch_size: int,
    progress: Callable[[float], None] | None = None,
    most: int | None = None,
) -> list[Image.Image]:
    """The images, or the first `most` of them, with their holes filled; or as many whole pictures of their classes."""
    labels, numbers = images.labels and images.labels[:most], images.numbers[:most]
    options: dict[str, Any] = dict(config=setting.config, labels=labels, batch_size=batch_size, progress=progress)
    if images.masks is None:
        return model.generate(len(numbers), seeds=[image_seed(seed, number) for number in numbers], **options)
    results = held_out.inpaint(model, images.pixels[:most], images.masks[:most], numbers, seed, **options)
    return [result.image for result in results]


# --- what else there could be -----------------------------------------------------------------------------------------


def telea(model: MaskGIT, images: Images, options: Options) -> list[Image.Image]:
    """The holes filled by OpenCV's classic method: what a model must beat."""
    assert images.masks is not None
    return [to_picture(filled) for filled in map(held_out.fill_telea, images.pixels, images.masks)]


def tokenizer_only(model: MaskGIT, images: Images, options: Options) -> list[Image.Image]:
    """The holes filled from the originals' own tokens: about the best that a transformer over these could do."""
    assert images.masks is not None
    _, decoded = held_out.reconstruct(model, images.pixels)
    return [to_picture(filled) for filled in map(held_out.paste_decoded, images.pixels, decoded, images.masks)]


def training_pictures(model: MaskGIT, images: Images, options: Options) -> list[Image.Image]:
    """As many real pictures, drawn at random from those to train on: how near two sets of real ones are."""
    real = load_dataset(options.data, model.tokenizer.config.image_size, "train")
    chosen = np.random.default_rng((options.seed, 4)).permutation(len(real))[: len(images.numbers)]
    return [to_picture(image) for image in plain_views(real, chosen)]


Reference = Callable[[MaskGIT, Images, Options], list[Image.Image]]
REFERENCES: dict[str, Reference] = {held_out.TELEA: telea, held_out.TOKENIZER_ONLY: tokenizer_only}
"""What fills the holes otherwise."""
REAL: dict[str, Reference] = {"real training pictures": training_pictures}
"""What whole pictures are set beside."""
