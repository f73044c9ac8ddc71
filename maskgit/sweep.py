"""What the decoding options do to quality and time: inpaint held-out images with every combination of them.

    python -m maskgit.sweep --study steps                       # distance and time against the number of steps
    python -m maskgit.sweep --study schedules --steps 8 16      # a study with an axis of one's own
    python -m maskgit.sweep --decoders maskgit halton --temperatures 0 4.5 --steps 4 8 16

Writes results.json, results.md and plots to OUTPUT/STUDY. A cell, one setting with one seed, is kept in
OUTPUT/cells.jsonl as soon as it is finished: a run that is broken off goes on where it was, and studies share what
they have in common. Needs the extras [metrics] and, for the plots, [bench]. See docs/sweeps.md.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.hardware import describe
from maskgit.console import printable_lines
from maskgit.data import DataError, load_dataset
from maskgit.data.masks import MAKERS, make_mask
from maskgit.decoding import DECODERS, DecodeConfig, decoder
from maskgit.decoding.schedules import SCHEDULES
from maskgit.files import open_regular, write_atomically
from maskgit.metrics import Gaussian, fit_gaussian, frechet_distance, hole_errors, psnr_of_mean_error
from maskgit.metrics.card import (
    BAD_USAGE,
    DONE,
    INTERRUPTED,
    choose_images,
    fail,
    fill_telea,
    from_picture,
    import_opencv,
    make_subsets,
    number,
    paste_decoded,
    plain_views,
    spread,
    table,
    to_picture,
    to_pixels,
    to_signed,
    weights_digest,
)
from maskgit.metrics.features import EfficientNetFeatures, FeatureNetwork, WeightsError, extract_features, inception
from maskgit.pipeline import MaskGIT, Precision, image_seed
from maskgit_kernels import backend

AXES = {
    "decoder": "decoders",
    "schedule": "schedules",
    "steps": "steps",
    "choice_temperature": "temperatures",
    "softmax_temperature": "softmax_temperatures",
    "guidance_scale": "guidance",
    "remask": "remask",
    "reuse": "reuse",
}
"""What a setting consists of, and the option with the values to try."""

OWN = "model"
"""The decoder that a model has been saved with."""

Study = Literal["steps", "schedules", "temperature", "decoders", "guidance"]

# As wide as the sources', but each within 10 minutes on two CPU cores.
STUDIES: dict[Study, dict[str, tuple[Any, ...]]] = {
    "steps": {"steps": (1, 2, 3, 4, 6, 8, 12, 16)},
    "schedules": {"schedule": tuple(SCHEDULES), "steps": (8,)},
    "temperature": {"choice_temperature": (0.0, 0.5, 1.0, 2.0, 4.5, 9.0, 18.0), "steps": (8,)},
    "decoders": {"decoder": (*DECODERS, OWN), "steps": (8,)},
    "guidance": {"guidance_scale": (0.0, 1.0, 2.0, 3.0, 5.0), "steps": (8,)},
}

CUSTOM = "grid"
"""Name of a sweep that is no study."""

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

FEATURES_WORK = 3
"""Measuring an image takes about as long as this many passes of the embedded model: for the time left only."""


@dataclass(frozen=True)
class Options:
    """Inpaint held-out images with every combination of decoding options, several times each, and compare the results
    with the originals. Options that are not given are those of the study, else those of the decoder's preset."""

    study: Study | None = None
    """Choose the values to try by one word: the number of steps; all schedules; the choice temperature; all decoders;
    the guidance scale. The axes below replace or extend the study's."""
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
    remask: tuple[float, ...] = ()
    """Shares of re-masking (ReMDM) to try; 0 is none."""
    reuse: tuple[int, ...] = ()
    """Numbers of steps to try that follow a full evaluation and reuse its context; 0 is none."""
    seeds: int = 5
    """Times that each setting is measured, from other random numbers."""
    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    data: str = "emoji"
    """A folder of images, or `emoji` for the embedded data set. Only its validation side is used."""
    hole: Annotated[str, tyro.conf.arg(help=f"What is hidden: {', '.join(MAKERS)}.")] = "center"
    one_per_family: bool = True
    """Take one image, drawn at random, of each family of near copies (skin tones, genders of emoji)."""
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
    """Of the transformer; auto is bf16 where the hardware computes in it."""

    @property
    def name(self) -> str:
        """Of the folder with the results."""
        return self.study or CUSTOM

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values to try, by field of the setting; none where the decoder's preset decides."""
        study = STUDIES[self.study] if self.study else {}
        return {field: getattr(self, option) or study.get(field, ()) for field, option in AXES.items()}

    @property
    def tells_classes(self) -> bool:
        """Whether the model is to know the classes: guidance needs them."""
        return self.classes or bool(self.axes["guidance_scale"])

    def check(self) -> None:
        """Raise a ValueError if a value makes no sense."""
        for name, least in {"seeds": 1, "batch_size": 1, "max_images": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        if self.hole not in MAKERS:
            raise ValueError(f"--hole {self.hole}: must be one of {', '.join(MAKERS)}")
        self.check_output()
        settings(self, DecodeConfig())

    def check_output(self) -> None:
        """Raise a ValueError if the results would be found among the data, or take the place of other files."""
        folder = (self.output / self.name).resolve()
        if self.data != "emoji" and os.path.isdir(self.data):
            if any(here.exists() and here.samefile(self.data) for here in (folder, *folder.parents)):
                raise ValueError(f"--output {self.output}: {folder} is inside --data {self.data}; choose another")
        names = ("results.json", "results.md", *(f"{axis}.png" for axis in AXES))
        others = [folder / name for name in names if os.path.lexists(folder / name)]
        if others and not is_report(folder / "results.json"):
            raise ValueError(f"--output {self.output}: {others[0]} is there, and not from a sweep; choose another")


@dataclass(frozen=True)
class Setting:
    """One combination of decoding options."""

    decoder: str
    config: DecodeConfig

    @property
    def values(self) -> dict[str, Any]:
        """By the fields of AXES."""
        return {"decoder": self.decoder, **{name: getattr(self.config, name) for name in AXES if name != "decoder"}}

    @property
    def work(self) -> int:
        """About how long it takes to fill and measure an image, in passes of the transformer."""
        return self.config.steps * (2 if self.config.guidance_scale else 1) + FEATURES_WORK


def settings(options: Options, own: DecodeConfig) -> list[Setting]:
    """The product of the axes, each setting once; `own` is the model's. Raises a ValueError for impossible values."""
    found = []
    for values in itertools.product(*(values or (None,) for values in options.axes.values())):
        given = {field: value for field, value in zip(AXES, values, strict=True) if value is not None}
        name = given.pop("decoder", "maskgit")
        config = dataclasses.replace(own if name == OWN else decoder(name), **given)
        if not options.tells_classes:  # the preset's guidance would have nothing to act on
            config = dataclasses.replace(config, guidance_scale=0.0)
        found.append(Setting(name, config))
    return list(dict.fromkeys(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0; 1 if model, data, a package or the disk fails; 2 for bad usage; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        options = tyro.cli(Options, args=argv, prog="python -m maskgit.sweep", config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:  # --help, or options that tyro could not read
        return int(stop.code or 0)
    try:
        options.check()
    except ValueError as error:
        print(printable_lines(f"error: {error}"), file=sys.stderr)
        return BAD_USAGE
    try:
        try:
            import_opencv()
            model = MaskGIT.from_pretrained(options.model, device=options.device, precision=options.precision)
            measuring = networks(options, model.device)
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # they all say what to do
            return fail(error)
        report = sweep(model, measuring, options, shlex.join(["python", "-m", "maskgit.sweep", *argv]))
        folder = options.output / options.name
        text = markdown(report)
        write_atomically(
            {
                folder / "results.json": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
                folder / "results.md": text.encode(),
            }
        )
        print(text)
        try:
            draw(report, folder)
        except ImportError:
            print("no plots: matplotlib is missing: pip install 'maskgit-inpaint[bench]', then run this again")
    except (OSError, ValueError) as error:  # DataError and ImageError among them
        return fail(error)
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    print(f"results are in {folder.resolve()}")
    return DONE


def networks(options: Options, device: torch.device) -> list[FeatureNetwork]:
    """Those whose features are compared: EfficientNet-Lite0, and Inception where its weights are.

    Raises:
        ImportError: a package is missing; the message names the extra to install.
        WeightsError: weights that were named can't be used.
    """
    found: list[FeatureNetwork] = [EfficientNetFeatures()]
    try:
        found.append(inception(options.inception_weights))
    except WeightsError as error:
        if options.inception_weights:
            raise
        print(f"no FID, only the distance that works offline: {error}", file=sys.stderr)
    return [network.to(device, memory_format=torch.channels_last) for network in found]  # type: ignore[call-overload]


# --- images and figures -----------------------------------------------------------------------------------------------


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
    size = model.tokenizer.config.image_size
    data = load_dataset(options.data, size, "val")
    data.number_classes_as(model.class_names)
    if options.tells_classes and (not model.class_names or model.class_names != data.class_names):
        known = ", ".join(model.class_names) or "none"
        raise DataError(
            f"guidance and --classes need a model with the classes of {options.data}; {options.model} knows {known}"
        )
    subsets = make_subsets([int(family) for family in data.family_numbers()], options.seed)
    candidates = next(iter(subsets.values())) if options.one_per_family else np.arange(len(data))
    chosen = candidates[choose_images(len(candidates), options.max_images, options.seed)]
    numbers = [int(i) for i in chosen]
    masks = [
        make_mask(options.hole, size, size, image_seed(options.seed, f"{options.hole}/{i}") % 2**64) for i in numbers
    ]
    labels = [int(data.labels[i]) for i in numbers] if options.tells_classes else None
    return Images(numbers, torch.cat(list(plain_views(data, chosen))), np.stack(masks), labels)


class Judge:
    """Compares filled images with the originals.

    Args:
        networks: those in whose features the distances are.
        images: with the originals.
    """

    def __init__(self, networks: Sequence[FeatureNetwork], images: Images) -> None:
        self.networks, self.images = networks, images
        self._originals: dict[str, Gaussian] = {}

    def figures(self, filled: Sequence[Image.Image]) -> dict[str, float]:
        """Those of FIGURES, except for the time."""
        pixels = torch.stack([from_picture(picture) for picture in filled])
        _, square = hole_errors(to_signed(pixels), to_signed(self.images.pixels), torch.from_numpy(self.images.masks))
        distances = {
            DISTANCES[network.name]: frechet_distance(extract_features(network, filled), self._original(network))
            for network in self.networks
        }
        return {**distances, "psnr_in_hole": psnr_of_mean_error(float(square.mean()))}

    def _original(self, network: FeatureNetwork) -> Gaussian:
        if network.name not in self._originals:  # never asked for where all cells are finished already
            pictures = [to_picture(image) for image in self.images.pixels]
            self._originals[network.name] = fit_gaussian(extract_features(network, pictures))
        return self._originals[network.name]


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
    some = slice(most)
    results = model.inpaint(
        [to_picture(image) for image in images.pixels[some]],
        list(images.masks[some]),
        config=setting.config,
        seeds=[image_seed(seed, i) for i in images.numbers[some]],
        labels=None if images.labels is None else images.labels[some],
        batch_size=batch_size,
        progress=progress,
    )
    return [result.image for result in results]


def telea(model: MaskGIT, images: Images) -> list[Image.Image]:
    """The holes filled by OpenCV's classic method: what a model must beat."""
    return [to_picture(fill_telea(*pair)) for pair in zip(images.pixels, images.masks, strict=True)]


@torch.inference_mode()
def tokenizer_only(model: MaskGIT, images: Images) -> list[Image.Image]:
    """The holes filled from the originals' own tokens: about the best that a transformer over these could do."""
    decoded = [
        to_pixels(model.tokenizer.decode(model.tokenizer.encode(to_signed(batch).to(model.device)))).cpu()
        for batch in images.pixels.split(64)
    ]
    return [
        to_picture(paste_decoded(image, copy, mask))
        for image, copy, mask in zip(images.pixels, torch.cat(decoded), images.masks, strict=True)
    ]


REFERENCES: dict[str, Callable[[MaskGIT, Images], list[Image.Image]]] = {
    "OpenCV Telea": telea,
    "tokenizer only (upper bound)": tokenizer_only,
}


# --- the sweep --------------------------------------------------------------------------------------------------------


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
    """Measure what is not in the ledger yet, and put all of it together.

    Args:
        model: as users get it.
        networks: of the distances.
        options: those of the command line; `model`, `device` and `precision` are not looked at again.
        command: noted in the report.

    Returns:
        The report, as JSON can hold it.

    Raises:
        DataError, ImageError: images that can't be used.
        ValueError, OSError: the ledger can't be read or written.
    """
    chosen, seeds = settings(options, model.decoding), range(options.seed, options.seed + options.seeds)
    images, machine = load_images(model, options), describe(model.device)
    ledger, judge = Ledger(options.output / "cells.jsonl"), Judge(networks, images)
    digest, precision = weights_digest(model), model.precision
    context = {
        "weights": digest,
        "images": images.digest,
        "networks": {network.name: network.digest for network in networks},
        "precision": precision,
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
    with work_bar(sum(setting.work for setting, _ in missing) * len(images.numbers)) as bar:
        for setting, seed in missing:
            bar.set_description_str(f"{describe_values(setting.values, varied)} seed {seed}".strip())
            fill = functools.partial(inpaint, model, images, setting, seed, options.batch_size)
            if setting not in warm:  # the first batch prepares what the others use: packed weights, CUDA graphs
                fill(most=options.batch_size)
                warm.add(setting)
            progress = functools.partial(advance, bar, setting.work - FEATURES_WORK)
            measure(cell(setting, seed), functools.partial(fill, progress=progress))
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
        "precision": precision,
        "data": options.data,
        "images": len(images.numbers),
        "images_sha256": images.digest,
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


def is_report(path: Path) -> bool:
    """Whether a file is a sweep's results.json."""
    try:
        with open_regular(path) as file:
            report = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and report.keys() >= {"study", "rows", "weights_sha256"}


def advance(bar: tqdm, work: int, images: float) -> None:
    """Move the bar on by images of so much work each."""
    bar.update(work * images)


def work_bar(total: int) -> tqdm:
    """A bar with the time left: cells of many steps count for more than those of few."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    return tqdm(total=total, bar_format=layout, dynamic_ncols=True)


# --- the report -------------------------------------------------------------------------------------------------------


def words(field: str) -> str:
    """choice_temperature -> "choice temperature"."""
    return field.replace("_", " ")


def describe_values(values: dict[str, Any], fields: Sequence[str]) -> str:
    """Some fields of a setting: "steps 8, schedule cosine"."""
    return ", ".join(f"{words(field)} {values[field]}" for field in fields)


def measured(report: dict[str, Any]) -> list[str]:
    """The keys of FIGURES that the report has."""
    return [name for name in FIGURES if name in report["rows"][0]["figures"]]


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows, machine, names = report["rows"], report["machine"], measured(report)
    varied = report["varied"] or ["decoder"]
    fixed = describe_values(rows[0]["setting"], [field for field in AXES if field not in varied])
    lines = [
        f"# Sweep: {report['study']}",
        "",
        f"{report['images']} held-out images of {report['data']}{', one per family' * report['one_per_family']}; "
        f"hole: {report['hole']}; classes {'told' if report['classes'] else 'not told'}. {fixed}.",
        "",
        f"{machine['date']}, {machine['device']}, {machine['threads']} threads, torch {machine['torch']}, revision "
        f"{machine['revision']}, transformer in {report['precision']}. Model {report['model']}, weights "
        f"{report['weights_sha256'][:12]}.",
        "",
        f"    {report['command']}",
        "",
        *table(
            [*map(words, varied), *(FIGURES[name] for name in names)],
            [
                [str(row["setting"][field]) for field in varied] + [number(row["figures"][name]) for name in names]
                for row in rows
            ],
        ),
        *table(
            ["for comparison", *(FIGURES[name] for name in names if name != "milliseconds")],
            [
                [row["method"], *(number(row["figures"][name]) for name in names if name != "milliseconds")]
                for row in report["references"]
            ],
        ),
        f"± is the standard deviation over {len(report['seeds'])} decodings of the same holes. Fréchet: distance "
        "between originals and filled images in the pooled features of EfficientNet-Lite0 (ImageNet weights). It is "
        "**not FID**, and all distances depend on the number of images: compare them within this page only. PSNR is "
        'of the mean squared error inside the hole. "Tokenizer only" pastes the decoded tokens of the original: about '
        "the best that any transformer over these tokens could do. Times are of everything from picture to picture.",
        "",
    ]
    return "\n".join(lines)


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """For each axis with several values, AXIS.png: every figure against it; returns the paths.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: a file can't be written.
    """
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    from matplotlib import pyplot

    paths = []
    for field in report["axes"]:
        figure = draw_axis(pyplot, report, field)
        paths.append(folder / f"{field}.png")
        picture = io.BytesIO()
        figure.savefig(picture, dpi=120, format="png")
        write_atomically({paths[-1]: picture.getvalue()})
        pyplot.close(figure)
    return paths


def draw_axis(pyplot: Any, report: dict[str, Any], field: str) -> Any:
    """A panel for each figure, with a line for each combination of the other axes; returns matplotlib's figure."""
    values = list(dict.fromkeys(row["setting"][field] for row in report["rows"]))
    numeric = not isinstance(values[0], str)
    if numeric:
        values.sort()
    others = [other for other in report["axes"] if other != field]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(report["rows"], key=lambda row: values.index(row["setting"][field])):
        lines.setdefault(describe_values(row["setting"], others) or "MaskGIT", []).append(row)

    names = measured(report)
    figure, panels = pyplot.subplots(1, len(names), figsize=(4.5 * len(names), 4), layout="constrained")
    for name, panel in zip(names, panels, strict=True):
        for at, (label, line) in enumerate(lines.items()):
            found = [row["setting"][field] for row in line]
            # Names stand beside each other, as points over one name would hide each other.
            shift = 0.6 * ((at + 0.5) / len(lines) - 0.5)
            panel.errorbar(
                found if numeric else [values.index(value) + shift for value in found],
                [row["figures"][name]["mean"] for row in line],
                [row["figures"][name].get("std", 0.0) for row in line],
                marker="o",
                markersize=4,
                capsize=3,
                linestyle="-" if numeric else "none",
                label=label,
            )
        if name != "milliseconds":
            for color, reference in zip(("gray", "black"), report["references"], strict=True):
                level = reference["figures"][name]["mean"]
                panel.axhline(level, color=color, linestyle="--", linewidth=1, label=reference["method"])
        if not numeric:
            panel.set_xticks(range(len(values)), values, rotation=30, ha="right")
        panel.set_xlabel(words(field))
        panel.set_ylabel(FIGURES[name])
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    machine = report["machine"]
    figure.suptitle(
        f"{report['model']}, {report['images']} images, hole: {report['hole']}, {len(report['seeds'])} seeds\n"
        f"{machine['device']}, {str(machine['date'])[:10]}",
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    sys.exit(main())
