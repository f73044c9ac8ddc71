"""Token shards: every view of every image, tokenized once and kept in a memory-mapped file.

A shard is a folder:

    tokens.npy     uint16 [views, images, N]; view 0 is the plain image, 1 its mirror, further ones are random crops
    holes.npy      uint16 [holes, views, images, N], only where asked for: the tokens outside of a hole, HIDDEN inside
    tokens.json, holes.json   what each was made from; written last, so a file without one doesn't count
    labels.npy     int64 [images], the class of each image
    names.jsonl    a JSON string per image: where it comes from
    images.json    the class names
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskgit.canvas.holes import cells_with_holes, smooth_fill
from maskgit.data.arrays import read_json
from maskgit.data.hole_masks import HoleMasks
from maskgit.data.images import AugmentConfig, DataError, ImageDataset
from maskgit.data.masks import make_mask
from maskgit.data.parts import remove_parts, write_in_parts
from maskgit.data.pixels import to_signed
from maskgit.data.token_files import (
    HIDDEN,
    check_owner,
    check_same,
    check_tokens,
    describe_images,
    holds,
    look_through,
    open_stored,
)
from maskgit.tokenizer import VQGAN

PLAIN_VIEWS = 2  # as it is, and flipped

NO_HOLE = -1

HOLE_KINDS = ("boxes", "boxes", "center", "strokes", "half")
"""Kinds of `maskgit.data.masks.make_mask` that holes are drawn from, with equal chances."""


def fingerprint(tokenizer: VQGAN) -> str:
    """SHA-256 of what decides the tokens: a tokenizer's configuration and its weights, but for the decoder's."""
    digest = hashlib.sha256(repr(tokenizer.config).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        if name.startswith(("post_quant_conv.", "decoder.")):
            continue
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def content_key(images: ImageDataset) -> str:
    """SHA-256 of what a data set shows; reading it all is cheap beside tokenizing it."""
    digest = hashlib.sha256()
    for index in range(len(images)):
        digest.update(images.image(index).tobytes())
    return digest.hexdigest()


def view_of(images: ImageDataset, index: int, view: int, augment: AugmentConfig, seed: int) -> np.ndarray:
    """View 0 is the plain image, 1 its mirror, further ones random crops; uint8 [S, S, 3]."""
    if view >= PLAIN_VIEWS:
        return images.view(index, np.random.default_rng((seed, 2, view, index)), augment)
    plain = images.image(index)
    return plain if view == 0 else np.ascontiguousarray(plain[:, ::-1])


def hole_of(size: int, view: int, index: int, number: int, seed: int, masks: HoleMasks | None = None) -> np.ndarray:
    """Hole `number` of a view of an image, one of `masks` or of the kinds that users make; bool [S, S], True = hidden.

    A mask is taken as it is, in mirrored views too: a watermark has a side, and its letters a direction.
    """
    rng = np.random.default_rng((seed, 4, number, view, index))
    if masks is not None:
        return masks[int(rng.integers(len(masks)))]
    return make_mask(str(rng.choice(HOLE_KINDS)), size, size, int(rng.integers(2**63)))


class TokenSample(NamedTuple):
    """One image for masked visual token modeling."""

    tokens: Tensor
    """int64 [N]: what is to be predicted where it is masked."""
    visible: Tensor
    """int64 [N]: what is shown where it isn't. Outside of a hole these are the tokens of the image without what is in
    the hole, as in inpainting: an encoder sees beyond a token's patch, so near the hole they differ from `tokens`."""
    candidates: Tensor
    """bool [N]: the tokens that may be masked: those of the hole, or all."""
    label: Tensor
    """int64 []: class of the image."""


