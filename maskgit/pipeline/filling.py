"""Filling pictures window by window: each is brought to the model's square, filled, and put back in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit.canvas.filling import Canvas
from maskgit.canvas.holes import blended, cells_with_holes, depths, paste_known
from maskgit.canvas.windows import FINER, Window, whole, windows
from maskgit.data.carried import fill_in
from maskgit.data.reading import to_rgb
from maskgit.decoding import DecodeConfig
from maskgit.memory import MOST_PIXELS
from maskgit.pipeline.arguments import Run, image_seed
from maskgit.pipeline.networks import Networks
from maskgit.pipeline.pixels import InpaintResult, Step, to_pictures, to_tensor, visible

Progress = Callable[[float], None]
"""Called as the work goes on with what was done since the last call, in images; adds up to their number."""

OnStep = Callable[[int, Step], object]
"""Called with an image's number and the state of its first window after each decoding step."""

Watchers = Mapping[int, Callable[[Step], object]]
"""Who hears of a canvas's first window after each decoding step, by the canvas's number."""

Crop = str | int
"""Where a model looks: "auto", in windows around the holes, at the picture's scale where they aren't too thick for
that; a number, likewise, in windows of at least so many pixels; "off", at all of the picture, squeezed."""


_ODDS = 1000
"""Times as often as elsewhere that a smooth continuation shows the right token, next to what is known; it is half of
that for each token further away."""

_KEPT = 0.5
"""How much of what a tokenizer loses of a smooth continuation is put back: with all of it fills are duller than what
surrounds them, with none of it noisier."""


class _Look(NamedTuple):
    """One window of one of several canvases."""

    canvas: int
    number: int
    """In the order in which the canvas has its windows."""
    window: Window


