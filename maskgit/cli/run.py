"""One run of the command: reads, fills, writes, reports."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from maskgit.cli.jobs import (
    OVERVIEW,
    Job,
    Target,
    find_jobs,
    generated_jobs,
    mask_source,
    outpainting,
    query_point,
    query_token,
)
from maskgit.cli.options import Options, UsageError, check_task, class_number, decode_config
from maskgit.cli.originals import check_originals
from maskgit.cli.results import result_mark
from maskgit.console import printable
from maskgit.data.carried import read_picture
from maskgit.data.masks import MaskError
from maskgit.data.reading import ImageError
from maskgit.decoding import DecodeConfig
from maskgit.files import write_atomically
from maskgit.pictures.maps import decoding_maps, map_picture
from maskgit.pictures.strips import TRIPLE, display_size, overview, resize, strip, triple
from maskgit.pipeline import MaskGIT, image_seed

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

_LISTED = 10  # results named at the end; of more, only the number
_SHOWN, _COLUMNS = 48, 8  # results in the overview at most, and pictures in a row of it
_BATCH_PIXELS = 2**26  # a batch of huge images is cut short here, so that memory stays bounded


CAPTIONS = {"inpainted": TRIPLE, "outpainted": ("original", "outpainted"), "generated": ("",)}
"""What the overview shows of each image, by what has been done with it."""


class Pictures(NamedTuple):
    """What has become of an image."""

    files: dict[str, Image.Image]
    """By how the file names end, that of the result last."""
    shown: tuple[Image.Image, ...]
    """For the overview."""


class Run:
    """One run of the command: what it has to do, and what has become of it so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.failures: list[tuple[str, str]] = []  # (file, reason)
        self.written: list[Path] = []
        self.lost: dict[str, list[str]] = {}  # what results don't have of their files, and which
        self.shown: list[tuple[str, tuple[Image.Image, ...]]] = []  # (file, its pictures) for the overview
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
            check_originals(options, jobs, self.suffixes())
            start = time.perf_counter()
            model = MaskGIT.from_pretrained(
                options.model, device=options.device, kernels=options.kernels, precision=options.precision
            )
            loading = time.perf_counter() - start
            config = decode_config(options, model.decoding)
            if options.class_ is not None:
                self.label = class_number(model, options.class_)
        except (ValueError, RuntimeError, OSError) as error:  # the errors of every part above: they say what to do
            raise UsageError(str(error)) from error
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{options.output}: can't write results there: {error.strerror}") from error
        print(f"model {printable(options.model)} on {model.device} ({model.precision}), loaded in {loading:.1f} s")

        start = time.perf_counter()
        try:
            with tqdm(
                total=len(jobs),
                desc=self.verb.replace("ed", "ing"),
                unit="image",
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
            ) as bar:
                for batch in self.batches(jobs, get_target, bar):
                    self.work(model, config, batch, bar)
        except KeyboardInterrupt:
            done = len(self.written)
            where = printable(options.output)
            print(f"\ninterrupted: {done} of {len(jobs)} images are done, in {where}", file=sys.stderr)
            return INTERRUPTED
        self.write_overview()
        self.report(time.perf_counter() - start, config.steps)
        return SOME_FAILED if self.failures else DONE

    def suffixes(self) -> tuple[str, ...]:
        """How the names of an image's results end, that of the result last."""
        if self.verb != "inpainted":
            return (".png",)
        return (".strip.png", *([".maps.png"] if self.options.maps else []), ".png")

    def batches(
        self, jobs: list[Job], get_target: Callable[[Job, Image.Image], Target], bar: tqdm
    ) -> Iterator[list[tuple[Job, Image.Image, Target]]]:
        """Read the files as they are needed. What can't be read goes to `failures`."""
        batch: list[tuple[Job, Image.Image, Target]] = []
        pixels = 0
        for job in jobs:
            try:
                image, lost = (Image.new("RGB", (1, 1)), ()) if job.path is None else read_picture(job.path)
                query_point(self.options, job, image)  # so that a point outside is said before the work is done
                batch.append((job, image, get_target(job, image)))
                for what in lost:
                    self.lost.setdefault(what, []).append(job.name)
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
                self.written.append(write_pictures(job.output, pictures.files, self.options.output))
            except OSError as error:
                self.fail(job, error)
                continue
            if len(self.shown) < _SHOWN:
                self.shown.append((job.name, pictures.shown))

    def pictures(
        self,
        model: MaskGIT,
        config: DecodeConfig,
        batch: list[tuple[Job, Image.Image, Target]],
        progress: Callable[[float], object],
    ) -> list[Pictures]:
        """Do the images of a batch."""
        options = self.options
        share = 0.5 if options.maps else 1.0  # of the work; maps take about as long again
        common: dict[str, Any] = {
            "config": config,
            "seeds": [image_seed(options.seed, job.name) for job, _, _ in batch],
            "labels": None if self.label is None else [self.label] * len(batch),
            "batch_size": options.batch_size,
            "progress": lambda done: progress(done * share),
        }
        images, targets = [image for _, image, _ in batch], [target for _, _, target in batch]
        if options.generate is not None:
            generated = model.generate(len(batch), **common)
            return [
                Pictures({".png": picture}, (resize(picture, display_size(picture.size)),)) for picture in generated
            ]
        if options.outpaint:
            enlarged = model.outpaint(images, targets, **common)  # type: ignore[arg-type]
            return [
                Pictures({".png": after}, _pair(before, after)) for before, after in zip(images, enlarged, strict=True)
            ]
        results = model.inpaint(images, targets, paste=options.paste, save_steps=options.save_steps, **common)  # type: ignore[arg-type]
        finished = []
        for (job, image, _), result in zip(batch, results, strict=True):
            files = {".strip.png": strip(result)}
            if options.maps and result.steps:  # there are none where nothing was to be filled
                query = query_token(query_point(options, job, image), image.size, result.masked.shape)
                maps = decoding_maps(model, result, config, label=self.label, query=query)
                files[".maps.png"] = map_picture(result, maps)
            finished.append(Pictures({**files, ".png": result.image}, triple(result)))
            progress(1 - share)
        return finished

    def fail(self, job: Job, error: Exception) -> None:
        """Note a failure, without naming the file twice."""
        reason = (str(error) or type(error).__name__).removeprefix(f"{job.path}: ")
        if not isinstance(error, (ImageError, MaskError)):  # those are of one line, but for line breaks in names
            reason = reason.splitlines()[0]
        self.failures.append((str(job.path or job.name), reason))

    def write_overview(self) -> None:
        """The results together in one picture, where there are several."""
        if len(self.shown) > 1:
            captions = CAPTIONS[self.verb]
            # By name, as a caller may list the files in any order.
            groups = [pictures for _, pictures in sorted(self.shown, key=lambda entry: entry[0])]
            picture = overview(groups, captions, _COLUMNS // len(captions))
            path = self.options.output / OVERVIEW
            try:
                write_pictures(path.with_suffix(""), {".png": picture}, self.options.output)
            except OSError as error:
                self.fail(Job(None, OVERVIEW, path), error)

    def report(self, seconds: float, steps: int) -> None:
        """Print where the results are, how many, how long it took, and what failed."""
        count = len(self.written)
        if count:
            strips = self.verb == "inpainted"
            kind = "with" if self.options.save_steps else "without"
            print(
                f"{self.verb} {count} image{'s' * (count != 1)} in {seconds:.1f} s ({count / seconds:.1f} images/s, "
                f"{steps} step{'s' * (steps != 1)}{f', strips {kind} steps included' * strips})"
            )
            print(f"results in {printable(self.options.output.resolve())}")
            for path in self.written[:_LISTED]:
                name = path.with_suffix("").name
                also = f"  and  {name}.strip.png" * strips + f"  and  {name}.maps.png" * self.options.maps
                print(printable(f"  {path.relative_to(self.options.output)}{also}"))
            if count > _LISTED:
                print(f"  and {count - _LISTED} more")
            if len(self.shown) > 1:
                print(
                    f"{OVERVIEW} shows {'all' if count == len(self.shown) else f'the first {len(self.shown)}'} of them"
                )
        for what, names in self.lost.items():
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            of = printable(", ".join(names[:_LISTED]))
            print(f"not in the result: {what} (of {of}{more})", file=sys.stderr)
        if self.failures:
            print(f"{len(self.failures)} of {count + len(self.failures)} images failed:", file=sys.stderr)
            for name, reason in self.failures:
                print(printable(f"  {name}: {reason}"), file=sys.stderr)


def _pair(original: Image.Image, outpainted: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Both at one scale."""
    width, height = display_size(outpainted.size)
    scale = width / outpainted.width
    size = max(1, round(original.width * scale)), max(1, round(original.height * scale))
    return resize(original, size), resize(outpainted, (width, height))


def write_pictures(output: Path, pictures: dict[str, Image.Image], folder: Path) -> Path:
    """Write pictures by how their names end after `output`, all or none, as results of a run in a folder.

    Returns:
        The path of the last.
    """
    files = {}
    for suffix, picture in pictures.items():
        path, data = output.with_name(output.name + suffix), io.BytesIO()
        # Pillow writes the color profile by itself, EXIF only when told to. This level takes half the time of the
        # default, for a few percent more.
        mark, exif = result_mark(path, folder), picture.info.get("exif")
        picture.save(data, "PNG", compress_level=4, pnginfo=mark, exif=exif)
        files[path] = data.getvalue()
    write_atomically(files)
    return list(files)[-1]
