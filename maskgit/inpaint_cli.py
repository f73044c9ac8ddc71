"""The command line of inpainting: `python inpaint.py`, or `maskgit-inpaint` once installed."""

from __future__ import annotations

import io
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from maskgit.data.images import ImageError, find_images, read_image
from maskgit.data.masks import MAKERS, MaskError, find_mask_for, load_mask, make_mask
from maskgit.decoding import DecodeConfig
from maskgit.files import write_atomically
from maskgit.pipeline import InpaintResult, MaskGIT, Precision, image_seed
from maskgit.visualize import strip

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

_LISTED = 10  # results named at the end; of more, only the number
_BATCH_PIXELS = 2**26  # a batch of huge images is cut short here, so that memory stays bounded


@dataclass(frozen=True)
class Options:
    """Fill holes in images.

    With no options, the embedded model fills the sample images that come with it. Each image NAME.* gives NAME.png
    and a picture strip NAME.strip.png: original, hole, every decoding step, result.
    """

    images: Path | None = None
    """An image file or a folder of them, at any depth. Default: the sample images."""
    mask: str = "center"
    """What to fill: a mask image (white is filled), a folder of masks named like the images, or one of
    center, boxes, strokes, half, left, right, top, bottom (a file of such a name: ./center)."""
    invert_mask: bool = False
    """Fill what is black in the mask and keep what is white. Works with made masks too: the outside is filled."""
    output: Path = Path("outputs/inpaint")
    """Folder for the results, with the same sub-folders as the input."""
    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    steps: int = DecodeConfig.steps
    """Decoding steps."""
    schedule: str = DecodeConfig.schedule
    """How many tokens stay masked after each step: cosine, linear, square, cubic, exponential, sqrt, logarithmic or
    arccos."""
    temperature: float = DecodeConfig.choice_temperature
    """Choice temperature: how much chance there is in which tokens are kept; more gives more varied pictures."""
    softmax_temperature: float = DecodeConfig.softmax_temperature
    """Divides the logits: below 1 the likely tokens become likelier."""
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


@dataclass
class Job:
    """One file to do."""

    path: Path
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


