"""MaskGIT: what users call, and how a run goes.

model = MaskGIT.from_pretrained()
results = model.inpaint([image], [mask])  # mask: bool [H, W], True = fill
results[0].image.save("filled.png")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskgit.canvas.holes import cells_with_holes, paste_known
from maskgit.canvas.outpainting import Canvas, Margins
from maskgit.data.carried import fill_in
from maskgit.data.reading import to_rgb
from maskgit.decoding import DecodeConfig
from maskgit.network.folder import Model, find_model, load_model, save_model
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer
from maskgit.pipeline import arguments
from maskgit.pipeline.arguments import Precision, Run, image_seed, resolve_device
from maskgit.pipeline.networks import Networks
from maskgit.pipeline.pixels import InpaintResult, Step, finished, to_pictures, to_tensor, visible
from maskgit.tokenizer import VQGAN
from maskgit_kernels import backend

Progress = Callable[[float], None]
"""Called as the work goes on with what was done since the last call, in images; adds up to their number."""


class MaskGIT(Networks):
    """A tokenizer and a transformer, ready to use.

    The same image with the same seed gives the same picture whatever the batch size and its place in the batch: exactly
    on a CPU, with one number of threads; on a GPU but for the rounding of cuBLAS and cuDNN, which choose their kernels
    by the batch size. That can flip a close draw, and what is drawn after it. So can another number of threads.

    On an NVIDIA GPU the decoding loop is captured as a CUDA graph on first use (of a batch size and decoding options),
    and replayed from then on. Capturing takes about two batches' time; MASKGIT_GRAPHS=0 in the environment, or setting
    `graphs` to None, turns it off. Where it fails, a warning says so, and the loop runs without.

    Args:
        tokenizer, transformer: both are put in evaluation mode and moved to `device`.
        class_names: names of the transformer's classes, if it has any.
        metadata: anything that JSON can hold, saved with the model.
        decoding: how to decode if nothing else is said; saved with the model.
        device: such as "cpu" or "cuda:0"; None: a GPU if there is one.
        kernels: "auto", "triton" or "torch", for the whole process (see `maskgit_kernels.backend`); None leaves that
            as it is (MASKGIT_KERNELS, or "auto").
        precision: of matrix products and convolutions: "float32", "bf16" or, on a GPU, "fp16". "auto" is bf16 where
            the hardware is faster in it (an AMD CPU with AVX512-BF16 is 2.6 times as fast for the transformer, 1.7
            times for a tokenizer), else float32: fp16 is for older GPUs and has to be asked for, because large
            activations of a model may be more than it can hold. Embeddings, sums, normalization and softmax are in
            float32 whatever it is, and codes are compared in it. Weights stay what they are; the networks run on
            copies that are cast once.

    Raises:
        ModelError: tokenizer and transformer don't fit each other.
        ValueError: an unknown precision or implementation, a device that isn't there, a MASKGIT_GRAPHS that is neither
            0 nor 1.
        RuntimeError: kernels="triton" where Triton can't run.
    """

    def __init__(
        self,
        tokenizer: VQGAN,
        transformer: Transformer | HaltonTransformer,
        class_names: Sequence[str] = (),
        metadata: dict[str, Any] | None = None,
        decoding: DecodeConfig | None = None,
        *,
        device: str | torch.device | None = None,
        kernels: str | None = None,
        precision: Precision = "auto",
    ) -> None:
        model = Model(tokenizer, transformer, list(class_names), dict(metadata or {}), decoding or DecodeConfig())
        if kernels is not None:
            backend.use(kernels)
        found = resolve_device(device)
        backend.resolve(None, found)  # so that an impossible MASKGIT_KERNELS is an error now and not later
        super().__init__(tokenizer, transformer, found, arguments.resolve_precision(precision, found))
        self.class_names, self.metadata, self.decoding = model.class_names, model.metadata, model.decoding

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str] = "embedded",
        *,
        device: str | torch.device | None = None,
        kernels: str | None = None,
        precision: Precision = "auto",
    ) -> MaskGIT:
        """Load a model folder.

        Args:
            path_or_repo: "embedded" for the model that ships with this package, a local folder, or the id of a
                repository on the Hugging Face Hub ("someone/some-model"; needs huggingface_hub).
            device, kernels, precision: see the class.

        Raises:
            ModelError: there is no such model, or it is damaged; the message names the file.
            ValueError, RuntimeError: as the class.
        """
        with resources.as_file(resources.files("maskgit") / "assets" / "embedded") as embedded:
            model = load_model(embedded if path_or_repo == "embedded" else find_model(path_or_repo))
        parts = model.tokenizer, model.transformer, model.class_names, model.metadata, model.decoding
        return cls(*parts, device=device, kernels=kernels, precision=precision)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write the model as a folder that `from_pretrained` reads.

        Args:
            folder: made if missing; a model that is there is replaced.
            dtype: store the weights as this, such as torch.float16 for half the size; None keeps what they have.

        Raises:
            ModelError: a weight that `dtype` can't hold, or metadata that isn't JSON.
            OSError: the folder can't be written.
        """
        model = Model(self.tokenizer, self.transformer, self.class_names, self.metadata, self.decoding)
        save_model(folder, model, dtype)

    def inpaint(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[np.ndarray],
        *,
        config: DecodeConfig | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        labels: Sequence[int | str | None] | None = None,
        batch_size: int = 16,
        paste: bool = True,
        save_steps: bool = False,
        progress: Progress | None = None,
        **overrides: Any,
    ) -> list[InpaintResult]:
        """Fill the holes of images.

        A token is predicted if its patch has any hidden pixel. Hidden pixels don't reach the encoder: a smooth
        continuation of the known ones takes their place. An image of another size than the model's is squeezed to it,
        its fill is stretched back, and known pixels keep their full resolution.

        Args:
            images: of any size (W, H) and mode. An EXIF orientation is applied first. The model sees RGB; known pixels
                keep their bits, depth and alpha, the fill is opaque, and grey in a grey picture.
            masks: bool [H, W] each, of the picture as it is shown, True = fill; one of its stored size, where that is
                another, is turned with it. Where nothing is, the image comes back unchanged; where everything is, it
                is generated.
            config: how to decode, `self.decoding` by default; `overrides` are its fields (steps=12,
                choice_temperature=3.0), applied to it.
            seed: image i gets the seed `image_seed(seed, i)`.
            seeds: one 64-bit integer for each image instead.
            labels: class of each image (number or name), None for no class; for models with classes. Guidance acts
                on images with a class only.
            batch_size: images that go through the transformer together.
            paste: put known pixels back as they were, and the fill in tune with them (see `canvas.holes.paste_known`);
                False returns the bare decoding.
            save_steps: keep the state after each step: costs decoding each of them to pixels, with the embedded
                model on a CPU about half as much time again.
            progress: called as the work goes on.

        Returns:
            One result for each image, in order.

        Raises:
            ValueError: arguments that don't fit each other, unknown labels, impossible decoding options, an image
                without pixels or in a mode that Pillow can't convert.

        Warns:
            UserWarning: something of an image isn't kept in its result, such as the other frames of an animation.
        """
        run = self._run(len(images), config, overrides, seed, seeds, labels, batch_size)
        arguments.require_as_many(len(images), masks, "masks")
        pictures = arguments.carried_pictures(images)
        grid = self.tokenizer.config.grid
        results = [
            InpaintResult(picture, to_rgb(picture), mask, cells_with_holes(mask, grid, grid))
            for picture, mask in zip(pictures, arguments.upright_masks(masks, images, pictures), strict=True)
        ]
        todo = [i for i, result in enumerate(results) if result.mask.any() or not paste]
        for i in set(range(len(results))) - set(todo):
            results[i].image = pictures[i].copy()  # as it may be what `original` is
        if progress and len(todo) < len(results):
            progress(len(results) - len(todo))
        for start in range(0, len(todo), batch_size):
            chosen = todo[start : start + batch_size]
            self._inpaint_batch([results[i] for i in chosen], run.of(chosen), paste, save_steps, progress)
        return results

    def _inpaint_batch(
        self, results: list[InpaintResult], run: Run, paste: bool, save_steps: bool, progress: Progress | None
    ) -> None:
        """Fill in `image` and `steps` of the results."""
        size = self.tokenizer.config.image_size
        seen = [visible(result.original, result.mask, size) for result in results]
        masked = torch.from_numpy(np.stack([result.masked.ravel() for result in results])).to(self.device)
        encoded = self._encode(torch.stack([to_tensor(image) for image in seen]).to(self.device))
        decoded: list[Image.Image] = []
        holes = [cells_with_holes(result.mask, size, size) for result in results]
        for tokens, still_masked in self._decode(encoded, masked, run.config, run.seeds, run.labels, run.batch_size):
            if save_steps:
                decoded = to_pictures(self._to_pixels(tokens))
                states = zip(decoded, seen, holes, still_masked.cpu().numpy(), tokens.cpu().numpy(), strict=True)
                for result, (picture, image, hole, left, codes) in zip(results, states, strict=True):
                    shown = paste_known(image, picture, hole) if paste else picture
                    shape = result.masked.shape
                    result.steps.append(Step(shown, left.reshape(shape), codes.reshape(shape)))
            if progress:
                progress(len(results) / run.config.steps_taken)
        # The last step's pictures are those of the final tokens.
        for result, picture in zip(results, decoded or to_pictures(self._to_pixels(tokens)), strict=True):
            result.image = finished(result, picture, paste)

    def generate(
        self,
        count: int,
        *,
        config: DecodeConfig | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        labels: Sequence[int | str | None] | None = None,
        batch_size: int = 16,
        progress: Progress | None = None,
        **overrides: Any,
    ) -> list[Image.Image]:
        """Make images from nothing. The arguments are those of `inpaint`.

        Returns:
            `count` RGB images of the model's size.

        Raises:
            ValueError: as `inpaint`; a negative count.
        """
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        run = self._run(count, config, overrides, seed, seeds, labels, batch_size)
        pictures: list[Image.Image] = []
        for start in range(0, count, batch_size):
            part = run.of(range(start, min(start + batch_size, count)))
            shape = len(part.seeds), self.tokenizer.config.num_tokens
            masked = torch.ones(shape, dtype=torch.bool, device=self.device)
            tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
            for state in self._decode(tokens, masked, part.config, part.seeds, part.labels, batch_size):
                tokens, _ = state
                if progress:
                    progress(len(part.seeds) / part.config.steps_taken)
            pictures += to_pictures(self._to_pixels(tokens))
        return pictures

    def outpaint(
        self,
        images: Sequence[Image.Image],
        margins: Sequence[Margins],
        *,
        config: DecodeConfig | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        labels: Sequence[int | str | None] | None = None,
        batch_size: int = 16,
        progress: Progress | None = None,
        **overrides: Any,
    ) -> list[Image.Image]:
        """Continue images beyond their borders, by `inpaint` of one window after another (see `canvas.outpainting`).

        Args:
            images: of any size (W, H) and mode, as for `inpaint`.
            margins: for each image, as it is shown, the pixels to add: left, top, right, bottom.

        The rest are those of `inpaint`.

        Returns:
            Images of the enlarged sizes, which carry what `InpaintResult.image` does.

        Raises:
            ValueError: as `inpaint`; a negative margin.

        Warns:
            UserWarning: as `inpaint`.
        """
        run = self._run(len(images), config, overrides, seed, seeds, labels, batch_size)
        arguments.require_as_many(len(images), margins, "margins")
        pictures = arguments.carried_pictures(images)
        canvases = [Canvas(to_rgb(picture), margin) for picture, margin in zip(pictures, margins, strict=True)]
        if progress:
            progress(sum(not canvas.windows for canvas in canvases))
        for turn in range(max((len(canvas.windows) for canvas in canvases), default=0)):
            chosen = [i for i, canvas in enumerate(canvases) if turn < len(canvas.windows)]
            windows = [canvases[i].windows[turn] for i in chosen]
            views = [canvases[i].view(window) for i, window in zip(chosen, windows, strict=True)]
            results = self.inpaint(
                [view for view, _ in views],
                [hole for _, hole in views],
                config=run.config,
                seeds=[image_seed(run.seeds[i], turn) for i in chosen],
                labels=None if labels is None else [labels[i] for i in chosen],
                batch_size=batch_size,
            )
            for i, window, result in zip(chosen, windows, results, strict=True):
                canvases[i].fill(window, result.image)
                if progress:
                    progress(1 / len(canvases[i].windows))
        return [
            fill_in(picture, canvas.image, corner=margin[:2])
            for picture, canvas, margin in zip(pictures, canvases, margins, strict=True)
        ]

    def class_number(self, label: int | str) -> int:
        """The number of a class, by its name or number; "7" is the class of that name, or else number 7.

        Raises ValueError: the model has no such class; the message says which it has.
        """
        return arguments.class_number(label, self.transformer.config.num_classes, self.class_names)

    def _run(
        self,
        count: int,
        config: DecodeConfig | None,
        overrides: dict[str, Any],
        seed: int,
        seeds: Sequence[int] | None,
        labels: Sequence[int | str | None] | None,
        batch_size: int,
    ) -> Run:
        """What `inpaint`, `generate` and `outpaint` are asked alike, for so many images, checked."""
        config = arguments.configure(config or self.decoding, overrides)
        all_seeds = arguments.image_seeds(count, seed, seeds)
        numbers = arguments.class_numbers(count, labels, self.transformer.config.num_classes, self.class_names)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        all_labels = None if numbers is None else torch.tensor(numbers, dtype=torch.int64, device=self.device)
        return Run(config, all_seeds, all_labels, batch_size)
