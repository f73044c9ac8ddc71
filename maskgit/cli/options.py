"""The options of the command, and which of them make sense together."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from maskgit.console import UsageError, flag, require_at_least
from maskgit.data.images import find_images
from maskgit.data.masks import MAKERS
from maskgit.decoding import DecodeConfig, decoder
from maskgit.decoding.schedules import SCHEDULES
from maskgit.pipeline import SMALLEST_WINDOW, MaskGIT, Precision
from maskgit_kernels.backend import BACKENDS

Lengths = tuple[str, str, str, str]
"""Four lengths, each in pixels ("12") or in percent of the picture's side ("25%")."""

_DIGITS = 9  # of such a length: no picture has a side of more
_NUMBER = rf"\d{{1,{_DIGITS}}}"
_MOST_GENERATED = 10**6
_MOST_VARIANTS = 64

# Fields of DecodeConfig that options change, and their names there.
_SETTINGS = {"choice_temperature": "temperature", "guidance_scale": "guidance"}
_SETTINGS |= {name: name for name in ("steps", "schedule", "softmax_temperature", "remask", "reuse")}
_INTERVAL = ("guidance_from", "guidance_to")

ALL_CLASSES = "all"
"""The --class that stands for each in turn, unless there is a class of this name."""

# What makes no sense with what: each says by itself what is to be done.
_HOLES = ("mask", "box", "maps", "invert_mask", "grow", "feather", "variants", "paste")
_EXCLUDED = {
    "generate": ("images", *_HOLES, "outpaint", "crop"),
    "outpaint": _HOLES,
    "box": ("mask",),
}


