"""MaskGIT, the pipeline: pictures in, pictures out.

model = MaskGIT.from_pretrained()
results = model.inpaint([image], [mask])  # mask: bool [H, W], True = fill
results[0].image.save("filled.png")
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maskgit.canvas.holes import cells_with_holes, paste_known, smooth_fill
from maskgit.canvas.outpainting import Canvas, Margins
from maskgit.config import ConfigError, check_fit
from maskgit.data.carried import carry, fill_in, turn_mask
from maskgit.data.reading import to_rgb
from maskgit.decoding import DecodeConfig, decode_plan, decode_steps, graphs
from maskgit.decoding.graphs import Batch, GraphCache, Loop
from maskgit.network.folder import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    Model,
    ModelError,
    load_model,
    save_model,
)
from maskgit.network.half import half_copy
from maskgit.network.halton import HaltonTransformer
from maskgit.network.last_block import MaskedRowsNetwork, masked_counts
from maskgit.network.packed import Network, can_pack, pack
from maskgit.network.reuse import Context, ReusingNetwork, changed_counts
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit_kernels import backend

Precision = Literal["auto", "float32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Progress = Callable[[float], None]
"""Called as the work goes on with what was done since the last call, in images; adds up to their number."""


_MASKED_STRIDE = 32  # numbers of masked tokens that a CUDA graph with reuse is made for

_NO_CLASSES = "labels were given, but the model was trained without classes"


class Step(NamedTuple):
    """The state after one decoding step."""

    image: Image.Image
    """What decoding all tokens sampled so far gives, those to be drawn again included; at the model's size."""
    masked: np.ndarray
    """bool [h, w]: the tokens still to be predicted."""
    tokens: np.ndarray
    """int64 [h, w]: those of the image, and what was sampled last for the others, kept or not."""


@dataclasses.dataclass
class InpaintResult:
    """One inpainted image."""

    image: Image.Image
    """At the size of the original, its known pixels as they came in: L, LA, RGB, RGBA or I;16, with the ICC profile and
    the EXIF data in `info` (see `maskgit.data.carried`)."""
    original: Image.Image
    """The image as it came in, turned upright; RGB, what is transparent white."""
    mask: np.ndarray
    """bool [H, W]: the hole, turned as the original is."""
    masked: np.ndarray
    """bool [h, w]: the tokens that were predicted, those with any hidden pixel in their patch."""
    steps: list[Step] = dataclasses.field(default_factory=list)
    """One for each decoding step, if they were asked for (none where nothing had to be done)."""


