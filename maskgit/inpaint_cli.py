"""The command line of inpainting: `python inpaint.py`, or `maskgit-inpaint` once installed.

python inpaint.py                                                       # the samples, with the embedded model
python inpaint.py --images photos --mask holes --output filled          # a folder, with a folder of masks
python inpaint.py --images photos --outpaint 0 0 50% 0                  # half a picture more on the right
python inpaint.py --images photos --box 25% 25% 50% 50% --class Flags   # paste a class into a box
python inpaint.py --generate 16 --class "Food & Drink"                  # from nothing
"""

from __future__ import annotations

import dataclasses
import io
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from maskgit.data.images import ImageError, find_images, read_image
from maskgit.data.masks import MAKERS, MaskError, find_mask_for, load_mask, make_mask
from maskgit.decoding import DecodeConfig, decoder
from maskgit.files import write_atomically
from maskgit.outpainting import Margins
from maskgit.pipeline import MaskGIT, Precision, image_seed
from maskgit.visualize import strip

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

Lengths = tuple[str, str, str, str]
"""Four lengths, each in pixels ("12") or in percent of the picture's side ("25%")."""

_LISTED = 10  # results named at the end; of more, only the number
_BATCH_PIXELS = 2**26  # a batch of huge images is cut short here, so that memory stays bounded


@dataclass(frozen=True)
class Options:
    """Fill holes in images; continue images beyond their borders; make images from nothing.

    With no options, the embedded model fills the sample images that come with it. Each image NAME.* gives NAME.png
    and a picture strip NAME.strip.png: original, hole, every decoding step, result.
    """

    images: Path | None = None
    """An image file or a folder of them, at any depth. Default: the sample images."""
    mask: str | None = None
    """What to fill: a mask image (white is filled), a folder of masks named like the images, or one of
    center, boxes, strokes, half, left, right, top, bottom (a file of such a name: ./center). Default: center."""
    invert_mask: bool = False
    """Fill what is black in the mask and keep what is white. Works with made masks too: the outside is filled."""
    box: Lengths | None = None
    """Instead of a mask: fill the box of this left, top, width and height, in pixels or percent of the picture."""
    outpaint: Lengths | None = None
    """Instead of filling holes: add this much on the left, at the top, on the right, at the bottom, in pixels or
    percent of the picture's side."""
    generate: int | None = None
    """Instead of all that: make so many pictures from nothing."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """What the filled part is to show, for a model with classes: the name of one, or its number."""
    output: Path = Path("outputs/inpaint")
    """Folder for the results, with the same sub-folders as the input."""
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
    schedule: str | None = None
    """How many tokens stay masked after each step: cosine, linear, square, cubic, exponential, sqrt, logarithmic or
    arccos. Default: the decoder's (valeo and halton arccos, the others cosine)."""
    temperature: float | None = None
    """Choice temperature: how much chance there is in which tokens are kept; more gives more varied pictures. Default:
    the decoder's (halton has none, the others 4.5)."""
    softmax_temperature: float | None = None
    """Divides the logits: below 1 the likely tokens become likelier. Default: the decoder's (always 1)."""
    guidance: float | None = None
    """With a class: how much it counts, 0 or more (classifier-free guidance). Default: the decoder's (valeo 3, growing
    with the steps; the others 0)."""
    remask: float | None = None
    """0 to 1: mask decided tokens again, so that they can be revised (ReMDM); 1 is as many as the schedule allows.
    Meant for many steps. Default: the decoder's (always 0)."""
    reuse: int | None = None
    """After each full pass through the transformer, this many steps compute the masked tokens only and reuse what was
    computed of the others (ReCAP): faster, above all for small holes; the pictures change a little. Default: the
    decoder's (always 0)."""
    seed: int = 0
    """Another seed gives other pictures. Each file has its own from this one and its name, so a picture doesn't
    depend on the other files nor on the batch size."""
    batch_size: int = 16
    """Images that are worked on together."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    kernels: str | None = None
    """auto, triton or torch. Default: what MASKGIT_KERNELS says, or auto."""
    precision: Precision = "auto"
    """Of the transformer; auto is bf16 where the hardware computes in it."""
    paste: bool = True
    """Put known pixels back into the result; --no-paste for the bare decoding."""
    save_steps: bool = True
    """Show each decoding step in the strips; --no-save-steps takes a third less time."""


class UsageError(ValueError):
    """Options that can't be carried out."""


