"""Token shards: every view of every image, tokenized once and kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskgit.data.images import AugmentConfig, DataError, ImageDataset
from maskgit.files import write_atomically
from maskgit.tokenizer import VQGAN

PLAIN_VIEWS = 2  # as it is, and flipped


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


class TokenShard(Dataset[tuple[Tensor, int]]):
    """Tokens of a data set, memory-mapped from `folder`: uint16 [views, images, N] and a description.

    Indexed by (index, position) it gives the tokens int64 [N] of one view, chosen by the position, and the label.
    """

    def __init__(self, folder: Path, labels: np.ndarray, seed: int = 0) -> None:
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.labels, self.seed = labels, seed

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, position = key
        view = np.random.default_rng((self.seed, 3, position)).integers(len(self.tokens))
        return torch.from_numpy(self.tokens[view, index].astype(np.int64)), int(self.labels[index])


def _stored(folder: Path, wanted: dict[str, Any], labels: np.ndarray, seed: int) -> TokenShard | None:
    """The shard in `folder` if it is whole and was made from just these inputs."""
    try:
        if json.loads((folder / "tokens.json").read_text()) == wanted:
            return TokenShard(folder, labels, seed)
    except (OSError, ValueError):  # never made, or damaged since: either way it is made now
        pass
    return None


@torch.no_grad()
def tokenize(
    tokenizer: VQGAN,
    images: ImageDataset,
    folder: Path,
    *,
    views: int,
    augment: AugmentConfig,
    seed: int,
    device: torch.device,
    batch_size: int = 64,
) -> TokenShard:
    """Tokenize `views` views of every image into `folder`, unless that has been done with just these inputs.

    Raises:
        DataError: fewer than one view, or a codebook too large for uint16.
    """
    if views < 1:
        raise DataError(f"views={views}: there must be at least one")
    if tokenizer.config.codebook_size > 2**16:
        raise DataError(f"a codebook of {tokenizer.config.codebook_size} codes does not fit the shards' uint16")
    wanted = {
        "tokenizer": fingerprint(tokenizer),
        "images": content_key(images),
        "views": views,
        "augment": repr(augment),
        "seed": seed,
    }
    if (shard := _stored(folder, wanted, images.labels, seed)) is not None:
        return shard
    description = folder / "tokens.json"
    folder.mkdir(parents=True, exist_ok=True)
    description.unlink(missing_ok=True)
    # Written in place; the description, which makes it valid, comes last.
    shape = (views, len(images), tokenizer.config.num_tokens)
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", mode="w+", dtype=np.uint16, shape=shape)
    tokenizer = tokenizer.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    with tqdm(total=views * len(images), desc="tokenizing", unit="view", dynamic_ncols=True) as progress:
        for view in range(views):
            for start in range(0, len(images), batch_size):
                stop = min(start + batch_size, len(images))
                batch = np.stack([view_of(images, i, view, augment, seed) for i in range(start, stop)])
                pixels = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
                tokens[view, start:stop] = tokenizer.encode(pixels).cpu().numpy().astype(np.uint16)
                progress.update(stop - start)
    tokens.flush()
    write_atomically({description: (json.dumps(wanted, indent=2) + "\n").encode()})
    return TokenShard(folder, images.labels, seed)