class Run:
    """One run of the command: what it has to do, and what has become of it so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.failures: list[tuple[str, str]] = []  # (file, reason)
        self.written: list[Path] = []

    def run(self) -> int:
        """Do all files, report, and give the exit status. Raises UsageError before any file is touched."""
        options = self.options
        try:
            config = DecodeConfig(
                steps=options.steps,
                schedule=options.schedule,
                choice_temperature=options.temperature,
                softmax_temperature=options.softmax_temperature,
            )
            if options.batch_size < 1:
                raise UsageError(f"--batch-size must be at least 1, got {options.batch_size}")
            get_mask = mask_source(options)
            jobs = find_jobs(options)
            start = time.perf_counter()
            model = MaskGIT.from_pretrained(
                options.model, device=options.device, kernels=options.kernels, precision=options.precision
            )
            loading = time.perf_counter() - start
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
                desc="inpainting",
                unit="image",
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
            ) as bar:
                for batch in self.batches(jobs, get_mask, bar):
                    self.inpaint(model, config, batch, bar)
        except KeyboardInterrupt:
            done = len(self.written)
            print(f"\ninterrupted: {done} of {len(jobs)} images are done, in {options.output}", file=sys.stderr)
            return INTERRUPTED
        self.report(time.perf_counter() - start)
        return SOME_FAILED if self.failures else DONE

    def batches(
        self, jobs: list[Job], get_mask: Callable[[Job, Image.Image], np.ndarray], bar: tqdm
    ) -> Iterator[list[tuple[Job, Image.Image, np.ndarray]]]:
        """Read the files as they are needed. What can't be read goes to `failures`."""
        batch: list[tuple[Job, Image.Image, np.ndarray]] = []
        pixels = 0
        for job in jobs:
            try:
                image = read_image(job.path)
                batch.append((job, image, get_mask(job, image)))
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

    def inpaint(
        self, model: MaskGIT, config: DecodeConfig, batch: list[tuple[Job, Image.Image, np.ndarray]], bar: tqdm
    ) -> None:
        """Fill the images of a batch and write their files."""
        before = bar.n
        try:
            results = model.inpaint(
                [image for _, image, _ in batch],
                [mask for _, _, mask in batch],
                config=config,
                seeds=[image_seed(self.options.seed, job.name) for job, _, _ in batch],
                batch_size=len(batch),
                paste=self.options.paste,
                save_steps=self.options.save_steps,
                progress=lambda done: bar.update(min(done, bar.total - bar.n)),  # thirds may add up to above 1
            )
        except (RuntimeError, ValueError, MemoryError) as error:  # out of memory, or a broken model's NaN
            bar.n = before
            if len(batch) > 1:  # one of them may be to blame, or there are too many
                for item in batch:
                    self.inpaint(model, config, [item], bar)
            else:
                self.fail(batch[0][0], error)
                bar.update()
            return
        for (job, _, _), result in zip(batch, results, strict=True):
            try:
                self.written.append(write_result(job, result))
            except OSError as error:
                self.fail(job, error)

    def fail(self, job: Job, error: Exception) -> None:
        """Note a failure, without naming the file twice."""
        reason = str(error) or type(error).__name__
        self.failures.append((str(job.path), reason.removeprefix(f"{job.path}: ").splitlines()[0]))

    def report(self, seconds: float) -> None:
        """Print where the results are, how many, how long it took, and what failed."""
        count = len(self.written)
        if count:
            kind = "with" if self.options.save_steps else "without"
            print(
                f"inpainted {count} image{'s' * (count != 1)} in {seconds:.1f} s ({count / seconds:.1f} images/s, "
                f"{self.options.steps} steps, strips {kind} steps included)"
            )
            print(f"results in {self.options.output.resolve()}")
            for path in self.written[:_LISTED]:
                print(f"  {path.relative_to(self.options.output)}  and  {path.with_suffix('').name}.strip.png")
            if count > _LISTED:
                print(f"  and {count - _LISTED} more")
        if self.failures:
            print(f"{len(self.failures)} of {count + len(self.failures)} images failed:", file=sys.stderr)
            for name, reason in self.failures:
                print(f"  {name}: {reason}", file=sys.stderr)


def write_result(job: Job, result: InpaintResult) -> Path:
    """Write NAME.strip.png and NAME.png; the path of the latter."""
    files = {}
    for suffix, picture in ((".strip.png", strip(result)), (".png", result.image)):
        data = io.BytesIO()
        picture.save(data, "PNG", compress_level=4)  # twice as fast as the default, a few percent larger
        files[job.output.with_name(job.output.name + suffix)] = data.getvalue()
    write_atomically(files)
    return job.output.with_name(job.output.name + ".png")


# --- which files ------------------------------------------------------------------------------------------------------


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


def mask_source(options: Options) -> Callable[[Job, Image.Image], np.ndarray]:
    """The function that gives an image's mask, bool [H, W]; it raises MaskError or ImageError.

    Raises:
        UsageError: --mask is none of what it may be.
    """
    path = Path(options.mask)
    if options.mask in MAKERS:

        def make(job: Job, image: Image.Image) -> np.ndarray:
            # Other random numbers than those of the tokens, which come from the seed of the bare name.
            seed = image_seed(options.seed, f"mask/{job.name}") % 2**64
            return make_mask(options.mask, image.height, image.width, seed) ^ options.invert_mask

        return make
    if path.is_dir():

        def find(job: Job, image: Image.Image) -> np.ndarray:
            mirrored = path / Path(job.name).parent
            folder = mirrored if mirrored.is_dir() else path
            return load_mask(find_mask_for(job.path, folder), image.size, options.invert_mask)

        return find
    if path.is_file():
        return lambda job, image: load_mask(path, image.size, options.invert_mask)
    raise UsageError(f"--mask {options.mask}: no such file or folder, and not one of {', '.join(MAKERS)}")