Target = np.ndarray | Margins
"""What is to be done with an image: the mask bool [H, W] to fill, or the margins to add."""


@dataclass
class Job:
    """One file to do."""

    path: Path | None
    """None for a picture from nothing."""
    name: str
    """Relative to the input folder, with forward slashes."""
    output: Path
    """Without a suffix."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0; 1 if any file failed; 2 for bad usage; 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no valid text
    try:
        options = tyro.cli(Options, args=argv, config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:  # --help, or options that tyro could not read
        return int(stop.code or 0)
    try:
        return Run(options).run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def decode_config(options: Options, default: DecodeConfig) -> DecodeConfig:
    """The decoder, or else the model's default, with what the options change.

    Raises:
        ValueError: an unknown decoder, or values that make no sense.
    """
    changes: dict[str, Any] = {
        "steps": options.steps,
        "schedule": options.schedule,
        "choice_temperature": options.temperature,
        "softmax_temperature": options.softmax_temperature,
        "guidance_scale": options.guidance,
        "remask": options.remask,
        "reuse": options.reuse,
    }
    chosen = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(default if options.decoder is None else decoder(options.decoder), **chosen)


class Run:
    """One run of the command: what it has to do, and what has become of it so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.failures: list[tuple[str, str]] = []  # (file, reason)
        self.written: list[Path] = []
        self.label: int | None = None
        self.verb = "inpainted" if not options.outpaint else "outpainted"
        if options.generate is not None:
            self.verb = "generated"

    def run(self) -> int:
        """Do all files, report, and give the exit status. Raises UsageError before any file is touched."""
        options = self.options
        try:
            decode_config(options, DecodeConfig())  # what makes no sense is found out before a model is loaded
            if options.batch_size < 1:
                raise UsageError(f"--batch-size must be at least 1, got {options.batch_size}")
            check_task(options)
            get_target = outpainting(options.outpaint) if options.outpaint else mask_source(options)
            jobs = generated_jobs(options) if options.generate is not None else find_jobs(options)
            start = time.perf_counter()
            model = MaskGIT.from_pretrained(
                options.model, device=options.device, kernels=options.kernels, precision=options.precision
            )
            loading = time.perf_counter() - start
            config = decode_config(options, model.decoding)
            if options.class_ is not None:
                self.label = model.class_number(int(options.class_) if options.class_.isdecimal() else options.class_)
            options.output.mkdir(parents=True, exist_ok=True)
        except (ValueError, RuntimeError) as error:  # the errors of every part above: they say what to do
            raise UsageError(str(error)) from error
        except OSError as error:
            raise UsageError(f"{options.output}: can't write results there: {error.strerror}") from error
        precision = "bf16" if model.autocast else "float32"
        print(f"model {options.model} on {model.device} ({precision}), loaded in {loading:.1f} s")

        start = time.perf_counter()
        try:
            with tqdm(
                total=len(jobs),
                desc=self.verb.replace("ed", "ing"),
                unit="image",
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
            ) as bar:
                for batch in self.batches(jobs, get_target, bar):
                    self.work(model, config, batch, bar)
        except KeyboardInterrupt:
            done = len(self.written)
            print(f"\ninterrupted: {done} of {len(jobs)} images are done, in {options.output}", file=sys.stderr)
            return INTERRUPTED
        self.report(time.perf_counter() - start, config.steps)
        return SOME_FAILED if self.failures else DONE

    def batches(
        self, jobs: list[Job], get_target: Callable[[Job, Image.Image], Target], bar: tqdm
    ) -> Iterator[list[tuple[Job, Image.Image, Target]]]:
        """Read the files as they are needed. What can't be read goes to `failures`."""
        batch: list[tuple[Job, Image.Image, Target]] = []
        pixels = 0
        for job in jobs:
            try:
                image = read_image(job.path) if job.path is not None else Image.new("RGB", (1, 1))
                batch.append((job, image, get_target(job, image)))
            except (ImageError, MaskError, OSError) as error:
                self.fail(job, error)
                bar.update()
                continue
            pixels += image.width * image.height
            if len(batch) == self.options.batch_size or pixels > _BATCH_PIXELS:
                yield batch
                batch, pixels = [], 0
        if batch:
            yield batch

    def work(
        self, model: MaskGIT, config: DecodeConfig, batch: list[tuple[Job, Image.Image, Target]], bar: tqdm
    ) -> None:
        """Do the images of a batch and write their files."""
        before = bar.n
        try:
            # Thirds may add up to above 1.
            results = self.pictures(model, config, batch, lambda done: bar.update(min(done, bar.total - bar.n)))
        except (RuntimeError, ValueError, MemoryError) as error:  # out of memory, or a broken model's NaN
            bar.n = before
            if len(batch) > 1:  # one of them may be to blame, or there are too many
                for item in batch:
                    self.work(model, config, [item], bar)
            else:
                self.fail(batch[0][0], error)
                bar.update()
            return
        for (job, _, _), pictures in zip(batch, results, strict=True):
            try:
                self.written.append(write_pictures(job, pictures))
            except OSError as error:
                self.fail(job, error)

    def pictures(
        self,
        model: MaskGIT,
        config: DecodeConfig,
        batch: list[tuple[Job, Image.Image, Target]],
        progress: Callable[[float], object],
    ) -> list[dict[str, Image.Image]]:
        """What to write for each image of a batch, by how the file names end."""
        options = self.options
        common: dict[str, Any] = {
            "config": config,
            "seeds": [image_seed(options.seed, job.name) for job, _, _ in batch],
            "labels": None if self.label is None else [self.label] * len(batch),
            "batch_size": options.batch_size,
            "progress": progress,
        }
        images, targets = [image for _, image, _ in batch], [target for _, _, target in batch]
        if options.generate is not None:
            return [{".png": picture} for picture in model.generate(len(batch), **common)]
        if options.outpaint:
            return [{".png": picture} for picture in model.outpaint(images, targets, **common)]  # type: ignore[arg-type]
        results = model.inpaint(images, targets, paste=options.paste, save_steps=options.save_steps, **common)  # type: ignore[arg-type]
        return [{".strip.png": strip(result), ".png": result.image} for result in results]

    def fail(self, job: Job, error: Exception) -> None:
        """Note a failure, without naming the file twice."""
        reason = str(error) or type(error).__name__
        self.failures.append((str(job.path or job.name), reason.removeprefix(f"{job.path}: ").splitlines()[0]))

    def report(self, seconds: float, steps: int) -> None:
        """Print where the results are, how many, how long it took, and what failed."""
        count = len(self.written)
        if count:
            strips = self.verb == "inpainted"
            kind = "with" if self.options.save_steps else "without"
            print(
                f"{self.verb} {count} image{'s' * (count != 1)} in {seconds:.1f} s ({count / seconds:.1f} images/s, "
                f"{steps} steps{f', strips {kind} steps included' * strips})"
            )
            print(f"results in {self.options.output.resolve()}")
            for path in self.written[:_LISTED]:
                also = f"  and  {path.with_suffix('').name}.strip.png" * strips
                print(f"  {path.relative_to(self.options.output)}{also}")
            if count > _LISTED:
                print(f"  and {count - _LISTED} more")
        if self.failures:
            print(f"{len(self.failures)} of {count + len(self.failures)} images failed:", file=sys.stderr)
            for name, reason in self.failures:
                print(f"  {name}: {reason}", file=sys.stderr)