@dataclass(frozen=True)
class Options:
    """Fill holes in images; continue images beyond their borders; make images from nothing.

    With no options, the embedded model fills the sample images that come with it. Each image NAME.* gives NAME.png
    and a picture strip NAME.strip.png: original, hole, every decoding step, result, of the first window that the model
    looked at. Several images give overview.grid.png besides. A file that can't be read is named at the end, and the
    others are done all the same.
    """

    images: Path | None = None
    """An image file or a folder of them, at any depth. Default: the sample images."""
    mask: str | None = None
    """What to fill: a mask image (white is filled, or what is painted on a transparent layer), a folder of masks named
    like the images, or one of center, boxes, strokes, half, left, right, top, bottom (a file of such a name: ./center).
    Default: center."""
    invert_mask: bool = False
    """Fill what the mask keeps, such as its black, and keep the rest. Works with made masks too: the outside is
    filled."""
    box: Annotated[Lengths | None, tyro.conf.arg(metavar="LEFT TOP WIDTH HEIGHT")] = None
    """Instead of a mask: fill the box of this left, top, width and height, in pixels or percent of the picture."""
    outpaint: Annotated[Lengths | None, tyro.conf.arg(metavar="LEFT TOP RIGHT BOTTOM")] = None
    """Instead of filling holes: add this much on the left, at the top, on the right, at the bottom, in pixels or
    percent of the picture's side."""
    crop: str | None = None
    """Where the model looks. auto: at windows around the holes, at the picture's own scale where they aren't too thick
    for that, and coarse to fine where they are. A number: at windows of at least so many pixels. off: at all of the
    picture at once, squeezed to the model's square. Default: what suits the model, as it says itself; mostly auto, off
    for the embedded one, which knows whole avatars only."""
    grow: int | None = None
    """Make the holes larger by so many pixels first, on all sides. Default: as many as --feather."""
    feather: int = 0
    """Pixels at the edge of the grown hole over which the fill goes over into the picture."""
    variants: int = 1
    """Fill each hole so many times, differently: NAME.png, NAME.variant2.png, ..., and NAME.variants.png with all."""
    generate: int | None = None
    """Instead of all that: make so many pictures from nothing."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """What the filled part is to show, for a model with classes: the name of one, or its number (where no class has it
    for a name). With --generate also all: the classes in turn."""
    list_classes: bool = False
    """Instead of all else: name the classes that the model knows."""
    output: Path = Path("outputs/inpaint")
    """Folder for the results, with the same sub-folders as the input. What an earlier run left there under the same
    names is replaced; images and masks that are read never are."""
    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    decoder: str | None = None
    """Whose way of decoding, with all its settings. Default: what suits the model best, as it says itself. The next
    four options and --guidance change single settings.
    - maskgit: the paper's official code. Tokens are drawn, the most confident kept, with less and less noise.
    - lab-perturbed: the same noise, on the probability of every code, both draws the token and ranks it.
    - lab-sampled: tokens are drawn, and ranked by the probability instead of its logarithm.
    - lab-greedy: the likeliest token everywhere; noise, growing with the steps, only in which are kept.
    - valeo: the PyTorch reproduction. As maskgit by the arccos schedule; with a class, guidance that grows.
    - halton: tokens are drawn, and kept in a fixed order that spreads over the picture."""
    steps: int | None = None
    """Decoding steps. Default: the decoder's (maskgit and valeo 8, halton 32, the labs 20, 7 and 5)."""
    schedule: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"How many tokens stay masked after each step: one of {', '.join(SCHEDULES)}. "
            "Default: the decoder's (valeo and halton arccos, the others cosine)."
        ),
    ] = None
    temperature: float | None = None
    """Choice temperature: how much chance there is in which tokens are kept; more gives more varied pictures. Default:
    the decoder's (halton has none, the others 4.5)."""
    softmax_temperature: float | None = None
    """Divides the logits: below 1 the likely tokens become likelier. Default: the decoder's (always 1)."""
    guidance: float | None = None
    """With a class: how much it counts, 0 or more (classifier-free guidance). Default: the decoder's (valeo 3, growing
    with the steps; the others 0)."""
    guidance_interval: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="FROM TO")] = None
    """With a class: guide only in the steps from this share of them up to that one, such as 0.5 1 for the second half.
    The other steps take half the time. Default: the decoder's (always 0 1)."""
    remask: float | None = None
    """0 to 1: mask decided tokens again, so that they can be revised (ReMDM); 1 is as many as the schedule allows.
    Meant for many steps. Default: the decoder's (always 0)."""
    reuse: int | None = None
    """After each full pass through the transformer, this many steps compute the masked tokens only and reuse what was
    computed of the others (ReCAP): faster, above all for small holes; the pictures change a little. Default: the
    decoder's (always 0)."""
    seed: int = 0
    """Another seed gives other pictures. Each file has its own from this one and its name, so a picture doesn't
    depend on the other files nor, but for rounding on a GPU, on the batch size."""
    batch_size: int = 16
    """Images that are worked on together."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    kernels: str | None = None
    """auto, triton or torch. Default: what MASKGIT_KERNELS says, or auto."""
    precision: Precision = "auto"
    """Of matrix products and convolutions. auto is bf16 where the hardware is faster in it, else float32; fp16 is for
    GPUs without bf16."""
    paste: bool = True
    """Put known pixels back into the result; --no-paste for the bare decoding."""
    save_steps: bool = True
    """Show each decoding step in the strips; --no-save-steps takes a third less time."""
    maps: bool = False
    """Write NAME.maps.png too: for each decoding step, how sure the model was of the tokens that it decided, and where
    it looked for one of them, in each layer."""
    map_at: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="X Y")] = None
    """With --maps: the point, X and Y in pixels or percent of the picture, whose token's attention is shown. Default:
    the middle of the hole."""


def decode_config(options: Options, default: DecodeConfig) -> DecodeConfig:
    """The decoder, or else the model's default, with what the options change.

    Raises:
        UsageError: an unknown decoder, or values that make no sense.
    """
    given = {field: getattr(options, option) for field, option in _SETTINGS.items()}
    changes: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if options.guidance_interval is not None:
        first, last = options.guidance_interval
        if first > last:
            raise UsageError(f"--guidance-interval {first} {last}: FROM must be at most TO")
        changes |= dict(zip(_INTERVAL, (first, last), strict=True))
    try:
        config = dataclasses.replace(default if options.decoder is None else decoder(options.decoder), **changes)
    except ValueError as error:  # it begins with the field's name
        field, _, reason = str(error).partition(" ")
        option = "guidance_interval" if field in _INTERVAL else _SETTINGS.get(field, field)
        if not hasattr(options, option):  # a setting of the model's own
            reason = f"the model's own way of decoding can't be changed so: {error}; choose a --decoder"
            raise UsageError(reason) from error
        raise UsageError(f"{flag(option)} {reason}") from error
    if options.guidance_interval is not None and options.class_ is not None and not config.guidance_scale:
        raise UsageError("--guidance-interval: nothing is guided; give --guidance too")
    return config


def chosen_classes(options: Options, model: MaskGIT) -> list[int | None]:
    """What --class names: one class, by its name or, where none is called so, by its number; all; or none.

    Returns:
        The classes that pictures have in turn; None is no class.

    Raises:
        UsageError: the model has no such class, or none at all; all are asked for, and not to be generated.
    """
    text, count = options.class_, model.transformer.config.num_classes
    if text is None:
        return [None]
    if not count:
        raise UsageError(f"--class {text}: the model was trained without classes; leave --class out")
    if text == ALL_CLASSES and text not in model.class_names:
        if options.generate is None:
            raise UsageError(f"--class {text} needs --generate; name one class, or leave --class out")
        return list(range(count))
    try:
        return [model.class_number(text)]
    except ValueError as error:
        raise UsageError(f"--class {text}: {error}") from error


def crop_argument(options: Options) -> str | int | None:
    """--crop as `MaskGIT.inpaint` takes it."""
    return int(options.crop) if options.crop and options.crop.isdigit() else options.crop


def class_name(model: MaskGIT, number: int) -> str:
    """What a class is called: its number, where the model has no names."""
    return model.class_names[number] if model.class_names else str(number)


def check_task(options: Options) -> None:
    """Raise UsageError for options that exclude each other, or make no sense."""
    require_at_least(options, {"generate": 1, "batch_size": 1, "guidance": 0, "grow": 0, "feather": 0, "variants": 1})
    if options.crop not in (None, "auto", "off") and not (
        re.fullmatch(_NUMBER, options.crop) and int(options.crop) >= SMALLEST_WINDOW
    ):
        raise UsageError(f"--crop {options.crop}: neither auto nor off nor at least {SMALLEST_WINDOW} pixels")
    if options.grow is not None and options.feather > options.grow:
        raise UsageError(f"--feather {options.feather} is more than --grow {options.grow}: leave out --grow")
    if options.variants > _MOST_VARIANTS:
        raise UsageError(f"--variants {options.variants}: at most {_MOST_VARIANTS} in one run")
    if options.generate is not None and options.generate > _MOST_GENERATED:
        raise UsageError(f"--generate: at most {_MOST_GENERATED:,} in one run")
    for task, others in _EXCLUDED.items():
        for name in others if getattr(options, task) is not None else ():
            if getattr(options, name) != getattr(Options, name):
                raise UsageError(f"--{task} and {'--no-paste' if name == 'paste' else flag(name)} exclude each other")
    for name in ("box", "outpaint", "map_at"):
        for text in getattr(options, name) or ():
            if not re.fullmatch(rf"{_NUMBER}|{_NUMBER}(\.{_NUMBER})?%", text):
                shown = text if len(text) <= 40 else f"{text[:40]}..."
                raise UsageError(
                    f"{flag(name)} {shown}: neither pixels, such as 12, nor percent, such as 25% "
                    f"(in numbers of at most {_DIGITS} digits)"
                )
    masks = Path(options.mask or "")
    if options.mask not in (None, *MAKERS) and not masks.is_dir() and not masks.is_file():
        raise UsageError(f"--mask {options.mask}: no such file or folder, and not one of {', '.join(MAKERS)}")
    if options.mask not in (None, *MAKERS) and masks.is_dir() and not find_images(masks):
        raise UsageError(f"--mask {options.mask}: no masks in this folder")
    if options.maps and not options.save_steps:
        raise UsageError("--maps shows the steps: leave out --no-save-steps")
    if options.map_at is not None and not options.maps:
        raise UsageError("--map-at needs --maps")
    if options.kernels not in (None, *BACKENDS):
        raise UsageError(f"--kernels must be one of {', '.join(BACKENDS)}, got {options.kernels!r}")
    for name in ("guidance", "guidance_interval"):
        if getattr(options, name) is not None and options.class_ is None:
            raise UsageError(f"{flag(name)} needs a --class to guide to")
