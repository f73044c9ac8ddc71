"""A model's config.json: `MaskGIT.from_pretrained`, and then a picture from nothing."""

from __future__ import annotations

import dataclasses
import json
import random
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgit import MaskGIT
from maskgit.network.folder import ModelError

from .bending import NESTED, as_json, bend_json, put_odd
from .cases import Case, Content, Group, Known, expect, with_file
from .seeds import Seeds

FOLDER = Path("model")


def use(seeds: Seeds, folder: Path = FOLDER) -> Case:
    """Load a model and try it."""

    def call() -> None:
        model = MaskGIT.from_pretrained(folder, device="cpu", precision="float32")
        for config in (model.tokenizer.config, model.transformer.config, model.decoding):
            check_types(config)
        for name, tensor in (*model.tokenizer.state_dict().items(), *model.transformer.state_dict().items()):
            expect(tensor.is_floating_point() and tensor.isfinite().all(), "weights that aren't finite numbers")
            expect(tensor.numel() or "register" in name, "weights without numbers")
        expect(all(isinstance(name, str) for name in model.class_names), "class names that aren't text")
        size = model.tokenizer.config.image_size
        (picture,) = model.generate(1, steps=2)
        expect(picture.size == (size, size), "pictures of another size than the model's")

    return Case(call, (ModelError, ValueError))


def check_types(config: Any) -> None:
    """Every field of a configuration holds what its annotation says, or a whole number where any number will do."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if hint in (int, float, bool, str):
            kinds = (int, float) if hint is float else (hint,)
            expect(type(value) in kinds, "a configuration whose field is of another type")
        for part in value if isinstance(value, tuple) else ():
            check_types(part)


def bent(**changes: Any) -> Callable[[Seeds], Case]:
    """The configuration with changed values, by their path: tokenizer__encoder__0__blocks."""

    def change(data: bytes) -> bytes:
        config = json.loads(data)
        for name, value in changes.items():
            *above, last = (int(part) if part.isdigit() else part for part in name.split("__"))
            place = config
            for part in above:
                place = place[part]
            place[last] = value
        return as_json(config)

    return config_file(change)


def config_file(content: Content) -> Callable[[Seeds], Case]:
    return with_file(use, "model/config.json", content, "model")


KNOWN: Known = {
    "F10 pipe": config_file(None),
    "F11 10^9 layers": bent(transformer__depth=10**9),
    "F11 10^6 blocks": bent(tokenizer__encoder__1__blocks=10**6),
    "F11 nested": config_file(NESTED),
    "F11 nested 1100 deep": config_file(b'{"a":' * 1100 + b"1" + b"}" * 1100),
    "F11 image_size 1e308": bent(tokenizer__image_size=1e308),
    "F11 codebook_dim 1.5": bent(tokenizer__codebook_dim=1.5),
    "F11 codebook_dim NaN": bent(tokenizer__codebook_dim=float("nan")),
    "F11 codebook_dim Infinity": bent(tokenizer__codebook_dim=float("inf")),
    "F11 10^12 channels": bent(tokenizer__encoder__2__channels=10**12),
    "F11 dim 10^12": bent(transformer__dim=10**12),
    "F11 norm_eps null": bent(transformer__norm_eps=None),
    "F11 norm_eps is text": bent(transformer__norm_eps="x"),
    "F11 groups true": bent(tokenizer__groups=True),
    "F11 unit_pixels is text": bent(tokenizer__unit_pixels="false"),
    "F11 name of 5000 letters": lambda seeds: use(seeds, Path("x" * 5000)),
    "class names that are numbers": bent(class_names=[1, 2, 3]),
    "norm_eps NaN": bent(transformer__norm_eps=float("nan")),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    path = seeds.take("model") / "config.json"
    config = json.loads(path.read_text())
    how = rng.random()
    if how < 0.03:
        put_odd(rng, path)
    elif how < 0.15:
        path.write_bytes(bend_json(rng, config))
    else:  # half of the file are digests and names
        part = rng.choice(("tokenizer", "transformer", "decoding"))
        path.write_bytes(as_json({**config, part: "PART"}).replace(b'"PART"', bend_json(rng, config[part])))
    return use(seeds)


GROUP = Group("config.json", KNOWN, random_case)