def write_pictures(job: Job, pictures: dict[str, Image.Image]) -> Path:
    """Write a job's pictures, NAME.png the last; its path."""
    files = {}
    for suffix, picture in pictures.items():
        data = io.BytesIO()
        picture.save(data, "PNG", compress_level=4)  # twice as fast as the default, a few percent larger
        files[job.output.with_name(job.output.name + suffix)] = data.getvalue()
    write_atomically(files)
    return list(files)[-1]


# --- what to do -------------------------------------------------------------------------------------------------------


def check_task(options: Options) -> None:
    """Raise UsageError for options that exclude each other, or make no sense."""
    given: tuple[str, ...]
    if options.generate is not None:
        if options.generate < 1:
            raise UsageError(f"--generate {options.generate}: must be at least 1")
        given = ("images", "mask", "box", "outpaint")
    elif options.outpaint is not None:
        given = ("mask", "box")
    else:
        given = ("mask",) if options.box is not None else ()
    task = "--generate" if options.generate is not None else "--outpaint" if options.outpaint else "--box"
    for name in given:
        if getattr(options, name) is not None:
            raise UsageError(f"{task} and --{name} exclude each other")
    for name in ("box", "outpaint"):
        for text in getattr(options, name) or ():
            if not re.fullmatch(r"\d+|\d+(\.\d+)?%", text):
                raise UsageError(f"--{name} {text}: neither pixels, such as 12, nor percent, such as 25%")
    if options.guidance is not None and options.class_ is None:
        raise UsageError("--guidance needs a --class to guide to")


