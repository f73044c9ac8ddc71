"""The command: how one hole is filled by several schedules.

python -m maskgit.pictures                                      # a sample image, filled by three schedules
python -m maskgit.pictures photo.png --mask hole.png --schedules cosine arccos --steps 12 --animation webp
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from maskgit.console import UsageError, printable, progress_bar, run_command
from maskgit.data.masks import MAKERS, load_mask, make_mask
from maskgit.data.png import png_bytes
from maskgit.data.reading import read_image
from maskgit.decoding import DecodeConfig
from maskgit.decoding.schedules import SCHEDULES
from maskgit.files import SAMPLES, find_replaced, write_atomically
from maskgit.pictures.strips import animation, evolution, strip
from maskgit.pipeline import MaskGIT


@dataclass(frozen=True)
class Options:
    """Fill one hole by several schedules and show how: evolution.png has masks and images of each, step by step,
    evolution.gif (or .webp) the same in motion, and SCHEDULE.strip.png is the strip of one."""

    image: Annotated[Path | None, tyro.conf.Positional] = None
    """The image. Default: a sample."""
    mask: str = "center"
    """A mask image (white is filled), or one of center, boxes, strokes, half, left, right, top, bottom."""
    schedules: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Which to compare: {', '.join(SCHEDULES)}.")] = (
        "linear",
        "cosine",
        "square",
    )
    steps: int = DecodeConfig.steps
    """Decoding steps."""
    seed: int = 0
    """Another seed gives other pictures, and another hole where there is chance in it."""
    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    animation: Literal["gif", "webp"] = "gif"
    """Format of the moving picture."""
    output: Path = Path("outputs/evolution")
    """Folder for the pictures. What an earlier run left there under the same names is replaced."""


def draw(options: Options) -> None:
    """Fill the hole by each schedule, and write the pictures.

    Raises:
        UsageError: a picture would take the place of the image or the mask.
        OSError, RuntimeError, ValueError: something else can't be done; they all say what to do.
    """
    moving, strips = f"evolution.{options.animation}", {name: f"{name}.strip.png" for name in options.schedules}
    written = [options.output / name for name in ("evolution.png", moving, *strips.values())]
    if replaced := find_replaced(written, [path for path in (options.image, Path(options.mask)) if path is not None]):
        raise UsageError(f"{replaced[0][1]} would be replaced by a picture; choose another --output")
    if not options.schedules:
        raise ValueError("--schedules: name at least one")
    for schedule in options.schedules:  # what makes no sense is found out before any work is done
        DecodeConfig(steps=options.steps, schedule=schedule)
    image = read_image(options.image or SAMPLES / "lorelei-333.png")
    if options.mask in MAKERS:
        mask = make_mask(options.mask, image.height, image.width, options.seed)
    elif Path(options.mask).is_file():
        mask = load_mask(options.mask, image.size)
    else:
        raise ValueError(f"--mask {options.mask}: no such file, and not one of {', '.join(MAKERS)}")
    model = MaskGIT.from_pretrained(options.model, device=options.device)
    results = {}
    with progress_bar(len(options.schedules), "inpainting", "schedule") as bar:
        for schedule in options.schedules:
            (results[schedule],) = model.inpaint(
                [image], [mask], steps=options.steps, schedule=schedule, seed=options.seed, save_steps=True
            )
            bar.update()
    files = {
        "evolution.png": png_bytes(evolution(results)),
        moving: animation(results, options.animation),
        **{strips[name]: png_bytes(strip(result)) for name, result in results.items()},
    }
    try:
        write_atomically({options.output / name: data for name, data in files.items()})
    except OSError as error:
        raise ValueError(f"{options.output}: can't write pictures there: {error.strerror}") from error
    print(f"in {printable(options.output.resolve())}: {', '.join(files)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 if anything fails, 2 for bad usage, 130 after Ctrl-C."""
    errors = (OSError, RuntimeError, ValueError)
    return run_command(Options, draw, argv, prog="python -m maskgit.pictures", errors=errors)


if __name__ == "__main__":
    sys.exit(main())
