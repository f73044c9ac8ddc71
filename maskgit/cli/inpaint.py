"""The command line of inpainting: `python inpaint.py`, or `maskgit-inpaint` once installed.

python inpaint.py                                                       # the samples, with the embedded model
python inpaint.py --images photos --mask holes --output filled          # a folder, with a folder of masks
python inpaint.py --images photo.jpg --mask hole.png --variants 4       # four ways to fill each hole
python inpaint.py --images photos --outpaint 0 0 50% 0                  # half a picture more on the right
python inpaint.py --images photos --box 25% 25% 50% 50% --class lorelei # paste a class into a box
python inpaint.py --generate 16 --class micah                           # from nothing
python inpaint.py --generate 24 --class all                             # all classes in turn
python inpaint.py --maps --map-at 50% 30%                               # where the model looks, and how sure it is
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from maskgit.canvas.windows import Window
from maskgit.cli.jobs import (
    OVERVIEW,
    Job,
    Target,
    check_originals,
    find_jobs,
    find_target,
    point_in_window,
    query_point,
    query_token,
    suffixes,
)
from maskgit.cli.options import Options, check_task, chosen_classes, class_name, crop_argument, decode_config
from maskgit.cli.results import write_results
from maskgit.console import DONE, FAILED, INTERRUPTED, UsageError, printable, progress_bar, run_command
from maskgit.data.carried import read_picture
from maskgit.data.masks import MaskError
from maskgit.data.reading import ImageError
from maskgit.decoding import DecodeConfig
from maskgit.pictures.maps import decoding_maps, map_picture
from maskgit.pictures.strips import (
    TRIPLE,
    display_size,
    framed,
    overview,
    pair,
    resize,
    strip,
    triple,
    variants_picture,
)
from maskgit.pipeline import MaskGIT, image_seed

_LISTED = 10  # results named at the end; of more, only the number
_SHOWN, _COLUMNS = 48, 8  # results in the overview at most, and pictures in a row of it
_MOST_CLASSES, _CLASS_LETTERS = 12, 20  # that have a column of it each; of a name, below a picture
_BATCH_PIXELS = 2**26  # a batch of huge images is cut short here, so that memory stays bounded

CAPTIONS = {"inpainted": TRIPLE, "outpainted": ("original", "outpainted"), "generated": ("",)}
"""What the overview shows of each image, by what has been done with it."""

Item = tuple[Job, Image.Image, Target]
"""A file to do, read, and what is to be done with it."""

Made = tuple[dict[str, Image.Image], tuple[Image.Image, ...]]
"""What has become of an item: pictures by how their files' names end, the result last; and those for the overview."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process.

    Returns:
        The exit status: 0; 1 if any file failed; 2 for bad usage; 130 after Ctrl-C.
    """
    return run_command(
        Options,
        lambda options: list_classes(options) if options.list_classes else Run(options).run(),
        argv,
        bare_words=("images", "mask"),
    )


def list_classes(options: Options) -> None:
    """Print the model's classes in their order, one a line. Raises UsageError: it has none, or can't be loaded."""
    try:
        model = MaskGIT.from_pretrained(options.model, device="cpu")
    except (ValueError, RuntimeError, OSError) as error:
        raise UsageError(str(error)) from error
    if not model.transformer.config.num_classes:
        raise UsageError(f"--list-classes: {options.model} was trained without classes")
    for number in range(model.transformer.config.num_classes):
        print(printable(class_name(model, number)))


class Run:
    """One run of the command: what it has to do, and what has become of it so far.

    Raises:
        UsageError: it can't be done; no file has been touched.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.verb = "generated" if options.generate is not None else "outpainted" if options.outpaint else "inpainted"
        self.suffixes = suffixes(options)
        self.failures: list[tuple[str, str]] = []  # (file, reason)
        self.written: list[Job] = []
        self.lost: dict[str, list[str]] = defaultdict(list)  # what results don't have of their files, and which
        self.looks: dict[str, str] = {}  # where the model looked, by file
        self.shown: list[tuple[str, tuple[Image.Image, ...]]] = []  # (file, its pictures) for the overview
        try:
            decode_config(options, DecodeConfig())  # what makes no sense is found out before a model is loaded
            check_task(options)
            self.jobs = find_jobs(options)
            check_originals(options, self.jobs, self.suffixes)
            there = next(path for path in (options.output, *options.output.absolute().parents) if path.exists())
            if not os.access(there, os.W_OK):
                raise UsageError(f"{options.output}: can't write results there: permission denied")
            start = time.perf_counter()
            self.model = model = MaskGIT.from_pretrained(
                options.model, device=options.device, kernels=options.kernels, precision=options.precision
            )
            loading = time.perf_counter() - start
            self.config = decode_config(options, model.decoding)
            self.classes = chosen_classes(options, model)
            for job, label in zip(self.jobs, itertools.cycle(self.classes), strict=False):
                job.label = label
        except (ValueError, RuntimeError, OSError) as error:  # the errors of every part above: they say what to do
            raise UsageError(str(error)) from error
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{options.output}: can't write results there: {error.strerror}") from error
        print(f"model {printable(options.model)} on {model.device} ({model.precision}), loaded in {loading:.1f} s")

    def run(self) -> int:
        """Do all files, report, and give the exit status."""
        start = time.perf_counter()
        try:
            with progress_bar(len(self.jobs), self.verb.replace("ed", "ing")) as bar:
                for batch in self.batches(bar):
                    self.work(batch, bar)
        except KeyboardInterrupt:
            done, where = len(self.written), printable(self.options.output)
            print(f"\ninterrupted: {done} of {len(self.jobs)} images are done, in {where}", file=sys.stderr)
            return INTERRUPTED
        self.write_overview()
        self.report(time.perf_counter() - start)
        return FAILED if self.failures else DONE

    def batches(self, bar: tqdm) -> Iterator[list[Item]]:
        """Read the files as they are needed. What can't be read goes to `failures`."""
        batch: list[Item] = []
        pixels = 0
        for job in self.jobs:
            try:
                image, lost = (Image.new("RGB", (1, 1)), ()) if job.path is None else read_picture(job.path)
                query_point(self.options, job, image)  # so that a point outside is said before the work is done
                batch.append((job, image, find_target(self.options, job, image)))
                for what in lost:
                    self.lost[what].append(job.name)
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

    def work(self, batch: list[Item], bar: tqdm) -> None:
        """Do the images of a batch and write their files."""
        before = bar.n
        try:
            # Thirds may add up to above 1.
            results = self.make(batch, lambda done: bar.update(min(done, bar.total - bar.n)))
        except (RuntimeError, ValueError, MemoryError) as error:  # out of memory, or a broken model's NaN
            bar.n = before
            if len(batch) > 1:  # one of them may be to blame, or there are too many
                for item in batch:
                    self.work([item], bar)
            else:
                self.fail(batch[0][0], error)
                bar.update()
            return
        for (job, _, _), (pictures, shown) in zip(batch, results, strict=True):
            try:
                write_results({job.file(suffix): pictures[suffix] for suffix in pictures}, self.options.output)
            except OSError as error:
                self.fail(job, error)
                continue
            self.written.append(job)
            if len(self.shown) < _SHOWN:
                self.shown.append((job.name, shown))

    def make(self, batch: list[Item], progress: Callable[[float], object]) -> list[Made]:
        """Make the pictures of a batch."""
        options, model = self.options, self.model
        share = 0.5 if options.maps else 1.0  # of the work; maps take about as long again
        common: dict[str, Any] = {
            "config": self.config,
            "seeds": [image_seed(options.seed, job.name) for job, _, _ in batch],
            "labels": None if options.class_ is None else [job.label for job, _, _ in batch],
            "batch_size": options.batch_size,
            "progress": lambda done: progress(done * share),
        }
        images: list[Image.Image] = [image for _, image, _ in batch]
        targets: list[Any] = [target for _, _, target in batch]
        if self.verb == "generated":
            generated = model.generate(len(batch), **common)
            return [
                ({".png": picture}, (self.shown_as(picture, job),))
                for picture, (job, _, _) in zip(generated, batch, strict=True)
            ]
        if self.verb == "outpainted":
            enlarged = model.outpaint(images, targets, crop=crop_argument(options), **common)
            return [({".png": after}, pair(before, after)) for before, after in zip(images, enlarged, strict=True)]
        how = {name: getattr(options, name) for name in ("grow", "feather", "variants", "paste", "save_steps")}
        results = model.inpaint(images, targets, crop=crop_argument(options), **how, **common)
        made: list[Made] = []
        for (job, image, _), result in zip(batch, results, strict=True):
            first = result.first()
            files = {".strip.png": strip(result)}
            if options.maps and result.steps:  # there are none where nothing was to be filled
                point = point_in_window(options, job, image, result.windows[0])
                query = query_token(point, first.original.size, result.masked.shape)
                maps = decoding_maps(model, result, self.config, label=job.label, query=query)
                files[".maps.png"] = map_picture(first, maps)
            if options.variants > 1:
                files[".variants.png"] = variants_picture(result)
                files |= {f".variant{number}.png": other for number, other in enumerate(result.variants[1:], 2)}
            made.append(({**files, ".png": result.image}, triple(result)))
            self.looks[job.name] = describe(result.windows, model.tokenizer.config.image_size)
            progress(1 - share)
        return made

    def shown_as(self, picture: Image.Image, job: Job) -> Image.Image:
        """A generated picture for the overview: with its class, where there are several."""
        shown = resize(picture, display_size(picture.size))
        if len(self.classes) < 2 or job.label is None:
            return shown
        return framed(shown, printable(class_name(self.model, job.label))[:_CLASS_LETTERS])

    def fail(self, job: Job, error: Exception) -> None:
        """Note a failure, without naming the file twice."""
        reason = (str(error) or type(error).__name__).removeprefix(f"{job.path}: ")
        if not isinstance(error, (ImageError, MaskError)):  # those are of one line, but for line breaks in names
            reason = reason.splitlines()[0]
        self.failures.append((str(job.path or job.name), reason))

    def write_overview(self) -> None:
        """The results together in one picture, where there are several."""
        if len(self.shown) > 1:
            captions, path = CAPTIONS[self.verb], self.options.output / OVERVIEW
            # By name, as a caller may list the files in any order; those from nothing are in that of their numbers.
            shown = self.shown if self.verb == "generated" else sorted(self.shown, key=lambda entry: entry[0])
            columns = len(self.classes) if 1 < len(self.classes) <= _MOST_CLASSES else _COLUMNS // len(captions)
            try:
                picture = overview([pictures for _, pictures in shown], captions, columns)
                write_results({path: picture}, self.options.output)
            except OSError as error:
                self.fail(Job(None, OVERVIEW, path), error)

    def report(self, seconds: float) -> None:
        """Print where the results are, how many, how long it took, and what failed."""
        count, steps, output = len(self.written), self.config.steps, self.options.output
        if count:
            strips = f", strips {'with' if self.options.save_steps else 'without'} steps included"
            print(
                f"{self.verb} {count} image{'s' * (count != 1)} in {seconds:.1f} s ({rate(count, seconds)}, "
                f"{steps} step{'s' * (steps != 1)}{strips * (self.verb == 'inpainted')})"
            )
            print(f"results in {printable(output.resolve())}")
            for job in self.written[:_LISTED]:
                also = [job.file(suffix).name for suffix in self.suffixes[:-1]]
                print("  " + printable("  and  ".join([str(job.file(".png").relative_to(output)), *also])))
                if looks := self.looks.get(job.name):
                    print(f"    {looks}")
            if count > _LISTED:
                print(f"  and {count - _LISTED} more")
            if len(self.shown) > 1:
                which = "all" if count == len(self.shown) else f"the first {len(self.shown)}"
                print(f"{OVERVIEW} shows {which} of them")
        for what, names in self.lost.items():
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            print(printable(f"not in the result: {what} (of {', '.join(names[:_LISTED])}{more})"), file=sys.stderr)
        if self.failures:
            print(f"{len(self.failures)} of {count + len(self.failures)} images failed:", file=sys.stderr)
            for name, reason in self.failures:
                print(printable(f"  {name}: {reason}"), file=sys.stderr)


def rate(count: int, seconds: float) -> str:
    """How fast images were done."""
    return f"{count / seconds:.1f} images/s" if count >= seconds else f"{seconds / count:.1f} s/image"


def describe(windows: Sequence[Window], size: int) -> str:
    """Where the model, of that size, looked: "filled in 3 windows: 1 of 240 pixels (scale 0.27), 2 of 64". Nothing,
    where that was the picture as it is."""
    sides = Counter(max(window.box.right - window.box.left, window.box.bottom - window.box.top) for window in windows)
    if [*sides.items()] in ([], [(size, 1)]):
        return ""
    parts = [f"{count} of {side}" + f" (scale {size / side:.2g})" * (side != size) for side, count in sides.items()]
    return f"filled in {len(windows)} window{'s' * (len(windows) != 1)}, in pixels: {', '.join(parts)}"