class TokenShard(Dataset[TokenSample]):
    """Tokens of a data set, memory-mapped from `folder`.

    Indexed by (index, position); the position decides the view, whether there is a hole, and which.

    Args:
        folder: holds tokens.npy, and holes.npy if holes are to be shown (see the module's docstring).
        labels: int64 [images].
        seed: of all choices.
        hole_share: probability in [0, 1] that a sample has a hole.
        codes: size of the codebook, at most HIDDEN.

    Raises DataError: a file is missing or damaged, or doesn't fit the others; at a sample, a token beyond the codebook.
    """

    def __init__(
        self, folder: Path, labels: np.ndarray, seed: int = 0, hole_share: float = 0.0, codes: int = int(HIDDEN)
    ) -> None:
        self.tokens = open_stored(folder / "tokens.npy", np.uint16, (None, len(labels), None))
        self.holes = open_stored(folder / "holes.npy", np.uint16, (None, *self.tokens.shape)) if hole_share else None
        self.folder, self.labels, self.seed, self.hole_share, self.codes = folder, labels, seed, hole_share, codes

    def __reduce__(self) -> tuple[Any, ...]:
        # A reading process that is spawned maps the files anew; a memory map would be pickled with all that it shows.
        return TokenShard, (self.folder, self.labels, self.seed, self.hole_share, self.codes)

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def __getitem__(self, key: tuple[int, int]) -> TokenSample:
        return TokenSample(*(part[0] for part in self.__getitems__([key])))

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> TokenSample:
        """A batch, [b, ...] each, which is what a DataLoader asks for: one by one takes several times as long."""
        choices = [self._choice(position) for _, position in keys]
        return self.samples(np.array([index for index, _ in keys]), *np.array(choices).T)

    def _choice(self, position: int) -> tuple[int, int]:
        """The view and the hole of a sample."""
        rng = np.random.default_rng((self.seed, 3, position))
        view = int(rng.integers(len(self.tokens)))
        if self.holes is None or rng.random() >= self.hole_share:
            return view, NO_HOLE
        return view, int(rng.integers(len(self.holes)))

    def samples(self, images: np.ndarray, views: np.ndarray | int, holes: np.ndarray | int) -> TokenSample:
        """Images by their numbers, int64 [b], each in one of its views, with a hole of this view or NO_HOLE."""
        images, views, holes = np.broadcast_arrays(images, views, holes)
        tokens = self._read("tokens.npy", self.tokens[views, images])
        visible, candidates = tokens, torch.ones_like(tokens, dtype=torch.bool)
        if len(rows := np.flatnonzero(holes != NO_HOLE)):
            assert self.holes is not None, "a shard without holes"
            outside = self._read("holes.npy", self.holes[holes[rows], views[rows], images[rows]])
            inside, visible = outside == int(HIDDEN), tokens.clone()
            visible[rows] = torch.where(inside, tokens[rows], outside)
            candidates[rows] = inside
        return TokenSample(tokens, visible, candidates, torch.from_numpy(self.labels[images]))

    def _read(self, name: str, rows: np.ndarray) -> Tensor:
        """int64 [b, N] from rows of the array with that name."""
        tokens = np.asarray(rows)  # NumPy is slow with what is still a memory map
        check_tokens(self.folder, name, tokens, self.codes)
        return torch.from_numpy(tokens.astype(np.int64))


def tokenize(
    tokenizer: VQGAN,
    images: ImageDataset,
    folder: Path,
    *,
    views: int,
    augment: AugmentConfig,
    seed: int,
    device: torch.device,
    hole_share: float = 0.0,
    holes: int = 1,
    masks: HoleMasks | None = None,
    batch_size: int = 64,
    processes: int = 0,
    key: str | None = None,
    replace: bool = True,
) -> TokenShard:
    """Tokenize `views` views of every image into `folder`, unless that has been done with just these inputs.

    A run that was killed is taken up where it was (see `maskgit.data.parts`).

    Args:
        hole_share: share of the samples that are to have a hole; above 0, each view is tokenized `holes` times more,
            with another random hole in it each time that is hidden from the encoder as inpainting hides it.
        masks: what holes are drawn from, with equal chances, at the tokenizer's size; by default HOLE_KINDS.
        processes: 0 works in this process, with all its threads. Otherwise so many processes of one thread each; the
            bytes that come out are then the same for any number of them.
        key: stands for what the images show; by default `content_key`, which reads all of them.
        replace: tokens of other inputs that are there; False: that is a DataError.

    Raises DataError: fewer than one view or hole, a codebook too large for uint16, no images, a process that died, a
    full disk, or files in the folder that are no shard's.
    """
    if views < 1 or holes < 1:
        raise DataError(f"views={views}, holes={holes}: there must be at least one")
    if (codes := tokenizer.config.codebook_size) > HIDDEN:
        raise DataError(f"a codebook of {codes} codes does not fit the shards' uint16: at most {HIDDEN}")
    wanted = {
        "tokenizer": fingerprint(tokenizer),
        "images": content_key(images) if key is None else key,
        "views": views,
        "augment": repr(augment),
        "seed": seed,
    }
    check_owner(folder)
    encoder = Encoder(tokenizer.eval(), images, augment, seed, batch_size, masks)
    shape: tuple[int, ...] = (views, len(images), tokenizer.config.num_tokens)
    arrays = [(folder / "tokens.npy", wanted, shape)]
    if hole_share:
        origin = {"kinds": list(HOLE_KINDS)} if masks is None else {"masks": masks.key()}
        arrays.append((folder / "holes.npy", wanted | {"holes": holes} | origin, (holes, *shape)))
    for file, description, size in arrays:
        if holds(file, description, size, codes):
            remove_parts(file, description)  # which a kill may have left
            continue
        if not replace:
            check_same(file, description)
        write_in_parts(file, description, size, encoder, processes, device)
        look_through(folder, file.name, open_stored(file, np.uint16, size), codes)  # parts may be old and damaged
    describe_images(folder, images)
    return TokenShard(folder, images.labels, seed, hole_share, codes)


