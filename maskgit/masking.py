"""Training masks for masked visual token modelling (MVTM)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskgit.schedules import ceil_count, gamma

SMALLEST_BOX = 1 / 4  # of the grid's side


def mvtm_masks(
    batch: int,
    num_tokens: int,
    schedule: str = "cosine",
    *,
    box_share: float = 0.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A random training mask per image: ceil(gamma(r) * n) of n tokens with r ~ U[0, 1), each image its own r.

    Chang et al., "MaskGIT", CVPR 2022, section 3.2, where n is always N. For a share of the images, n are the tokens
    of a random box and all others stay known: the states that a decoder meets when it fills a hole, which masks
    scattered over the whole picture hardly ever contain.

    Args:
        batch: B.
        num_tokens: N, at least 1; a square grid if there are boxes.
        schedule: a key of `maskgit.schedules.SCHEDULES`.
        box_share: probability in [0, 1] that an image's mask lies in a box.
        generator: source of the randomness; torch's global one by default.
        device: where the masks are made; the generator's device, or else the CPU, by default.

    Returns:
        bool [B, N], True = masked; from 1 to N in each image.
    """
    if device is None and generator is not None:
        device = generator.device
    r = torch.rand(batch, generator=generator, device=device, dtype=torch.float64)
    if not box_share:
        return random_masks(ceil_count(gamma(r, schedule), num_tokens).clamp(min=1), num_tokens, generator=generator)
    boxes = random_boxes(batch, math.isqrt(num_tokens), generator=generator, device=device)
    everywhere = torch.rand(batch, 1, generator=generator, device=device) >= box_share
    candidates = boxes | everywhere
    counts = ceil_count(gamma(r, schedule), candidates.sum(1)).clamp(min=1)
    return random_masks(counts, num_tokens, candidates, generator=generator)


def random_boxes(
    batch: int,
    grid: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A random box of tokens per image: both sides uniform from a quarter of the grid to all of it, any position.

    Args:
        batch: B.
        grid: tokens per side.
        generator, device: as for `mvtm_masks`.

    Returns:
        bool [B, grid * grid], row-major, True inside.
    """
    smallest = math.ceil(grid * SMALLEST_BOX)
    size, start = torch.rand(2, batch, 2, generator=generator, device=device).unbind(0)
    size = smallest + (size * (grid - smallest + 1)).long()  # [B, 2], in tokens
    start = (start * (grid - size + 1)).long()
    places = torch.arange(grid, device=size.device)
    inside = (places >= start[..., None]) & (places < (start + size)[..., None])  # [B, 2, grid]
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).flatten(1)


def random_masks(
    counts: Tensor,
    num_tokens: int,
    candidates: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Masks of exactly counts[b] tokens, chosen uniformly at random.

    Args:
        counts: int64 [B], each from 0 to the number of image b's candidates.
        num_tokens: N.
        candidates: bool [B, N], the tokens to choose from; None for all.
        generator: source of the randomness, on the device of `counts`; torch's global one by default.

    Returns:
        bool [B, N] on the device of `counts`, True = masked.
    """
    noise = torch.rand(len(counts), num_tokens, generator=generator, device=counts.device)
    if candidates is not None:
        noise = noise.masked_fill(~candidates, 2.0)  # behind every candidate, whose noise is below 1
    # The ranks of the noise are a permutation even if two values are equal, so the counts are exact.
    order = noise.argsort(dim=1)
    chosen = torch.arange(num_tokens, device=counts.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen)
