"""What a sweep tries: its options, the studies, and the settings of the decoder that come of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from maskgit.console import UsageError, require_at_least
from maskgit.data.masks import MAKERS
from maskgit.decoding import DECODERS, DecodeConfig, decoder
from maskgit.decoding.schedules import SCHEDULES
from maskgit.files import open_regular
from maskgit.pipeline import Precision

AXES = {
    "decoder": "decoders",
    "schedule": "schedules",
    "steps": "steps",
    "choice_temperature": "temperatures",
    "softmax_temperature": "softmax_temperatures",
    "guidance_scale": "guidance",
    "guidance_interval": "guidance_intervals",
    "remask": "remask",
    "reuse": "reuse",
}
"""What a setting consists of, and the option with the values to try."""

OWN = "model"
"""The decoder that a model has been saved with."""

INTERVAL = ("guidance_from", "guidance_to")
"""The fields of the decoder that a guidance interval, "0.5:1", sets."""

Study = Literal["steps", "schedules", "temperature", "decoders", "guidance", "remask", "reuse"]

# As wide as the sources', but each within a quarter of an hour on two CPU cores.
STUDIES: dict[Study, dict[str, tuple[Any, ...]]] = {
    "steps": {"steps": (1, 2, 3, 4, 6, 8, 12, 16)},
    "schedules": {"schedule": tuple(SCHEDULES), "steps": (8,)},
    "temperature": {"choice_temperature": (0.0, 0.5, 1.0, 2.0, 4.5, 9.0, 18.0), "steps": (8,)},
    "decoders": {"decoder": (*DECODERS, OWN), "steps": (8,)},
    "guidance": {"guidance_scale": (0.0, 1.0, 2.0, 3.0, 5.0), "steps": (8,)},
    "remask": {"remask": (0.0, 0.25, 0.5, 0.75, 1.0), "steps": (16,)},
    "reuse": {"reuse": (0, 1, 2, 3, 7), "steps": (16,)},
}

CUSTOM = "grid"
"""Name of a sweep that is no study."""

NEIGHBORS = 3
"""k of precision and recall of whole pictures, as in Kynkäänniemi et al., 2019."""

FEATURES_WORK = 3
"""Measuring an image takes about as long as this many passes of the embedded model: for the time left only."""


@dataclass(frozen=True)
class Options:
    """Inpaint held-out images with every combination of decoding options, several times each, and compare the results
    with the originals; or make whole pictures (--generate). Options that are not given are those of the study, else
    those of the decoder's preset."""

    study: Study | None = None
    """Choose the values to try by one word: the number of steps; all schedules; the choice temperature; all decoders;
    the guidance scale; re-masking; reuse of the context. The axes below replace or extend the study's."""
    generate: bool = False
    """Make as many whole pictures, of the classes of the held-out images, and compare the sets."""
    decoders: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"Decoders to try: {', '.join(DECODERS)}; or {OWN}, the model's own. Default: maskgit."),
    ] = ()
    steps: tuple[int, ...] = ()
    """Numbers of decoding steps to try."""
    schedules: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Mask schedules to try: {', '.join(SCHEDULES)}.")] = ()
    temperatures: tuple[float, ...] = ()
    """Choice temperatures to try: weights of the Gumbel noise on the confidence."""
    softmax_temperatures: tuple[float, ...] = ()
    """Softmax temperatures to try: they divide the logits."""
    guidance: tuple[float, ...] = ()
    """Guidance scales to try; 0 is none. The model must know classes, and is told each image's."""
    guidance_intervals: tuple[str, ...] = ()
    """Shares of the steps between which to guide, FROM:TO, such as 0:1 (all) and 0.5:1 (the second half)."""
    remask: tuple[float, ...] = ()
    """Shares of re-masking (ReMDM) to try; 0 is none."""
    reuse: tuple[int, ...] = ()
    """Numbers of steps to try that follow a full evaluation and reuse its context; 0 is none."""
    seeds: int = 5
    """Times that each setting is measured, from other random numbers."""
    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    data: str = "avatars"
    """A folder of images, or `avatars` for the embedded data set. Only its validation side is used, but for comparison
    with --generate."""
    hole: Annotated[str, tyro.conf.arg(help=f"What is hidden: {', '.join(MAKERS)}.")] = "center"
    max_images: int = 96
    """Use at most this many of the images, drawn at random."""
    classes: bool = False
    """Tell a class-conditional model the class of each image even if no guidance is asked for."""
    output: Path = Path("outputs/sweeps")
    """Folder for cells.jsonl, and for a folder of results for each study."""
    seed: int = 0
    """Seed of which images and holes are used; the first of the decoding's seeds."""
    batch_size: int = 16
    """Images that are decoded together."""
    inception_weights: Path | None = None
    """Weights for the FID, if they are not where pytorch-fid keeps them. Without them there is no FID."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    precision: Precision = "auto"
    """Of the transformer; auto is bf16 where the hardware is faster in it."""

    @property
    def name(self) -> str:
        """Of the folder with the results."""
        return f"{self.study or CUSTOM}{'-generate' if self.generate else ''}"

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values to try, by field of the setting; none where the decoder's preset decides."""
        study = STUDIES[self.study] if self.study else {}
        return {field: getattr(self, option) or study.get(field, ()) for field, option in AXES.items()}

    @property
    def tells_classes(self) -> bool:
        """Whether the model is to know the classes: guidance and --generate need them."""
        return self.classes or self.generate or bool(self.axes["guidance_scale"])

    def check(self) -> None:
        """Raise UsageError if a value makes no sense."""
        fewest = NEIGHBORS + 1 if self.generate else 2
        require_at_least(self, {"seeds": 1, "batch_size": 1, "max_images": fewest})
        if self.hole not in MAKERS:
            raise UsageError(f"--hole {self.hole}: must be one of {', '.join(MAKERS)}")
        if self.generate and self.hole != Options.hole:
            raise UsageError(f"--hole {self.hole}: whole pictures have no holes; leave out --hole or --generate")
        self.check_output()
        try:
            settings(self, DecodeConfig())
        except ValueError as error:
            raise UsageError(str(error)) from error

    def check_output(self) -> None:
        """Raise UsageError if the results would be found among the data, or take the place of other files."""
        folder = (self.output / self.name).resolve()
        if self.data != "avatars" and os.path.isdir(self.data):
            if any(here.exists() and here.samefile(self.data) for here in (folder, *folder.parents)):
                raise UsageError(f"--output {self.output}: {folder} is inside --data {self.data}; choose another")
        names = ("results.json", "results.md", *(f"{axis}.png" for axis in AXES))
        others = [folder / name for name in names if os.path.lexists(folder / name)]
        if others and not is_report(folder / "results.json"):
            raise UsageError(f"--output {self.output}: {others[0]} is there, and not from a sweep; choose another")


