"""MaskGIT: what users call, and how a run goes.

model = MaskGIT.from_pretrained()
result = model.inpaint("photo.jpg", "hole.png")  # white is filled
result.image.save("filled.png")
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, overload

import torch
from PIL import Image

from maskgit.canvas.filling import Canvas
from maskgit.canvas.holes import grown
from maskgit.canvas.outpainting import enlarged
from maskgit.canvas.windows import windows
from maskgit.data.carried import fill_in
from maskgit.data.reading import to_rgb
from maskgit.decoding import DecodeConfig
from maskgit.files import EMBEDDED
from maskgit.network.folder import Model, find_model, load_model, save_model
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer
from maskgit.pipeline import arguments
from maskgit.pipeline.arguments import Labels, Precision, Run, resolve_device
from maskgit.pipeline.filling import Crop, Filling, OnStep, Progress
from maskgit.pipeline.inputs import Mask, Picture, as_list, is_one, read_holes, read_pictures
from maskgit.pipeline.pixels import InpaintResult, to_pictures
from maskgit.tokenizer import VQGAN
from maskgit_kernels import backend


class MaskGIT(Filling):
    """A tokenizer and a transformer, ready to use.

    The same image with the same seed gives the same picture whatever the batch size and its place in the batch: exactly
    on a CPU, with one number of threads; but for rounding on a GPU, where cuBLAS and cuDNN choose their kernels by the
    batch size, and in bf16 on a CPU with AMX, where oneDNN does (precision="float32" is exact there, too). That can
    flip a close draw, and what is drawn after it. So can another number of threads.

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
        self._asked_precision = precision
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
        model = load_model(EMBEDDED if path_or_repo == "embedded" else find_model(path_or_repo))
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

    def to(self, device: str | torch.device) -> MaskGIT:
        """Move both networks to a device, such as "cuda"; returns the model itself.

        "auto" as precision is chosen anew for it. Raises ValueError: no such device here, or none for the precision.
        """
        found = resolve_device(device)
        self._place(found, arguments.resolve_precision(self._asked_precision, found))
        return self

    def __repr__(self) -> str:
        size, count = self.tokenizer.config.image_size, self.transformer.config.num_classes
        weights = sum(weight.numel() for net in (self.tokenizer, self.transformer) for weight in net.parameters())
        return (
            f"MaskGIT({size}x{size} pixels, {self.tokenizer.config.num_tokens} tokens of "
            f"{self.tokenizer.config.codebook_size} codes, {count or 'no'} classes, {weights / 1e6:.1f} M parameters, "
            f"{self.precision} on {self.device})"
        )

    @property
    def crop(self) -> Crop:
        """Where this model looks by default: "auto", or what its metadata say as "crop". "off" is for models that know
        whole pictures only, as the embedded one knows whole avatars: parts of pictures are nothing to them."""
        return self.metadata.get("crop", "auto")

    @overload
    def inpaint(self, images: Picture, masks: Mask, **options: Any) -> InpaintResult: ...

    @overload
    def inpaint(self, images: Sequence[Picture], masks: Sequence[Mask], **options: Any) -> list[InpaintResult]: ...

    def inpaint(
        self,
        images: Any,
        masks: Any,
        *,
        config: DecodeConfig | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        labels: Labels = None,
        batch_size: int = 16,
        crop: Crop | None = None,
        grow: int | None = None,
        feather: int = 0,
        variants: int = 1,
        paste: bool = True,
        save_steps: bool = False,
        on_step: OnStep | None = None,
        progress: Progress | None = None,
        **overrides: Any,
    ) -> Any:
        """Fill the holes of images.

        The model looks at windows around the holes (see `canvas.windows`), each brought to its own square. In them a
        token is predicted if its patch has any hidden pixel. Hidden pixels don't reach the encoder: a smooth
        continuation of the known ones takes their place. Known pixels keep their full resolution.

        Args:
            images: one or a list, of any size (W, H) and mode: PIL images, NumPy arrays [H, W, 1, 3 or 4], PyTorch
                tensors [1, 3 or 4, H, W], paths (see `pipeline.inputs`). An EXIF orientation is applied first. The
                model sees RGB; known pixels keep their bits, depth and alpha, the fill is opaque, and grey in a grey
                picture.
            masks: one for each image, True or white = fill: arrays or tensors [H, W] of bool, uint8 or float, PIL
                images, paths; of the picture as it is shown, or of its stored size, where that is another, and then
                turned with it. Where nothing is, the image comes back unchanged; where everything is, it is generated.
            config: how to decode, `self.decoding` by default; `overrides` are its fields (steps=12,
                choice_temperature=3.0), applied to it.
            seed: image i gets the seed `image_seed(seed, i)`.
            seeds: one 64-bit integer for each image instead.
            labels: class of each image (number or name), None for no class; or one for all. For models with classes.
                Guidance acts on images with a class only.
            batch_size: windows that go through the transformer together.
            crop: "auto", windows around the holes; a number, windows of at least so many pixels; "off", all of each
                picture at once, squeezed to the model's square; None, what suits the model (see `crop`).
            grow: pixels by which holes are made larger on all sides first, by default as many as `feather`.
            feather: pixels at the edge of a grown hole over which the fill goes over into the picture.
            variants: fill each hole so many times, from as many seeds.
            paste: put known pixels back as they were, and the fill in tune with them (see `canvas.holes.paste_known`);
                False returns the bare decoding.
            save_steps: keep the state after each step, of each image's first window and variant: costs decoding each
                of them to pixels, with the embedded model on a CPU about half as much time again.
            on_step: called with these states as they come.
            progress: called as the work goes on.

        Returns:
            One result for one image; for a list one for each, in order.

        Raises:
            ValueError: arguments that don't fit each other, unknown labels, impossible decoding options, what is no
                picture or mask, or can't be read.

        Warns:
            UserWarning: something of an image isn't kept in its result, such as the other frames of an animation.
        """
        given, one = as_list(images, "images"), is_one(images)
        run = self._run(len(given), config, overrides, seed, seeds, labels, batch_size)
        crop = self.crop if crop is None else crop
        grow = arguments.check_edges(crop, feather if grow is None else grow, feather, variants)
        pictures, masks = read_pictures(given), as_list(masks, "masks")
        holes = [grown(hole, grow) for hole in read_holes(masks, pictures)]
        results = [
            self._result(picture.upright, hole, crop, paste) for picture, hole in zip(pictures, holes, strict=True)
        ]
        self._fill_all(results, run, variants, feather, paste, save_steps, on_step, progress)
        return results[0] if one else results

    def generate(
        self,
        count: int,
        *,
        config: DecodeConfig | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        labels: Labels = None,
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
        images: Any,
        margins: Any,
        *,
        config: DecodeConfig | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        labels: Labels = None,
        batch_size: int = 16,
        crop: Crop | None = None,
        on_step: OnStep | None = None,
        progress: Progress | None = None,
        **overrides: Any,
    ) -> Any:
        """Continue images beyond their borders, in windows as `inpaint`.

        Args:
            images: one or a list, as for `inpaint`.
            margins: for each image, as it is shown, the pixels to add: left, top, right, bottom.
            crop: as for `inpaint`, but "off" is for windows as large as the shorter side of the image.

        The rest are those of `inpaint`.

        Returns:
            An image of the enlarged size, which carries what `InpaintResult.image` does; a list for a list.

        Raises:
            ValueError: as `inpaint`; a negative margin.

        Warns:
            UserWarning: as `inpaint`.
        """
        one = is_one(images)
        given, margins = as_list(images, "images"), [margins] if one else margins
        run = self._run(len(given), config, overrides, seed, seeds, labels, batch_size)
        crop = self.crop if crop is None else crop
        arguments.check_edges(crop)
        arguments.require_as_many(len(given), margins, "margins")
        pictures = [picture.upright for picture in read_pictures(given)]
        canvases = []
        for picture, margin in zip(pictures, margins, strict=True):
            image, hole = enlarged(to_rgb(picture), margin)
            # What knows whole pictures only looks at as much of this one as it can.
            looks = windows(hole, min(picture.size)) if crop == "off" else self._windows(hole, crop)
            canvases.append(Canvas(image, hole, looks if hole.any() else []))
        todo = [i for i, canvas in enumerate(canvases) if canvas.turns]
        if progress and len(todo) < len(canvases):
            progress(len(canvases) - len(todo))
        for start in range(0, len(todo), batch_size):
            chosen = todo[start : start + batch_size]
            watchers = {at: functools.partial(on_step, i) for at, i in enumerate(chosen)} if on_step else {}
            self._fill([canvases[i] for i in chosen], run.of(chosen), True, watchers, progress)
        results = [
            fill_in(picture, canvas.image, corner=margin[:2])
            for picture, canvas, margin in zip(pictures, canvases, margins, strict=True)
        ]
        return results[0] if one else results

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
        labels: Labels,
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
