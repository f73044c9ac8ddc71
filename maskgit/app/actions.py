"""What the buttons of the page do: generators, each of whose values is what the page shows from then on.

Each takes what its tab asks for, and `How`, which several tabs share. Errors are a `gr.Error` that the page shows; a
traceback on the console is for what nobody has foreseen.
"""

from __future__ import annotations

import dataclasses
import html
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from maskgit.app import given
from maskgit.app.work import Tell, Worker
from maskgit.console import first_line
from maskgit.data.png import png_bytes
from maskgit.data.reading import to_rgb
from maskgit.decoding import DecodeConfig, decoder
from maskgit.pipeline import MaskGIT, Step

MOST_VARIANTS = 8
MOST_STEPS = 32
"""Of a run, whose pictures are shown, spread evenly over it."""

PACE = 0.1
"""Seconds from one picture to the next, at least: browsers don't follow any faster."""

_LATEST = 8
"""Steps whose pictures are shown as they come: each time all are sent again."""

OWN = "the model's own"
"""The decoder that isn't a preset."""

View = tuple[Any, Any, Any, Any, Any]
"""Of a run: the result's file, before and after, the variants, the steps, and a line that says how far it is."""

_NAMES = ("schedule", "order")
_NUMBERS = ("softmax_temperature", "choice_temperature", "guidance_scale")

Number = float | str | None
"""From a field that may be empty."""


@dataclasses.dataclass(frozen=True)
class How:
    """What several tabs share. What is None or "" is as the model or the decoder has it."""

    label: str | None = None
    """A class by its name or number."""
    crop: str | None = None
    """As for `MaskGIT.inpaint`, as the next two; of tabs that fill holes."""
    grow: Number = None
    feather: Number = None
    variants: Number = None
    seed: Number = None
    decoder: str | None = None
    steps: Number = None
    schedule: str | None = None
    order: str | None = None
    softmax_temperature: Number = None
    choice_temperature: Number = None
    guidance_scale: Number = None

    @property
    def count(self) -> int:
        """How many variants. Raises ValueError: none, or too many."""
        count = given.whole(self.variants, "variants")
        count = 1 if count is None else count
        if not 1 <= count <= MOST_VARIANTS:
            raise ValueError(f"{count} variants: must be from 1 to {MOST_VARIANTS}")
        return count

    def config(self, own: DecodeConfig) -> DecodeConfig:
        """How to decode, for a model with this way of its own. Raises ValueError: values that make no sense."""
        changes: dict[str, Any] = {name: getattr(self, name) or None for name in _NAMES}
        changes |= {name: given.number(getattr(self, name), name) for name in _NUMBERS}
        changes["steps"] = given.whole(self.steps, "steps")
        changes = {name: value for name, value in changes.items() if value is not None}
        preset = own if self.decoder in (None, "", OWN) else decoder(self.decoder)
        return dataclasses.replace(preset, **changes)

    @property
    def start(self) -> int:
        """The seed. Raises ValueError: it is no whole number."""
        return given.whole(self.seed, "seed") or 0


