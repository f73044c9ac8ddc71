"""Training masks for masked visual token modelling (MVTM)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskgit.decoding.schedules import ceil_count, gamma

Per = Literal["image", "batch"]
Count = Literal["exact", "bernoulli"]


def mvtm_masks(
    batch: int,
    num_tokens: int,
    schedule: str = "cosine",
    candidates: Tensor | None = None,
    *,
    ratio: float | None = None,
    per: Per = "image",
    count: Count = "exact",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A random training mask per image, by default as the paper draws it.

    Chang et al., "MaskGIT", CVPR 2022, section 3.2: ceil(gamma(r) * n) of n tokens with r ~ U[0, 1), each image its own
    r, and n always N. With candidates, n are those, and all others stay known: the states that a decoder meets when it
    fills a hole, which masks scattered over the whole picture hardly ever contain.

    Args:
        batch, num_tokens: B and N, at least 1.
        schedule: a key of `maskgit.decoding.schedules.SCHEDULES`.
        candidates: bool [B, N], at least one True in each row: the tokens to choose from; None for all.
        ratio: a fixed share in (0, 1] instead of gamma(r) (0.5 in seed 001).
        per: whether each image has its own r or all of the batch the same (seeds 000 and 002).
        count: "exact" masks ceil(share * n) tokens; "bernoulli" each with probability `share`, whatever the others
            do, but at least one in each image (seeds 001, 002 and 004).
        generator: source of the randomness; torch's global one by default.
        device: where the masks are made; by default the generator's, or else the CPU.

    Returns:
        bool [B, N], True = masked; from 1 to N in each image.
    """
    if device is None and generator is not None:
        device = generator.device
    if ratio is None:
        r = torch.rand(batch if per == "image" else 1, generator=generator, device=device, dtype=torch.float64)
        share = gamma(r, schedule).expand(batch)
    else:
        share = torch.full((batch,), ratio, device=device, dtype=torch.float64)
    if count == "bernoulli":
        return _independent_masks(share, num_tokens, candidates, generator)
    total = num_tokens if candidates is None else candidates.sum(1)
    counts = ceil_count(share, total).clamp(min=1)
    return random_masks(counts, num_tokens, candidates, generator=generator)


def _independent_masks(
    share: Tensor, num_tokens: int, candidates: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """float64 [B] -> bool [B, N]."""
    noise = torch.rand(len(share), num_tokens, generator=generator, device=share.device, dtype=torch.float64)
    if candidates is not None:
        noise = noise.masked_fill(~candidates, 2.0)  # above every share
    # The token of the least noise is in every mask that isn't empty; so this changes empty ones only.
    return (noise < share[:, None]).scatter_(1, noise.argmin(1, keepdim=True), True)


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