def image_seed(seed: int, key: int | str) -> int:
    """The 64-bit seed of one image, from the seed of all and the image's number or name: stable for all time."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class MaskGIT:
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
            the hardware computes in it (on a CPU with AVX512-BF16 2.6 times as fast for the transformer, 1.7 times for
            a tokenizer), else float32: fp16 is for older GPUs and has to be asked for, because large activations of a
            model may be more than it can hold. Embeddings, sums, normalization and softmax are in float32 whatever it
            is, and codes are compared in it. Weights stay what they are; the networks run on copies that are cast once.

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
        try:
            check_fit(tokenizer.config, transformer.config)
        except ConfigError as error:
            raise ModelError(f"tokenizer and transformer don't fit each other: {error}") from error
        if kernels is not None:
            backend.use(kernels)
        self.device = resolve_device(device)
        backend.resolve(None, self.device)  # so that an impossible MASKGIT_KERNELS is an error now and not later
        self.precision = _resolve_precision(precision, self.device)
        """float32, bf16 or fp16."""
        # channels_last: 1.7 times as fast to encode on a CPU.
        self.tokenizer = tokenizer.to(self.device).to(memory_format=torch.channels_last).eval()
        self.transformer = transformer.to(self.device).eval()
        self.class_names = list(class_names)
        self.metadata = dict(metadata or {})
        self.decoding = decoding or DecodeConfig()
        self.graphs = GraphCache() if graphs.wanted() and self.device.type == "cuda" else None
        self._copies: dict[type[nn.Module], tuple[object, nn.Module]] = {}

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
            model = load_model(embedded if path_or_repo == "embedded" else _find_model(path_or_repo))
        return cls(
            model.tokenizer,
            model.transformer,
            model.class_names,
            model.metadata,
            model.decoding,
            device=device,
            kernels=kernels,
            precision=precision,
        )

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

    # --- what users call ----------------------------------------------------------------------------------------------

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
        config = _configure(config or self.decoding, overrides)
        all_seeds = _seeds(len(images), seed, seeds)
        all_labels = self._labels(len(images), labels)
        _check_batch_size(batch_size)
        if len(masks) != len(images):
            raise ValueError(f"{len(images)} images, but {len(masks)} masks")
        pictures = _carry_all(images)
        masks = [turn_mask(mask, image, picture) for mask, image, picture in zip(masks, images, pictures, strict=True)]
        for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != picture.size[::-1]:
                got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
                raise ValueError(f"mask {i} must be a bool array {list(picture.size[::-1])} as its image, got {got}")

        grid = self.tokenizer.config.grid
        results = [
            InpaintResult(picture, to_rgb(picture), mask, cells_with_holes(mask, grid, grid))
            for picture, mask in zip(pictures, masks, strict=True)
        ]
        todo = [i for i, mask in enumerate(masks) if mask.any() or not paste]
        for i in set(range(len(images))) - set(todo):
            results[i].image = pictures[i].copy()  # as it may be what `original` is
        if progress and len(todo) < len(images):
            progress(len(images) - len(todo))
        for start in range(0, len(todo), batch_size):
            chosen = todo[start : start + batch_size]
            self._inpaint_batch(
                [results[i] for i in chosen],
                config,
                [all_seeds[i] for i in chosen],
                None if all_labels is None else all_labels[chosen],
                batch_size,
                paste,
                save_steps,
                progress,
            )
        return results

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
        config = _configure(config or self.decoding, overrides)
        all_seeds = _seeds(count, seed, seeds)
        all_labels = self._labels(count, labels)
        _check_batch_size(batch_size)
        pictures: list[Image.Image] = []
        for start in range(0, count, batch_size):
            chosen = all_seeds[start : start + batch_size]
            masked = torch.ones(len(chosen), self.tokenizer.config.num_tokens, dtype=torch.bool, device=self.device)
            some_labels = None if all_labels is None else all_labels[start : start + batch_size]
            tokens = torch.zeros_like(masked, dtype=torch.int64)
            for state in self._decode(tokens, masked, config, chosen, some_labels, batch_size):
                tokens, _ = state
                if progress:
                    progress(len(chosen) / _steps(config))
            pictures += self._to_pictures(tokens)
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
        config = _configure(config or self.decoding, overrides)
        all_seeds = _seeds(len(images), seed, seeds)
        self._labels(len(images), labels)  # so that what is wrong with them is said before any work is done
        if len(margins) != len(images):
            raise ValueError(f"{len(images)} images, but {len(margins)} margins")
        pictures = _carry_all(images)
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
                config=config,
                seeds=[image_seed(all_seeds[i], turn) for i in chosen],
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

        Raises:
            ValueError: the model has no such class; the message says which it has.
        """
        num_classes = self.transformer.config.num_classes
        if not num_classes:
            raise ValueError(_NO_CLASSES)
        names = f"one of {', '.join(self.class_names)}" if self.class_names else f"a number from 0 to {num_classes - 1}"
        if isinstance(label, str):
            if label in self.class_names:
                return self.class_names.index(label)
            if not (label.isdecimal() and len(label) < 10):
                near = difflib.get_close_matches(label, self.class_names, n=5)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise ValueError(f"unknown class {label!r}: choose {names}{hint}")
            label = int(label)
        if not 0 <= label < num_classes:
            raise ValueError(f"label {label} must be in [0, {num_classes}): choose {names}")
        return label

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _inpaint_batch(
        self,
        results: list[InpaintResult],
        config: DecodeConfig,
        seeds: list[int],
        labels: Tensor | None,
        batch_size: int,
        paste: bool,
        save_steps: bool,
        progress: Progress | None,
    ) -> None:
        """Fill in `image` and `steps` of the results."""
        visible = [self._visible(result) for result in results]
        masked = torch.from_numpy(np.stack([result.masked.ravel() for result in results])).to(self.device)
        encoded = self._encode(torch.stack([_to_tensor(image) for image in visible]).to(self.device))
        pictures: list[Image.Image] = []
        size = self.tokenizer.config.image_size
        holes = [cells_with_holes(result.mask, size, size) for result in results]
        for tokens, still_masked in self._decode(encoded, masked, config, seeds, labels, batch_size):
            if save_steps:
                pictures = self._to_pictures(tokens)
                states = zip(pictures, visible, holes, still_masked.cpu().numpy(), tokens.cpu().numpy(), strict=True)
                for result, (picture, image, hole, left, codes) in zip(results, states, strict=True):
                    if paste:
                        picture = paste_known(image, picture, hole)
                    shape = result.masked.shape
                    result.steps.append(Step(picture, left.reshape(shape), codes.reshape(shape)))
            if progress:
                progress(len(results) / _steps(config))
        # The last step's pictures are those of the final tokens.
        for result, picture in zip(results, pictures or self._to_pictures(tokens), strict=True):
            fill = picture.resize(result.original.size, Image.Resampling.BICUBIC)
            if paste:
                fill = paste_known(result.original, fill, result.mask)
            result.image = fill_in(result.image, fill, result.mask if paste else np.ones_like(result.mask))

    def _visible(self, result: InpaintResult) -> Image.Image:
        """What the model may see of an image: its hole filled smoothly, at the model's size."""
        known = torch.from_numpy(~result.mask)[None]
        size = self.tokenizer.config.image_size
        channels = []
        for band in result.original.getbands():  # one at a time, so that large pictures need less memory
            (filled,) = _pictures(smooth_fill(_to_tensor(result.original.getchannel(band)), known)[None])
            channels.append(filled.resize((size, size), Image.Resampling.BICUBIC))
        return Image.merge("RGB", channels)

    @torch.inference_mode()
    def _decode(
        self,
        tokens: Tensor,
        masked: Tensor,
        config: DecodeConfig,
        seeds: list[int],
        labels: Tensor | None,
        batch_size: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [B, N] and what is still masked, bool [B, N], after each step; `batch_size` is the run's usual B."""
        if labels is None:
            config = dataclasses.replace(config, guidance_scale=0.0)  # guided by no class, the logits stay the same
        # Pinned: any other copy to a GPU would wait until the images are encoded.
        numbers = torch.tensor(seeds, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        batch = Batch(tokens, masked, numbers.to(self.device, non_blocking=True), labels)
        yield from self._states(batch, config, batch_size)

    def _states(self, batch: Batch, config: DecodeConfig, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        if self.graphs is None:
            return self._loop(config, int(batch.masked.sum(1).max()))(batch)
        most_masked = None
        if config.reuse:  # rounded up, so that few graphs do for all masks
            most = -(-int(batch.masked.sum(1).max()) // _MASKED_STRIDE) * _MASKED_STRIDE
            most_masked = min(batch.masked.shape[1], most)
        self._fastest(self.transformer)  # which drops the graphs of earlier weights
        key = (config, batch.labels is None, backend.resolve(None, self.device), most_masked)
        try:
            states = self.graphs.run(lambda: self._loop(config, most_masked), key, batch, batch_size)
            return zip(*states, strict=True)
        except RuntimeError as error:
            reason = str(error).strip() or type(error).__name__
        # Only here is the memory of the failed capture free. If the loop itself is at fault, it fails again, as itself.
        steps = list(self._loop(config, most_masked)(batch))
        self.graphs = None
        warnings.warn(
            f"the decoding loop runs without a CUDA graph from now on, and more slowly, because capturing it failed: "
            f"{reason.splitlines()[0]} (MASKGIT_GRAPHS=0 in the environment doesn't try)",
            RuntimeWarning,
            stacklevel=2,
        )
        return steps

    def _loop(self, config: DecodeConfig, most_masked: int | None = None) -> Loop:
        """The decoding loop for images of which at most so many tokens are masked; None: any number."""
        num_tokens, mask_token_id = self.tokenizer.config.num_tokens, self.transformer.config.mask_token_id
        plan = decode_plan(config, num_tokens, self.device)
        most_masked = num_tokens if most_masked is None else most_masked
        counts = (changed_counts if config.reuse else masked_counts)(config, num_tokens, most_masked)
        network = self._fastest(self.transformer)
        # Where it is packed, the rounding of its products doesn't depend on the number of rows.
        some_rows = self._packs() and isinstance(network, Transformer)
        # Triton's kernels draw tokens from what the head multiplies. PyTorch would gain nothing, and on a CPU the
        # rounding of its products depends on how many rows there are.
        head = None
        if backend.resolve(None, self.device) == "triton":
            weight, bias = self.transformer.output_weights()
            if not self._packs():
                weight, _ = network.output_weights()  # may be cast already
            head = weight.detach().to(self.dtype), bias.detach()

        def evaluate(tokens: Tensor, labels: Tensor | None, context: Context | None = None, **rows: Tensor) -> Tensor:
            with self._autocast():
                if head is not None:
                    return network.hidden(tokens, labels, context, **rows).to(self.dtype)
                return network(tokens, labels, context, **rows)

        def loop(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
            predict: Callable[[Tensor, Tensor | None], Tensor] = evaluate
            if config.reuse:
                predict = ReusingNetwork(evaluate, config.reuse, counts, mask_token_id)
            elif some_rows:
                predict = MaskedRowsNetwork(evaluate, counts, mask_token_id)

            def guided(tokens: Tensor) -> tuple[Tensor, Tensor]:
                assert batch.labels is not None
                no_class = torch.full_like(batch.labels, self.transformer.config.num_classes)
                both = predict(tokens.repeat(2, 1), torch.cat([batch.labels, no_class]))
                return both[: len(tokens)], both[len(tokens) :]

            states = decode_steps(
                lambda tokens: predict(tokens, batch.labels),
                batch.tokens,
                batch.masked,
                config,
                batch.seeds,
                mask_token_id=mask_token_id,
                tokens_to_guided=guided,
                head=head,
                plan=plan,
            )
            return (state[1:] for state in states)

        return loop

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products and convolutions."""
        return DTYPES[self.precision]

    @property
    def autocast(self) -> bool:
        """Whether that is another than the weights'."""
        return self.dtype != torch.float32

    def _autocast(self) -> torch.autocast:
        # No cache: there are no weights to cast, and a graph must not leave any behind in its own memory.
        return torch.autocast(self.device.type, self.dtype, enabled=self.autocast, cache_enabled=False)

    def _packs(self) -> bool:
        return self.device.type == "cpu" and can_pack()

    def _fastest(self, network: Network) -> Network:
        """Tokenizer or transformer as it runs: a copy, made anew when weights have changed, if that is faster."""
        state = [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in network.parameters()], self.precision
        before, copied = self._copies.get(type(network), (None, network))
        if before != state:
            copied = network
            if self._packs():
                copied = pack(network, self.dtype)
            elif self.autocast:
                copied = half_copy(network, self.dtype)
                if self.device.type == "cuda":  # other threads may use it on streams of their own
                    torch.cuda.current_stream(self.device).synchronize()
            self._copies[type(network)] = state, copied
            if network is self.transformer and self.graphs is not None:
                self.graphs.clear()  # they know weights by their places, and keep old copies alive
        return cast(Network, copied)

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> Tensor:
        encode = self._fastest(self.tokenizer).encode
        with self._autocast():
            return torch.cat([encode(part) for part in self._parts(images)])

    @torch.inference_mode()
    def _to_pictures(self, tokens: Tensor) -> list[Image.Image]:
        """Decode tokens [B, N] to RGB images of the model's size."""
        decode = self._fastest(self.tokenizer).decode
        with self._autocast():
            images = torch.cat([decode(part) for part in self._parts(tokens)])
        return _pictures(images)

    def _parts(self, batch: Tensor) -> Sequence[Tensor]:
        # CPU convolutions round differently in batches of different size (the transformer does not), and a code on
        # the border between two would flip. One image at a time is as fast there, within a third.
        return batch.split(1 if self.device.type == "cpu" else len(batch))

    def _labels(self, count: int, labels: Sequence[int | str | None] | None) -> Tensor | None:
        """int64 [count], C for no class; None for a model without classes."""
        num_classes = self.transformer.config.num_classes
        if labels is None:
            return None
        if not num_classes:
            raise ValueError(_NO_CLASSES)
        if len(labels) != count:
            raise ValueError(f"{count} images, but {len(labels)} labels")
        numbers = [num_classes if label is None else self.class_number(label) for label in labels]
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


# --- arguments --------------------------------------------------------------------------------------------------------


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device by its name; None: a GPU if there is one.

    Raises:
        ValueError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros((), device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # of parts that others bring
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(f"device {str(device)!r} can't be used here: {reason}") from error
    return found


def _resolve_precision(precision: str, device: torch.device) -> str:
    """float32, bf16 or fp16. Raises a ValueError for what isn't one, or not on this device."""
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU: choose 'bf16' or 'float32'")
    if precision != "auto":
        return precision
    computes_bf16 = False
    if device.type == "cuda":
        computes_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        computes_bf16 = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return "bf16" if computes_bf16 else "float32"


def _find_model(path_or_repo: str | os.PathLike[str]) -> Path:
    """The folder of a model that isn't the embedded one; downloads it if need be."""
    path = Path(os.path.expanduser(path_or_repo))
    if os.path.exists(path):  # unlike Path's methods, these take any text for a name
        return path
    name = os.fspath(path_or_repo)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise ModelError(f"{name}: no such model folder (nor 'embedded', nor the id of a repository on the Hub)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"{name}: no such model folder; to look for it on the Hugging Face Hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, TOKENIZER_FILE, TRANSFORMER_FILE]))
    except Exception as error:  # the client raises its own errors, and those of several libraries under it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: no such model folder, nor to be had from the Hugging Face Hub: {reason}") from error


def _configure(config: DecodeConfig, overrides: dict[str, Any]) -> DecodeConfig:
    try:
        return dataclasses.replace(config, **overrides)
    except TypeError as error:
        names = ", ".join(field.name for field in dataclasses.fields(DecodeConfig))
        raise ValueError(f"unknown decoding option ({error}); there are {names}") from error


def _steps(config: DecodeConfig) -> int:
    return config.stop_after or config.steps


def _seeds(count: int, seed: int, seeds: Sequence[int] | None) -> list[int]:
    if seeds is None:
        return [image_seed(seed, i) for i in range(count)]
    if len(seeds) != count:
        raise ValueError(f"{count} images, but {len(seeds)} seeds")
    for one in seeds:
        if not -(2**63) <= one < 2**63:
            raise ValueError(f"seed {one} isn't a signed 64-bit integer")
    return [int(one) for one in seeds]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


# --- pixels -----------------------------------------------------------------------------------------------------------


def _carry_all(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images as their results will be; what these won't have of them is a warning of whoever calls the pipeline."""
    pictures = []
    for i, image in enumerate(images):
        if not (image.width and image.height):
            raise ValueError(f"image {i} has no pixels: it is {image.width}x{image.height}")
        picture, lost = carry(image)
        pictures.append(picture)
        file = getattr(image, "filename", "")
        for what in lost:
            warnings.warn(f"image {i}{f' ({file})' * bool(file)}: the result won't have {what}", stacklevel=3)
    return pictures


def _to_tensor(image: Image.Image) -> Tensor:
    """RGB or L -> float32 [3 or 1, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)
    return pixels.float().div_(127.5).sub_(1)


def _pictures(images: Tensor) -> list[Image.Image]:
    """float [B, 3 or 1, H, W], about [-1, 1] -> RGB or L. Bytes leave the device: a quarter of what floats would be."""
    pixels = images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    return [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).contiguous().squeeze(-1).cpu().numpy()]
