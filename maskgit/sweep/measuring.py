"""Measures the cells of a sweep, one setting with one seed each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit.console import progress_bar
from maskgit.data.pixels import to_signed
from maskgit.files import open_regular
from maskgit.machine import describe
from maskgit.metrics import held_out
from maskgit.metrics.features import FeatureNetwork, extract_features
from maskgit.metrics.figures import spread, weights_digest
from maskgit.metrics.held_out import from_picture, to_picture
from maskgit.metrics.pairs import hole_errors, psnr_of_mean_error
from maskgit.metrics.sets import Gaussian, fit_gaussian, frechet_distance
from maskgit.pipeline import MaskGIT
from maskgit.sweep.settings import AXES, FEATURES_WORK, Options, Setting, describe_values, settings
from maskgit_kernels import backend

FIGURES = {
    "frechet": "Fréchet, EfficientNet-Lite0 (not FID)",
    "fid": "FID",
    "psnr_in_hole": "PSNR in the hole (dB)",
    "milliseconds": "ms per image",
}
"""What is measured of a cell, as it is called in tables and plots. `fid` only where its weights are."""
DISTANCES = {"efficientnet-lite0": "frechet", "inception": "fid"}
"""The distance in the features of each network."""

LINE = b'{"key": {'
"""How every line of the ledger starts."""


class Images(NamedTuple):
    """What is inpainted."""

    numbers: list[int]
    """Positions in the validation side of the data set."""
    pixels: Tensor
    """uint8 [n, 3, S, S]."""
    masks: np.ndarray
    """bool [n, S, S], True = fill."""
    labels: list[int] | None
    """Classes, if the model is to know them."""

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        digest = hashlib.sha256(repr((self.numbers, self.labels, self.masks.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        digest.update(self.masks.tobytes())
        return digest.hexdigest()


def load_images(model: MaskGIT, options: Options) -> Images:
    """Choose images and make their holes. Raises DataError, ImageError for data that can't be used."""
    _, numbers, pixels, labels = held_out.load_held_out(
        model, options.data, options.tells_classes, options.max_images, options.seed, options.one_per_family
    )
    return Images(numbers, pixels, held_out.hole_masks(options.hole, numbers, pixels.shape[2], options.seed), labels)


@dataclass(frozen=True)
class Judge:
    """Compares filled images with the originals, in the features of the networks."""

    networks: Sequence[FeatureNetwork]
    images: Images

    @functools.cached_property  # never asked for where all cells are finished already
    def originals(self) -> list[Gaussian]:
        """The originals' features in each network."""
        pictures = [to_picture(image) for image in self.images.pixels]
        return [fit_gaussian(extract_features(network, pictures)) for network in self.networks]

    def figures(self, filled: Sequence[Image.Image]) -> dict[str, float]:
        """Those of FIGURES, except for the time."""
        pixels = torch.stack([from_picture(picture) for picture in filled])
        _, square = hole_errors(to_signed(pixels), to_signed(self.images.pixels), torch.from_numpy(self.images.masks))
        distances = {
            DISTANCES[network.name]: frechet_distance(extract_features(network, filled), original)
            for network, original in zip(self.networks, self.originals, strict=True)
        }
        return {**distances, "psnr_in_hole": psnr_of_mean_error(float(square.mean()))}


def inpaint(
    model: MaskGIT,
    images: Images,
    setting: Setting,
    seed: int,
    batch_size: int,
    progress: Callable[[float], None] | None = None,
    most: int | None = None,
) -> list[Image.Image]:
    """The images, or the first `most` of them, with their holes filled."""
    results = held_out.inpaint(
        model,
        images.pixels[:most],
        images.masks[:most],
        images.numbers[:most],
        seed,
        config=setting.config,
        labels=images.labels and images.labels[:most],
        batch_size=batch_size,
        progress=progress,
    )
    return [result.image for result in results]


def telea(model: MaskGIT, images: Images) -> list[Image.Image]:
    """The holes filled by OpenCV's classic method: what a model must beat."""
    return [to_picture(filled) for filled in map(held_out.fill_telea, images.pixels, images.masks)]


def tokenizer_only(model: MaskGIT, images: Images) -> list[Image.Image]:
    """The holes filled from the originals' own tokens: about the best that a transformer over these could do."""
    _, decoded = held_out.reconstruct(model, images.pixels)
    return [to_picture(filled) for filled in map(held_out.paste_decoded, images.pixels, decoded, images.masks)]


REFERENCES = {held_out.TELEA: telea, held_out.TOKENIZER_ONLY: tokenizer_only}