@dataclass(frozen=True)
class Setting:
    """One combination of decoding options."""

    decoder: str
    config: DecodeConfig

    @property
    def values(self) -> dict[str, Any]:
        """By the fields of AXES."""
        interval = ":".join(f"{getattr(self.config, name):g}" for name in INTERVAL)
        special = {"decoder": self.decoder, "guidance_interval": interval}
        return {name: special[name] if name in special else getattr(self.config, name) for name in AXES}

    @property
    def acting(self) -> DecodeConfig:
        """The configuration without what changes nothing: settings that share it have their cells in common."""
        if self.config.guidance_scale:
            return self.config
        return dataclasses.replace(self.config, guidance_from=0.0, guidance_to=1.0)

    @property
    def work(self) -> int:
        """About how long it takes to fill and measure an image, in passes of the transformer."""
        return self.config.passes + FEATURES_WORK


def settings(options: Options, own: DecodeConfig) -> list[Setting]:
    """The product of the axes, each setting once; `own` is the model's. Raises a ValueError for impossible values."""
    found = []
    for values in itertools.product(*(values or (None,) for values in options.axes.values())):
        given = {field: value for field, value in zip(AXES, values, strict=True) if value is not None}
        name = given.pop("decoder", "maskgit")
        if "guidance_interval" in given:
            given |= _interval(given.pop("guidance_interval"))
        config = dataclasses.replace(own if name == OWN else decoder(name), **given)
        if not options.tells_classes:  # the preset's guidance would have nothing to act on
            config = dataclasses.replace(config, guidance_scale=0.0)
        found.append(Setting(name, config))
    guided = any(setting.config.guidance_scale or setting.decoder == OWN for setting in found)
    if options.guidance_intervals and not guided:  # all intervals would give the same
        raise ValueError("--guidance-intervals: nothing is guided; give --guidance too, such as 2")
    return list(dict.fromkeys(found))


def _interval(text: str) -> dict[str, float]:
    """The fields that "0.5:1" sets. Raises a ValueError for anything else."""
    try:
        first, last = map(float, text.split(":"))
    except ValueError:
        raise ValueError(f"guidance interval {text!r} must be FROM:TO, such as 0.5:1") from None
    return dict(zip(INTERVAL, (first, last), strict=True))


def describe_values(values: dict[str, Any], fields: Sequence[str]) -> str:
    """Some fields of a setting: "steps 8, choice temperature 4.5"."""
    return ", ".join(f"{field.replace('_', ' ')} {values[field]}" for field in fields)


def is_report(path: Path) -> bool:
    """Whether a file is a sweep's results.json."""
    try:
        with open_regular(path) as file:
            report = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and report.keys() >= {"study", "rows", "weights_sha256"}
