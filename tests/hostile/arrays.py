"""Arguments of MaskGIT's inpaint, outpaint and generate: pictures, arrays and options from Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from maskgit.decoding import DECODERS

from .cases import Case, Group, Known, expect
from .pictures import expect_kept, random_image
from .seeds import Seeds

OPTIONS: dict[str, tuple[Any, ...]] = {
    "steps": (1, 2, 3, 20, 0, -1, True, np.int64(2), 2.5, float("nan"), "2", None),
    "schedule": ("cosine", "arccos", "sqrt", "", "Cosine", None, 3),
    "progress": ("after", "before", "inclusive", "", None),
    "counts": ("official", "floor", "decisive", "compound", "", None),
    "draw": ("categorical", "greedy", "perturbed", "", None),
    "order": ("confidence", "halton", "", None),
    "confidence": ("log_prob", "prob", "", None),
    "softmax_temperature": (1.0, 1e-30, 1e30, 1e-320, 0.0, -1.0, float("nan"), float("inf"), 10**400, "1", None),
    "choice_temperature": (0.0, 1e30, 1e308, -1.0, float("nan"), float("inf"), 10**400, "1", None),
    "annealing": ("progress", "schedule", "", None),
    "guidance_scale": (0.0, 1.0, 1e30, 1e308, -1.0, float("nan"), float("-inf"), 10**400, None),
    "guidance_ramp": ("constant", "linear", "", None),
    "guidance_from": (0.0, 0.5, -1.0, float("nan"), 10**400, None),
    "guidance_to": (1.0, 0.5, 0.0, 1.1, float("nan"), -(10**400), None),
    "stop_after": (None, 1, 2, 0, -1, 10**30, 1.5),
    "remask": (0.0, 1.0, 0.5, -1e-9, 1.1, float("nan"), None),
    "reuse": (0, 1, 3, -1, 10**30, 1.5),
    "no_such_option": (1,),
    "seed": (0, -1, 2**63, 10**30, 1.5, float("nan"), "x"),
    "batch_size": (1, 2, 0, -1, 10**30, 1.5, None),
    "labels": ("red", None, 0, 2, 3, -1, 10**30, "", "Red", "\x1b[31m", True, np.int64(1), 0.5),
    "seeds": (0, -(2**63), 2**63 - 1, 2**63, 10**30, -(10**30), 0.5, float("nan"), np.int64(3), "x"),
}
"""Each argument with values of which some make no sense; of the last two there is one for each picture."""


def options_for(rng: random.Random, count: int) -> dict[str, Any]:
    """Some arguments, sound ones of a decoder among them."""
    options: dict[str, Any] = {"steps": rng.choice((1, 2, 3))}
    if rng.random() < 0.3:
        options["config"] = DECODERS[rng.choice(list(DECODERS))]
    for name in rng.sample(list(OPTIONS), rng.choice((0, 1, 1, 2, 4))):
        value: Any = rng.choice(OPTIONS[name])
        if name in ("labels", "seeds"):
            other = rng.choice(OPTIONS[name])
            value = [rng.choice((value, other)) for _ in range(count + (rng.random() < 0.1))]
        options[name] = value
    return options


def inpaint(sound: Seeds, images: list[Any], masks: list[Any], **options: Any) -> Case:
    def check(results: Any) -> None:
        expect(len(results) == len(images), "another number of results than of pictures")
        for image, mask, result in zip(images, masks, results, strict=True):
            expect(min(image.size) > 0, "a picture without pixels was filled")
            if options.get("paste", True):
                expect_kept(image, mask, result)

    return Case(lambda: sound.model.inpaint(images, masks, **options), (ValueError, TypeError), check)


def outpaint(sound: Seeds, image: Image.Image, margins: Any, **options: Any) -> Case:
    def check(results: Any) -> None:
        left, top, right, bottom = margins
        size = image.width + left + right, image.height + top + bottom
        expect(results[0].size == size, "the result has another size")
        expect(min(image.size) > 0, "a picture without pixels was continued")

    return Case(lambda: sound.model.outpaint([image], [margins], **options), (ValueError, TypeError), check)


def generate(sound: Seeds, count: Any, **options: Any) -> Case:
    def check(pictures: Any) -> None:
        expect(len(pictures) == count, "another number of pictures than was asked for")
        expect(all(picture.size == (16, 16) for picture in pictures), "pictures of another size than the model's")

    return Case(lambda: sound.model.generate(count, **options), (ValueError, TypeError), check)


def hole(image: Image.Image) -> np.ndarray:
    mask = np.zeros(image.size[::-1], dtype=bool)
    mask[image.height // 2 :] = True
    return mask


def _damaged(seeds: Seeds) -> Case:
    image = Image.new("RGB", (8, 8))
    image.info["exif"] = b"Exif\0\0no TIFF"
    return inpaint(seeds, [image], [hole(image)], steps=1)


def _empty(width: int, height: int) -> Callable[[Seeds], Case]:
    image = Image.new("RGB", (width, height))
    return lambda seeds: inpaint(seeds, [image], [np.ones((height, width), dtype=bool)], steps=1)


KNOWN: Known = {
    "F15 no width": _empty(0, 5),
    "F15 no height": _empty(5, 0),
    "F15 outpainting from nothing": lambda seeds: outpaint(seeds, Image.new("RGB", (0, 0)), (4, 4, 4, 4), steps=1),
    "margins of 10^9": lambda seeds: outpaint(seeds, Image.new("RGB", (8, 8)), (0, 0, 10**9, 10**9), steps=1),
    "temperature 10^400": lambda seeds: generate(seeds, 1, softmax_temperature=10**400),
    "guidance 1e308": lambda seeds: generate(seeds, 1, steps=2, guidance_scale=1e308, labels=["red"]),
    "2 MB of a line": lambda seeds: inpaint(
        seeds, [Image.new("L", (2**21, 1))], [np.ones((1, 2**21), bool)], steps=1, crop="off"
    ),
    "a line in windows": lambda seeds: inpaint(
        seeds, [Image.new("L", (2**11, 1))], [np.ones((1, 2**11), bool)], steps=1
    ),
    "specks": lambda seeds: inpaint(
        seeds, [Image.new("L", (200, 90))], [np.random.default_rng(0).random((90, 200)) < 0.01], steps=1
    ),
    "damaged EXIF": _damaged,
    "one pixel": _empty(1, 1),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    how = rng.random()
    if how < 0.2:
        count = rng.choice((0, 1, 3, -1, 2.5, True, "2", None))
        return generate(seeds, count, **options_for(rng, count if isinstance(count, int) else 1))
    if how < 0.4:
        margins: Any = tuple(rng.choice((0, 1, 3, 17, -1, 1.5, float("nan"), 2**31, None)) for _ in range(4))
        return outpaint(seeds, random_image(rng), rng.choice((margins, (1, 2, 3, 4))), **options_for(rng, 1))
    images: list[Any] = [random_image(rng) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    masks: list[Any] = [hole(image) for image in images]
    if images and rng.random() < 0.5:
        i = rng.randrange(len(images))
        bent: tuple[Any, ...] = (
            *(masks[i].astype(np.uint8), masks[i].astype(float), masks[i].astype(object), masks[i].tolist(), None),
            *(masks[i].T, masks[i][None], masks[i][:0], masks[i][::-1], np.asfortranarray(masks[i]), ~masks[i]),
            *(np.zeros_like(masks[i]), np.ones_like(masks[i]), np.broadcast_to(True, masks[i].shape)),
        )
        masks[i] = rng.choice(bent)
    if images and rng.random() < 0.1:
        images[0] = Image.new("RGB", (0, 3))
    if rng.random() < 0.05:
        masks += [np.ones((1, 1), dtype=bool)]
    options = options_for(rng, len(images))
    if rng.random() < 0.2:
        options["paste"] = False
    if rng.random() < 0.2:
        options["save_steps"] = True
    return inpaint(seeds, images, masks, **options)


GROUP = Group("arrays and options", KNOWN, random_case)