class Ledger:
    """The finished cells, one line of JSON each, in a file that only grows.

    Args:
        path: made, with its folder, when the first cell is added.

    Raises:
        ValueError: the file has a line that is none of ours. A last line without its end, as a power cut or a full
            disk may leave it, counts as never written, and is removed.
        OSError: it can't be read, or mended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, float]] = {}
        data = b""
        if os.path.lexists(path):
            with open_regular(path) as file:
                data = file.read()
        *lines, last = data.split(b"\n")
        torn = bool(last) and LINE.startswith(last[: len(LINE)].rstrip(b"\0"))  # ours, or what a power cut made of it
        for at, line in enumerate([*lines, last] if last and not torn else lines, 1):
            try:
                cell = json.loads(line)
                figures = {str(name): float(figure) for name, figure in cell["figures"].items()}
                self.cells[self._key(cell["key"])] = figures
            except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {at}: not a finished cell; remove the line, or the file") from error
        if torn:  # only now is it known that the file is ours
            print(f"{path}: the last line is torn, and is removed; its cell is measured again", file=sys.stderr)
            os.truncate(path, len(data) - len(last))

    @staticmethod
    def _key(key: dict[str, Any]) -> str:
        return json.dumps(key, sort_keys=True)

    def __contains__(self, key: dict[str, Any]) -> bool:
        return self._key(key) in self.cells

    def __getitem__(self, key: dict[str, Any]) -> dict[str, float]:
        return self.cells[self._key(key)]

    def add(self, key: dict[str, Any], figures: dict[str, float]) -> None:
        """Keep a cell, for good: it is on the disk when this returns. Raises OSError if it can't be written."""
        line = (json.dumps({"key": key, "figures": figures}) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:  # unbuffered: nothing is left to be written after an error
            before, rest = file.tell(), memoryview(line)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(before)  # else half a line would run together with the next
                error.filename = os.fspath(self.path)
                raise
        self.cells[self._key(key)] = figures


def sweep(model: MaskGIT, networks: Sequence[FeatureNetwork], options: Options, command: str = "") -> dict[str, Any]:
    """Measure what is not in the ledger yet, and put all of it into a report, as JSON can hold it.

    Of the options, `model`, `device` and `precision` are not looked at again; `command` is noted in the report.

    Raises:
        DataError, ImageError: images that can't be used.
        ValueError, OSError: the ledger can't be read or written.
    """
    chosen, seeds = settings(options, model.decoding), range(options.seed, options.seed + options.seeds)
    images, machine = load_images(model, options), describe(model.device)
    ledger, judge = Ledger(options.output / "cells.jsonl"), Judge(networks, images)
    digest, images_digest = weights_digest(model), images.digest
    context = {
        "weights": digest,
        "images": images_digest,
        "networks": {network.name: network.digest for network in networks},
        "precision": model.precision,
        "kernels": backend.resolve(None, model.device),
        "batch_size": options.batch_size,
        **{name: machine[name] for name in ("device", "threads", "torch")},
    }

    def key(**what: Any) -> dict[str, Any]:
        return {**context, **what}

    def cell(setting: Setting, seed: int) -> dict[str, Any]:
        return key(config=dataclasses.asdict(setting.config), seed=seed)

    def measure(what: dict[str, Any], fill: Callable[[], list[Image.Image]]) -> None:
        start = time.perf_counter()
        filled = fill()
        milliseconds = 1000 * (time.perf_counter() - start) / len(filled)
        ledger.add(what, {**judge.figures(filled), "milliseconds": milliseconds})

    for method, reference in REFERENCES.items():
        if key(method=method) not in ledger:
            measure(key(method=method), functools.partial(reference, model, images))

    # All settings once, then all with the next seed: if the machine becomes slower meanwhile, it does so for all.
    cells = [(setting, seed) for seed in seeds for setting in chosen]
    absent = [(setting, seed) for setting, seed in cells if cell(setting, seed) not in ledger]
    missing = {(setting.config, seed): (setting, seed) for setting, seed in absent}.values()  # two names, one config
    print(
        f"{len(chosen)} settings x {len(seeds)} seeds on {len(images.numbers)} images; "
        f"{len(cells) - len(absent)} of {len(cells)} cells are finished already"
    )
    varied = [field for field in AXES if len({setting.values[field] for setting in chosen}) > 1]
    warm: set[Setting] = set()
    with progress_bar(sum(setting.work for setting, _ in missing) * len(images.numbers), "", unit=None) as bar:
        for setting, seed in missing:
            bar.set_description_str(f"{describe_values(setting.values, varied)} seed {seed}".strip())
            fill = functools.partial(inpaint, model, images, setting, seed, options.batch_size)
            if setting not in warm:  # the first batch prepares what the others use: packed weights, CUDA graphs
                fill(most=options.batch_size)
                warm.add(setting)
            work = setting.work - FEATURES_WORK
            measure(cell(setting, seed), functools.partial(fill, progress=lambda done, w=work: bar.update(w * done)))
            bar.update(FEATURES_WORK * len(images.numbers))

    def summary(keys: list[dict[str, Any]]) -> dict[str, Any]:
        found = [ledger[one] for one in keys]
        return {name: spread([figures[name] for figures in found]) for name in FIGURES if name in found[0]}

    return {
        "study": options.name,
        "command": command,
        "machine": machine,
        "model": options.model,
        "weights_sha256": digest,
        "precision": model.precision,
        "data": options.data,
        "images": len(images.numbers),
        "images_sha256": images_digest,
        "one_per_family": options.one_per_family,
        "hole": options.hole,
        "classes": options.tells_classes,
        "seeds": list(seeds),
        "axes": [field for field, values in options.axes.items() if len(set(values)) > 1],
        "varied": varied,
        "rows": [
            {
                "setting": setting.values,
                "config": dataclasses.asdict(setting.config),
                "figures": summary([cell(setting, seed) for seed in seeds]),
            }
            for setting in chosen
        ],
        "references": [{"method": method, "figures": summary([key(method=method)])} for method in REFERENCES],
    }
