"""The last block and the head where tokens are masked only: elsewhere nobody reads the logits.

A token that is known is there to be attended to. Once the last block has its keys and values, nothing looks at it
again. This changes no logit that is read. Where a quarter of a picture is filled in by the cosine schedule in 8 steps,
17 % of its tokens are masked on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Rows of an image that go through the last block at least. Products of a few rows are worked out in other ways, by
# which their results could come to depend on the number of images.
FEWEST_ROWS = 32


Network = Callable[..., Tensor]
"""A transformer: tokens int64 [B, N], labels int64 [B] or None, and `rows` int64 [R] -> logits [B, N, at least V]."""


def masked_rows(masked: Tensor, count: int) -> Tensor:
    """The numbers of the masked positions among all B * N, for the transformer's `rows`.

    Args:
        masked: bool [B, N].
        count: M in [1, N], at least the number of masked positions of any image. Images that have fewer are filled up
            with other positions.

    Returns:
        int64 [B * M].
    """
    order = (~masked).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]  # [B, M], the masked ones first
    first = torch.arange(len(masked), device=masked.device)[:, None] * masked.shape[1]
    return (first + order).flatten()


class MaskedRowsNetwork:
    """A transformer for one run of `maskgit.decoding.decode_steps`, its last block evaluated at masked tokens only.

    Neither reads from the device nor copies to it.

    Args:
        network: the transformer.
        counts: the run's (see `maskgit.decoding.masked_counts`).
        mask_token_id: V.
    """

    def __init__(self, network: Network, counts: Sequence[int], mask_token_id: int) -> None:
        self._network, self._counts, self._mask_token_id = network, iter(counts), mask_token_id

    def __call__(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B, N, V] at the masked positions, for the next step; those elsewhere mean nothing.

        Args:
            tokens: int64 [B, N], the mask token where masked.
            labels: int64 [B] or None, as for the transformer.
        """
        count = min(tokens.shape[1], max(FEWEST_ROWS, next(self._counts)))
        return self._network(tokens, labels, rows=masked_rows(tokens == self._mask_token_id, count))
