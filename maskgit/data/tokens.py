"""Token shards: every view of every image, tokenized once and kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskgit.data.images import AugmentConfig, DataError, ImageDataset
from maskgit.data.masks import make_mask
from maskgit.files import write_atomically
from maskgit.holes import cells_with_holes, smooth_fill
from maskgit.tokenizer import VQGAN

PLAIN_VIEWS = 2  # as it is, and flipped

HIDDEN = np.uint16(2**16 - 1)
"""Stands for the tokens inside a hole."""

HOLE_KINDS = ("boxes", "boxes", "center", "strokes", "half")
"""Kinds of `maskgit.data.masks.make_mask` that holes are drawn from, with equal chances."""


def fingerprint(tokenizer: VQGAN) -> str:
    """SHA-256 of a tokenizer's configuration and weights: shards of another tokenizer are of no use."""
    digest = hashlib.sha256(repr(tokenizer.config).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
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


def hole_of(size: int, view: int, index: int, number: int, seed: int) -> np.ndarray:
    """Hole `number` of a view of an image, of the kinds that users make; bool [S, S], True = hidden."""
    rng = np.random.default_rng((seed, 4, number, view, index))
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
        folder: holds tokens.npy, uint16 [views, images, N], and holes.npy, uint16 [holes, views, images, N], if holes
            are to be shown. The latter has the tokens outside each hole, and HIDDEN inside.
        labels: int64 [images].
        seed: of all choices.
        hole_share: probability in [0, 1] that a sample has a hole.
    """

    def __init__(self, folder: Path, labels: np.ndarray, seed: int = 0, hole_share: float = 0.0) -> None:
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.holes = np.load(folder / "holes.npy", mmap_mode="r") if hole_share else None
        self.labels, self.seed, self.hole_share = labels, seed, hole_share

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def __getitem__(self, key: tuple[int, int]) -> TokenSample:
        index, position = key
        rng = np.random.default_rng((self.seed, 3, position))
        view = int(rng.integers(len(self.tokens)))
        tokens = torch.from_numpy(self.tokens[view, index].astype(np.int64))
        label = torch.tensor(self.labels[index])
        if self.holes is None or rng.random() >= self.hole_share:
            return TokenSample(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), label)
        return self.with_hole(index, view, int(rng.integers(len(self.holes))))

    def with_hole(self, index: int, view: int, number: int) -> TokenSample:
        """Image `index` with hole `number` of one of its views."""
        tokens = torch.from_numpy(self.tokens[view, index].astype(np.int64))
        assert self.holes is not None, "a shard without holes"
        outside = self.holes[number, view, index]
        inside = torch.from_numpy(outside == HIDDEN)
        visible = torch.where(inside, tokens, torch.from_numpy(outside.astype(np.int64)))
        return TokenSample(tokens, visible, inside, torch.tensor(self.labels[index]))


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
    batch_size: int = 64,
) -> TokenShard:
    """Tokenize `views` views of every image into `folder`, unless that has been done with just these inputs.

    Args:
        hole_share: share of the samples that are to have a hole; above 0, each view is tokenized `holes` times more,
            with another random hole in it each time that is hidden from the encoder as inpainting hides it.

    Raises:
        DataError: fewer than one view or hole, or a codebook too large for uint16.
    """
    if views < 1 or holes < 1:
        raise DataError(f"views={views}, holes={holes}: there must be at least one")
    if (codes := tokenizer.config.codebook_size) > HIDDEN:
        raise DataError(f"a codebook of {codes} codes does not fit the shards' uint16: at most {HIDDEN}")
    wanted = {
        "tokenizer": fingerprint(tokenizer),
        "images": content_key(images),
        "views": views,
        "augment": repr(augment),
        "seed": seed,
    }
    writer = _Writer(tokenizer.to(device, memory_format=torch.channels_last).eval(), images, augment, seed, batch_size)  # type: ignore[call-overload]
    if not _holds(folder / "tokens.npy", wanted):
        writer.write(folder / "tokens.npy", wanted, (views, len(images)), writer.plain)
    if hole_share:
        wanted |= {"holes": holes, "kinds": list(HOLE_KINDS)}
        if not _holds(folder / "holes.npy", wanted):
            writer.write(folder / "holes.npy", wanted, (holes, views, len(images)), writer.with_holes)
    return TokenShard(folder, images.labels, seed, hole_share)


def _holds(file: Path, wanted: dict[str, Any]) -> bool:
    """Whether `file` is whole and was made from just these inputs."""
    try:
        np.load(file, mmap_mode="r")
        return bool(json.loads(file.with_suffix(".json").read_text()) == wanted)
    except (OSError, ValueError):  # never made, or damaged since: either way it is made now
        return False


@dataclass
class _Writer:
    """Encodes views and writes them."""

    tokenizer: VQGAN
    images: ImageDataset
    augment: AugmentConfig
    seed: int
    batch_size: int

    def write(
        self, file: Path, wanted: dict[str, Any], shape: tuple[int, ...], encode: Callable[..., np.ndarray]
    ) -> None:
        """Fill `file`, uint16 [*shape, N], with what `encode(*leading indices, images)` gives."""
        description = file.with_suffix(".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        description.unlink(missing_ok=True)
        # Written in place; the description, which makes it valid, comes last.
        full_shape = (*shape, self.tokenizer.config.num_tokens)
        tokens = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint16, shape=full_shape)
        with tqdm(total=math.prod(shape), desc=f"tokenizing {file.stem}", unit="view", dynamic_ncols=True) as progress:
            for leading in np.ndindex(shape[:-1]):
                for start in range(0, shape[-1], self.batch_size):
                    chosen = range(start, min(start + self.batch_size, shape[-1]))
                    tokens[leading][chosen.start : chosen.stop] = encode(*leading, chosen)
                    progress.update(len(chosen))
        tokens.flush()
        write_atomically({description: (json.dumps(wanted, indent=2) + "\n").encode()})

    def plain(self, view: int, chosen: range) -> np.ndarray:
        """The tokens of one view of the chosen images; uint16 [n, N]."""
        return self._encode(self._pixels(view, chosen))

    def with_holes(self, number: int, view: int, chosen: range) -> np.ndarray:
        """The tokens outside hole `number` of that view, HIDDEN inside; uint16 [n, N]."""
        pixels = self._pixels(view, chosen)
        size, grid = pixels.shape[-1], self.tokenizer.config.grid
        holes = [hole_of(size, view, index, number, self.seed) for index in chosen]
        hidden = [smooth_fill(image, torch.from_numpy(~hole)[None]) for image, hole in zip(pixels, holes, strict=True)]
        inside = np.stack([cells_with_holes(hole, grid, grid).ravel() for hole in holes])
        return np.where(inside, HIDDEN, self._encode(torch.stack(hidden)))

    def _pixels(self, view: int, chosen: range) -> Tensor:
        """float32 [n, 3, S, S] in [-1, 1]."""
        batch = np.stack([view_of(self.images, index, view, self.augment, self.seed) for index in chosen])
        return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> np.ndarray:
        device = next(self.tokenizer.parameters()).device
        return self.tokenizer.encode(pixels.to(device)).cpu().numpy().astype(np.uint16)
