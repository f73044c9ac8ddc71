"""A draft of what is masked, such as a smooth continuation of what is known: which of its tokens stay."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgit_kernels.philox import STREAM_DRAFT, random_words


def doubtful(logits: Tensor, draft: Tensor, masked: Tensor, seeds: Tensor, odds: Tensor) -> Tensor:
    """Which masked tokens are to be decoded although there is a draft of them.

    A draft is evidence, and Bayes' rule weighs it: if it shows a code `odds` times as often where that is the right one
    as where it isn't, then a draft's token that has probability p for the model is right with the odds
    odds * p : 1 - p. So often it stays, by a lot drawn from the image's seed. What the model thinks impossible goes,
    and where many codes are as likely, different seeds have different answers.

    Args:
        logits: float [B, N, V], the model's where everything masked is hidden from it.
        draft: int64 [B, N], in [0, V) where masked.
        masked: bool [B, N].
        seeds: int64 [B].
        odds: float [B, N], at least 0; 0 keeps nothing of the draft.

    Returns:
        bool [B, N], the part of `masked` to go on with.
    """
    drafted = draft.where(masked, 0)
    logits = logits.float()
    p = (logits.gather(2, drafted[..., None])[..., 0] - logits.logsumexp(2)).exp()
    weight = odds * p
    positions = torch.arange(draft.shape[1], device=draft.device)
    words = random_words(seeds[:, None], positions, 0, STREAM_DRAFT, 1)[..., 0]  # [B, N], below 2**32
    lots = (words >> 8) / 2**24  # as many bits as float32 has, or some would be rounded to 1
    stays = lots * (weight + (1 - p)) < weight  # not where that is NaN, so that decoding gets to see it
    return masked & ~stays