def open_shard(
    folder: Path, tokenizer: VQGAN, seed: int = 0, hole_share: float = 0.0, masks: HoleMasks | None = None
) -> TokenShard:
    """A shard that `tokenize` has written, without its images.

    Raises DataError: a file is missing or damaged, another tokenizer made it, it has no holes but should show some, or
    others than of `masks`, or it holds tokens or labels that don't exist.
    """
    names = ("tokens", "holes") if hole_share else ("tokens",)
    made = [read_json(folder / f"{name}.json") for name in names]
    for name, inputs in zip(names, made, strict=True):
        if inputs.get("tokenizer") != fingerprint(tokenizer):
            raise DataError(
                f"{folder / name}.npy: made by another tokenizer (or at another image size), so its tokens mean "
                "something else; name the tokenizer that made it, or tokenize again (train.py tokens)"
            )
    if others := [name for name, value in made[0].items() if made[-1].get(name) != value]:
        raise DataError(
            f"{folder / 'holes.npy'}: made with other {', '.join(others)} than tokens.npy, so the two don't belong "
            "together; remove it and write it again with train.py tokens --holes"
        )
    if masks is not None and made[-1].get("masks") != masks.key():
        raise DataError(
            f"{folder / 'holes.npy'}: its holes come from {'other' if 'masks' in made[-1] else 'no'} masks; leave "
            "--hole-masks out, or write another token shard with train.py tokens --hole-masks"
        )
    tokens = open_stored(folder / "tokens.npy", np.uint16, (None, None, tokenizer.config.num_tokens))
    labels = np.array(open_stored(folder / "labels.npy", np.int64, (tokens.shape[1],)))
    classes, codes = len(class_names(folder)), tokenizer.config.codebook_size
    if labels.min() < 0 or labels.max() >= max(1, classes):
        raise DataError(
            f"{folder / 'labels.npy'}: holds the classes {labels.min()} to {labels.max()}, and images.json names "
            f"{classes}; write it again with train.py tokens"
        )
    look_through(folder, "tokens.npy", tokens, codes)
    shard = TokenShard(folder, labels, seed, hole_share, codes)
    if shard.holes is not None:
        look_through(folder, "holes.npy", shard.holes, codes)
    return shard


def class_names(folder: Path) -> list[str]:
    """Names of the classes of a shard; empty where its images have none. Raises DataError as `open_shard`."""
    names = read_json(folder / "images.json").get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{folder / 'images.json'}: class_names is {str(names)[:60]}, not a list of strings; remove it and write "
            "it again with train.py tokens"
        )
    return names


@dataclass
class Encoder:
    """Turns views of images into tokens; can be sent to another process."""

    tokenizer: VQGAN
    images: ImageDataset
    augment: AugmentConfig
    seed: int
    batch_size: int
    masks: HoleMasks | None = None

    def to(self, device: torch.device) -> None:
        """Work there from now on."""
        self.tokenizer.to(device).to(memory_format=torch.channels_last)

    def __call__(self, leading: tuple[int, ...], chosen: range) -> np.ndarray:
        """The tokens of the chosen images, uint16 [n, N].

        Args:
            leading: (view,) for all tokens of that view; (number, view) for those outside hole `number` of it, HIDDEN
                inside.
        """
        *numbers, view = leading
        starts = range(chosen.start, chosen.stop, self.batch_size)
        batches = (range(start, min(start + self.batch_size, chosen.stop)) for start in starts)
        return np.concatenate([self._encode(batch, view, *numbers) for batch in batches])

    @torch.no_grad()
    def _encode(self, chosen: range, view: int, number: int | None = None) -> np.ndarray:
        views = np.stack([view_of(self.images, index, view, self.augment, self.seed) for index in chosen])
        pixels = to_signed(torch.from_numpy(views).permute(0, 3, 1, 2))  # [n, 3, S, S]
        size, grid = pixels.shape[-1], self.tokenizer.config.grid
        inside = np.zeros(grid**2, dtype=bool)
        if number is not None:
            holes = [hole_of(size, view, index, number, self.seed, self.masks) for index in chosen]
            hidden = zip(pixels, holes, strict=True)
            pixels = torch.stack([smooth_fill(image, torch.from_numpy(~hole)[None]) for image, hole in hidden])
            inside = np.stack([cells_with_holes(hole, grid, grid).ravel() for hole in holes])
        device = next(self.tokenizer.parameters()).device
        tokens = self.tokenizer.encode(pixels.to(device)).cpu().numpy().astype(np.uint16)
        return np.where(inside, HIDDEN, tokens)