def to_pixels(length: str, side: int) -> int:
    """A length in pixels, or in percent of a side, as pixels."""
    return round(float(length[:-1]) / 100 * side) if length.endswith("%") else int(length)


def outpainting(lengths: Lengths) -> Callable[[Job, Image.Image], Target]:
    """The function that gives an image's margins."""

    def margins(job: Job, image: Image.Image) -> Target:
        left, top, right, bottom = lengths
        width, height = image.size
        return to_pixels(left, width), to_pixels(top, height), to_pixels(right, width), to_pixels(bottom, height)

    return margins


# --- which files ------------------------------------------------------------------------------------------------------


def generated_jobs(options: Options) -> list[Job]:
    """Pictures with a number for a name. As many as before begin with the same ones."""
    count = options.generate or 0
    digits = max(4, len(str(count)))
    return [Job(None, f"generated/{i}", options.output / f"{i:0{digits}d}") for i in range(count)]


def find_jobs(options: Options) -> list[Job]:
    """The files to do and the names of their results.

    Raises:
        UsageError: there are none.
        DataError: the folder is missing.
    """
    path = options.images
    if path is None:
        with resources.as_file(resources.files("maskgit") / "assets" / "samples") as samples:
            path = samples
    if path.is_file():
        root, found = path.parent, [path]
    elif not path.exists():
        raise UsageError(f"--images {path}: no such file or folder")
    else:
        # Results of an earlier run may lie below the input folder.
        results = options.output.resolve()
        root, found = path, [file for file in find_images(path) if results not in file.resolve().parents]
    if not found:
        raise UsageError(f"{path}: no images in this folder")
    jobs = []
    taken: set[str] = set()
    for file in found:
        relative = file.relative_to(root)
        output = options.output / relative.parent / free_name(relative, taken)
        jobs.append(Job(file, unicodedata.normalize("NFC", relative.as_posix()), output))
    return jobs


def free_name(relative: Path, taken: set[str]) -> str:
    """A file name without suffix for the results, none of which may be in `taken`; adds them to it.

    It is the stem of the input's name; where an input of the same stem came before, the whole name, or a number.
    """
    number = 1
    while True:
        name = (relative.stem, relative.name)[number - 1] if number < 3 else f"{relative.name}-{number - 1}"
        # Some file systems take names for equal that differ in case or in how accents are encoded.
        base = unicodedata.normalize("NFC", (relative.parent / name).as_posix()).casefold()
        files = {f"{base}.png", f"{base}.strip.png"}
        if not files & taken:
            taken |= files
            return name
        number += 1


def mask_source(options: Options) -> Callable[[Job, Image.Image], Target]:
    """The function that gives an image's mask, bool [H, W]; it raises MaskError or ImageError.

    Raises:
        UsageError: --mask is none of what it may be.
    """
    if options.box is not None:
        lengths = options.box

        def box(job: Job, image: Image.Image) -> np.ndarray:
            left, top, width, height = (
                to_pixels(length, side) for length, side in zip(lengths, image.size * 2, strict=True)
            )
            mask = np.zeros(image.size[::-1], dtype=bool)
            mask[top : top + height, left : left + width] = True
            if not mask.any():
                raise MaskError(
                    f"{job.path}: the box is outside this picture of {image.width}x{image.height}, or empty"
                )
            return mask ^ options.invert_mask

        return box
    wanted = options.mask or "center"
    path = Path(wanted)
    if wanted in MAKERS:

        def make(job: Job, image: Image.Image) -> np.ndarray:
            # Other random numbers than those of the tokens, which come from the seed of the bare name.
            seed = image_seed(options.seed, f"mask/{job.name}") % 2**64
            return make_mask(wanted, image.height, image.width, seed) ^ options.invert_mask

        return make
    if path.is_dir():

        def find(job: Job, image: Image.Image) -> np.ndarray:
            mirrored = path / Path(job.name).parent
            folder = mirrored if mirrored.is_dir() else path
            assert job.path is not None
            return load_mask(find_mask_for(job.path, folder), image.size, options.invert_mask)

        return find
    if path.is_file():
        return lambda job, image: load_mask(path, image.size, options.invert_mask)
    raise UsageError(f"--mask {wanted}: no such file or folder, and not one of {', '.join(MAKERS)}")