class Filling(Networks):
    """The networks, and how they fill the holes of pictures of any size."""

    def _windows(self, hole: np.ndarray, crop: Crop) -> list[Window]:
        """Where to look for filling this hole, bool [H, W]."""
        if crop == "off" or not hole.any():
            return [whole(hole.shape)]
        return windows(hole, self.tokenizer.config.image_size, None if crop == "auto" else int(crop))

    def _result(self, picture: Image.Image, hole: np.ndarray, crop: Crop, paste: bool) -> InpaintResult:
        """What there is of a result before anything is filled."""
        looks = self._windows(hole, crop) if hole.any() or not paste else []
        first, grid = hole[looks[0].box.area] if looks else hole, self.tokenizer.config.grid
        return InpaintResult(picture, to_rgb(picture), hole, cells_with_holes(first, grid, grid), windows=looks)

    def _fill_all(
        self,
        results: list[InpaintResult],
        run: Run,
        variants: int,
        feather: int,
        paste: bool,
        save_steps: bool,
        on_step: OnStep | None,
        progress: Progress | None,
    ) -> None:
        """Fill the results' holes so many times; see `MaskGIT.inpaint`."""
        pictures = [result.image for result in results]
        todo = [(i, variant) for i, result in enumerate(results) if result.windows for variant in range(variants)]
        if progress and not all(result.windows for result in results):
            progress(sum(not result.windows for result in results))

        def watcher(i: int) -> Callable[[Step], None]:
            def watch(step: Step) -> None:
                if save_steps:
                    results[i].steps.append(step)
                if on_step:
                    on_step(i, step)

            return watch

        largest = max((result.mask.size for result in results), default=1)
        at_once = min(run.batch_size, max(1, MOST_PIXELS // largest))  # or copies of a large picture fill the memory
        for start in range(0, len(todo), at_once):
            batch = todo[start : start + at_once]
            canvases = [Canvas(results[i].original, results[i].mask, results[i].windows) for i, _ in batch]
            part = run.of([i for i, _ in batch])
            seeds = [
                image_seed(seed, f"variant {variant}") if variant else seed
                for seed, (_, variant) in zip(part.seeds, batch, strict=True)
            ]
            heard = enumerate(batch) if save_steps or on_step else ()
            watchers = {at: watcher(i) for at, (i, variant) in heard if not variant}
            self._fill(canvases, part._replace(seeds=seeds), paste, watchers, progress and _shared(progress, variants))
            for (i, _), canvas in zip(batch, canvases, strict=True):
                result = results[i]
                fill = blended(result.original, canvas.image, result.mask, feather)
                wanted = result.mask if paste else np.ones_like(result.mask)
                result.variants.append(fill_in(pictures[i], fill, wanted))
        for result in results:
            result.variants = result.variants or [result.image.copy()] * variants  # it may be what `original` is
            result.image = result.variants[0]

    def _fill(
        self, canvases: Sequence[Canvas], run: Run, paste: bool, watchers: Watchers, progress: Progress | None
    ) -> None:
        """Fill canvases, one for each image of a run."""
        looks = [
            [
                _Look(i, number, window)
                for number, window in enumerate(window for turn in canvas.turns for window in turn)
            ]
            for i, canvas in enumerate(canvases)
        ]
        counts = [len(those) for those in looks]

        def done(batch: Sequence[_Look], share: float) -> None:
            if progress:
                progress(sum(share / counts[look.canvas] for look in batch))

        for turn in range(max((len(canvas.turns) for canvas in canvases), default=0)):
            here: list[_Look] = []
            for canvas, those in zip(canvases, looks, strict=True):
                count = len(canvas.turns[turn]) if turn < len(canvas.turns) else 0
                here += those[:count]
                del those[:count]
            for again in (False, True):
                todo = [look for look in here if look.window.again == again]
                for start in range(0, len(todo), run.batch_size):
                    batch = todo[start : start + run.batch_size]
                    self._fill_windows(canvases, batch, run, paste, watchers, done)

    def _fill_windows(
        self,
        canvases: Sequence[Canvas],
        batch: Sequence[_Look],
        run: Run,
        paste: bool,
        watchers: Watchers,
        done: Callable[[Sequence[_Look], float], None],
    ) -> None:
        """Fill windows that go through the model together."""
        size, grid = self.tokenizer.config.image_size, self.tokenizer.config.grid
        again = batch[0].window.again
        views = [canvases[look.canvas].view(look.window) for look in batch]
        seen = [visible(image, np.zeros_like(hole) if again else hole, size) for image, hole in views]
        masked = np.stack([cells_with_holes(hole, grid, grid) for _, hole in views])
        passes = list(_passes(masked, run.config, again))
        run = run.of([look.canvas for look in batch])
        shown = torch.stack([to_tensor(image) for image in seen]).to(self.device)
        tokens = self._encode(shown)
        drafts = [at for at, look in enumerate(batch) if canvases[look.canvas].continues(look.window)]
        lost = torch.zeros_like(shown)
        if drafts and paste:
            lost[drafts] = _KEPT * (shown[drafts] - self._to_pixels(tokens[drafts]))
        watched = [at for at, look in enumerate(batch) if look.canvas in watchers and not look.number]
        decoded: dict[int, Image.Image] = {}
        for number, (part, config) in enumerate(passes):
            seeds = [
                image_seed(seed, f"{look.number}.{number}") if look.number else seed
                for seed, look in zip(run.seeds, batch, strict=True)
            ]
            hidden = torch.from_numpy(part.reshape(len(batch), -1)).to(self.device)
            if drafts:
                hidden[drafts] = self._doubtful(
                    tokens[drafts],
                    hidden[drafts],
                    _odds(part[drafts]).to(self.device),
                    [seeds[at] for at in drafts],
                    None if run.labels is None else run.labels[drafts],
                )
            states = self._decode(tokens, hidden, config, seeds, run.labels, run.batch_size)
            for tokens, still_masked in states:
                if watched:
                    decoded = self._pictures(tokens, lost, watched)
                    left, codes = still_masked.cpu().numpy(), tokens.cpu().numpy()
                    for at in watched:
                        picture = decoded[at]
                        if paste:
                            picture = paste_known(seen[at], picture, cells_with_holes(views[at][1], size, size))
                        step = Step(picture, left[at].reshape(grid, grid), codes[at].reshape(grid, grid))
                        watchers[batch[at].canvas](step)
                done(batch, 1 / (config.steps_taken * len(passes)))
        # The last step's pictures are those of the final tokens.
        missing = [at for at in range(len(batch)) if at not in decoded]
        if missing:
            decoded |= self._pictures(tokens, lost, missing)
        for at, (look, (image, hole)) in enumerate(zip(batch, views, strict=True)):
            fill = decoded[at].resize(image.size, Image.Resampling.BICUBIC)
            if again:
                fill = _with_detail(image, fill)
            fill = paste_known(image, fill, hole) if paste else fill
            canvases[look.canvas].fill(look.window, fill, bare=not paste)

    def _pictures(self, tokens: Tensor, lost: Tensor, chosen: list[int]) -> dict[int, Image.Image]:
        """Some of the pictures that tokens [B, N] are, with what they lack, [B, 3, S, S]; by their number."""
        return dict(zip(chosen, to_pictures(self._to_pixels(tokens[chosen]) + lost[chosen]), strict=True))


def _odds(masked: np.ndarray) -> Tensor:
    """How far to trust the tokens of a smooth continuation (see `decoding.draft`) in holes bool [B, h, w]; [B, h w]."""
    return torch.from_numpy(_ODDS * 0.5 ** np.stack([depths(cells) for cells in masked])).float().flatten(1)


def _with_detail(coarse: Image.Image, fine: Image.Image) -> Image.Image:
    """The coarse picture with what is finer in the other than it can show; RGB both.

    What a finer window makes of a smooth part has colors a little off, as it doesn't see far: taken as it is, it would
    spoil the structure that the coarse one has found.
    """
    small = -(-fine.width // FINER), -(-fine.height // FINER)
    rough = fine.resize(small, Image.Resampling.BOX).resize(fine.size, Image.Resampling.BICUBIC)
    sums = np.asarray(coarse, dtype=np.int16) + np.asarray(fine) - np.asarray(rough)
    return Image.fromarray(sums.clip(0, 255).astype(np.uint8))


def _shared(progress: Progress, count: int) -> Progress:
    """For what is one of so many parts of an image."""
    return lambda done: progress(done / count)


def _passes(masked: np.ndarray, config: DecodeConfig, again: bool) -> Iterator[tuple[np.ndarray, DecodeConfig]]:
    """What is masked, bool [B, h, w], as it is decoded: all at once; or where a coarse fill is there to go on from,
    every other token and then the others, so that each lies between four that stay, in half the steps."""
    if not again:
        yield masked, config
        return
    half = dataclasses.replace(config, steps=-(-config.steps // 2), stop_after=None)
    board = np.indices(masked.shape[1:]).sum(0) % 2 == 0
    yield masked & board, half
    yield masked & ~board, half