class Actions:
    """What a model can be asked for on the page; what it makes goes to those who asked, and stays nowhere else."""

    def __init__(self, model: MaskGIT, worker: Worker) -> None:
        self.model, self.worker = model, worker

    def inpaint(
        self,
        picture: str | None,
        painted: dict[str, Any] | None,
        mask: str | None,
        invert: bool | None,
        how: How,
    ) -> Iterator[View]:
        """Fill what has been painted over a picture, and what the file of a mask says."""

        def job(tell: Tell) -> Made:
            image, lost = given.open_picture(picture)
            hole, odd = given.hole(image.size, (painted or {}).get("layers") or [], mask, bool(invert))
            return self._fill(image, hole, how, tell, [*odd, *_lost(lost)])

        return self._run(job, how, picture, mask)

    def class_box(
        self,
        picture: str | None,
        left: float | None,
        top: float | None,
        width: float | None,
        height: float | None,
        how: How,
    ) -> Iterator[View]:
        """Put a class into a box of a picture, which is in percent of its sides."""

        def job(tell: Tell) -> Made:
            image, lost = given.open_picture(picture)
            if not how.label:
                raise ValueError("choose the class that is to be in the box")
            x, y, right, bottom = given.box(image.size, left or 0, top or 0, width or 0, height or 0)
            hole = np.zeros(image.size[::-1], dtype=bool)
            hole[y:bottom, x:right] = True
            return self._fill(image, hole, how, tell, _lost(lost))

        return self._run(job, how, picture)

    def outpaint(
        self,
        picture: str | None,
        left: float | None,
        top: float | None,
        right: float | None,
        bottom: float | None,
        how: How,
    ) -> Iterator[View]:
        """Continue a picture beyond its borders, by percent of its sides."""

        def job(tell: Tell) -> Made:
            image, lost = given.open_picture(picture)
            sides = zip((left, top, right, bottom), image.size * 2, strict=True)
            margins = [round(side * (share or 0) / 100) for share, side in sides]
            width, height = image.width + margins[0] + margins[2], image.height + margins[1] + margins[3]
            given.check_size(width, height)
            if not any(margins):
                raise ValueError("say how much is to be added, and on which sides")
            made = self.model.outpaint(
                [image] * how.count, [tuple(margins)] * how.count, **self._asked(how, tell, how.count)
            )
            before = Image.new("RGB", made[0].size, "white")
            before.paste(to_rgb(image), (margins[0], margins[1]))
            return Made(before, made, _lost(lost))

        return self._run(job, how, picture)

    def generate(self, how: How) -> Iterator[View]:
        """Make pictures from nothing."""

        def job(tell: Tell) -> Made:
            side = self.model.tokenizer.config.image_size
            nothing, everywhere = Image.new("RGB", (side, side)), np.ones((side, side), dtype=bool)
            # Rather than `model.generate`, which makes the same first picture, but has no steps to show.
            made = self._fill(nothing, everywhere, how, tell, [])
            return made._replace(before=None)

        return self._run(job, how)

    def _fill(self, image: Image.Image, hole: np.ndarray, how: How, tell: Tell, notes: list[str]) -> Made:
        crop = how.crop or None
        result = self.model.inpaint(
            image,
            hole,
            crop=int(crop) if crop and crop.isdecimal() else crop and crop.lower(),
            grow=given.whole(how.grow, "grow"),
            feather=given.whole(how.feather, "feather") or 0,
            variants=how.count,
            **self._asked(how, tell, 1),
        )
        return Made(result.original, result.variants, notes)

    def _asked(self, how: How, tell: Tell, images: int) -> dict[str, Any]:
        """What is asked of the model whatever it is to do, with so many images."""
        return {
            "config": how.config(self.model.decoding),
            "seed": how.start,
            "labels": [how.label] * images if how.label else None,
            "progress": lambda share: tell(share / images),
            "on_step": lambda i, step: tell(step) if i == 0 else None,
        }

    def _run(self, job: Callable[[Tell], Made], how: How, *paths: str | None) -> Iterator[View]:
        """Show a job's news as they come, and at the end what it has made. `paths`: the files that it reads."""
        with tempfile.TemporaryDirectory() as folder:  # of which gradio takes copies, that it deletes after a while
            steps: list[str] = []
            done, shown = 0.0, -math.inf
            yield _view(status="Looking at it …")
            try:
                for news in self.worker.do(job):
                    if isinstance(news, Made):
                        files = [_keep(picture, folder, f"{i + 1}") for i, picture in enumerate(news.pictures)]
                        before = files[0] if news.before is None else _keep(news.before, folder, "before")
                        said = " ".join([f"Done, with seed {how.start}.", *news.notes])
                        some = steps[:: -(-len(steps) // MOST_STEPS) or 1]
                        yield files[0], (before, files[0]), files, [*some[:-1], *steps[-1:]], _plain(said)
                        return
                    if isinstance(news, Step):
                        steps.append(_keep(news.image, folder, f"step-{len(steps) + 1}"))
                    else:
                        done += news
                    if time.monotonic() - shown >= PACE:
                        shown = time.monotonic()
                        latest = steps[-_LATEST:]
                        seen = gr.Gallery(latest, selected_index=len(latest) - 1) if latest else None
                        yield _view(steps=seen, status=f"{min(done, 1):.0%}")
            except (ValueError, RuntimeError, MemoryError) as error:
                said = _plain(given.named(first_line(error), *paths))
                yield _view(status=f"**{said}**")
                raise gr.Error(said, print_exception=False) from error


class Made(NamedTuple):
    """What a job has made."""

    before: Image.Image | None
    """What there was, of the pictures' size; None: nothing."""
    pictures: list[Image.Image]
    notes: list[str]
    """What is to be said about it, in sentences."""


def _view(steps: Any = None, status: str | None = None) -> View:
    """The page with new steps or another status, all else as it is."""
    stays = gr.skip()
    return stays, stays, stays, stays if steps is None else steps, stays if status is None else status


def _keep(picture: Image.Image, folder: str, name: str) -> str:
    """Write a picture with what it carries; the path of its file."""
    path = Path(folder) / f"{name}.png"
    path.write_bytes(png_bytes(picture, compress_level=4, exif=picture.info.get("exif")))
    return str(path)


def _lost(what: Sequence[str]) -> list[str]:
    return [f"The result doesn't have {one}." for one in what]


def _plain(text: str) -> str:
    """Text in which nothing is markup: names of files may look like that."""
    return html.escape(text, quote=False)
