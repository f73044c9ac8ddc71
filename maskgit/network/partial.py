"""Evaluating a transformer at some tokens only, for one run of the decoding loop.

`MaskedRowsNetwork`: the last block and the head at masked tokens, as elsewhere nobody reads the logits. A token that is
known is there to be attended to: once the last block has its keys and values, nothing looks at it again. This changes
no logit that is read. Where a quarter of a picture is filled in by the cosine schedule in 8 steps, 17 % of its tokens
are masked on average.

`ReusingNetwork`: all of it at masked tokens, between full evaluations. Liu et al., "Plug-and-Play Context Feature Reuse
for Efficient Masked Generation" (ReCAP), NeurIPS 2025. A decided token changes little in the eyes of its neighbors from
one decoding step to the next. So its keys and values are kept from step to step, and only positions that have changed
go through the transformer, M of N of them: its linear layers and its attention's queries then cost M / N of a full
evaluation.

Here a step evaluates every position that is masked, and those decided since the evaluation before, so that each token
is seen as soon as it is decided. (The authors' code chooses at a full evaluation which tokens are decided before the
next, and evaluates these only: less work yet where nearly everything is masked, but the order is no longer the
decoder's.) How many these are follows from the schedule, so the host knows it beforehand.

Neither reads from the device nor copies to it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _first(wanted: Tensor, count: int) -> Tensor:
    """Positions of each image, int64 [B, count]: those where `wanted`, bool [B, N], is True, then others."""
    return (~wanted).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]


# --- the last block ---------------------------------------------------------------------------------------------------

# Rows of an image that go through the last block at least. Products of a few rows are worked out in other ways, by
# which their results could come to depend on the number of images.
FEWEST_ROWS = 32


def masked_rows(masked: Tensor, count: int) -> Tensor:
    """The numbers of the masked positions among all B * N, for the transformer's `rows`.

    Args:
        masked: bool [B, N].
        count: M in [1, N], at least the number of masked positions of any image. Images that have fewer are filled up
            with other positions.

    Returns:
        int64 [B * M].
    """
    start = torch.arange(len(masked), device=masked.device)[:, None] * masked.shape[1]
    return (start + _first(masked, count)).flatten()


class MaskedRowsNetwork:
    """A transformer for one run of `maskgit.decoding.decode_steps`, its last block evaluated at masked tokens only.

    Args:
        network: the transformer, which `rows` are given to.
        counts: the run's (see `maskgit.decoding.masked_counts`).
        mask_token_id: V.
    """

    def __init__(self, network: Callable[..., Tensor], counts: Sequence[int], mask_token_id: int) -> None:
        self._network, self._counts, self._mask_token_id = network, iter(counts), mask_token_id

    def __call__(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """As the transformer for tokens int64 [B, N]: logits [B, N, V], which mean nothing where nothing is masked."""
        count = min(tokens.shape[1], max(FEWEST_ROWS, next(self._counts)))
        return self._network(tokens, labels, rows=masked_rows(tokens == self._mask_token_id, count))


# --- all of it --------------------------------------------------------------------------------------------------------


class Context:
    """The keys and values of all positions, for a transformer that is evaluated at some: `transformer(..., context)`.

    The first evaluation with it is a full one; `choose` settles which positions the next are about. Not for training:
    what is kept is overwritten in place.
    """

    _images: Tensor  # int64 [B, 1]
    _places: Tensor  # int64 [B, M + L - N]: what is evaluated of the sequence
    _targets: Tensor  # the same with L for what is not to be kept

    def __init__(self) -> None:
        # Keys and values of each layer, [B, L + 1, H, D] each; the last row takes what is not to be kept.
        self._kept: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._changed: Tensor | None = None  # bool [B, N]
        self._count = 0

    def choose(self, changed: Tensor, count: int) -> None:
        """Evaluate some positions only from now on.

        Args:
            changed: bool [B, N], the positions to evaluate.
            count: M in [1, N], at least their number in any image. Images that have fewer are filled up with other
                positions, which stay in the context as they are.
        """
        self._changed, self._count = changed, count

    # --- what the transformer asks ------------------------------------------------------------------------------------

    def select(self, x: Tensor, num_tokens: int) -> tuple[Tensor, int]:
        """What to evaluate of a sequence [B, L, dim], whose first N are the image's tokens.

        Returns:
            [B, M + L - N, dim], the chosen positions and all that follows the image (class token, registers), and M.
        """
        if self._changed is None:
            return x, num_tokens
        batch, length = x.shape[:2]
        rest = torch.arange(num_tokens, length, device=x.device).expand(batch, -1)
        self._images = torch.arange(batch, device=x.device)[:, None]
        self._places = torch.cat([_first(self._changed, self._count), rest], dim=1)
        keep = F.pad(self._changed, (0, length - num_tokens), value=True).gather(1, self._places)
        self._targets = self._places.masked_fill(~keep, length)
        return x[self._images, self._places], self._count

    def recall(self, layer: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values where it is evaluated, [B, H, M + L - N, D] each; give all, [B, H, L, D]."""
        new = k.transpose(1, 2), v.transpose(1, 2)
        if self._changed is None:
            keys, values = (F.pad(part, (0, 0, 0, 0, 0, 1)) for part in new)
            self._kept[layer] = keys, values
            return k, v
        for kept, part in zip(self._kept[layer], new, strict=True):
            kept[self._images, self._targets] = part
        keys, values = (kept[:, :-1].transpose(1, 2) for kept in self._kept[layer])
        return keys, values

    def spread(self, x: Tensor) -> Tensor:
        """[B, M, V] at the chosen positions -> [B, N, V], with 0 elsewhere."""
        if self._changed is None:
            return x
        spread = x.new_zeros(*self._changed.shape, x.shape[2])
        spread[self._images, self._places[:, : self._count]] = x
        return spread


class ReusingNetwork:
    """A transformer for one run of `maskgit.decoding.decode_steps`, evaluated in full now and then only.

    An image's logits do not depend on the others in the batch, but for rounding.

    Args:
        network: the transformer: tokens int64 [B, N], labels int64 [B] or None, context -> logits [B, N, at least V].
        reuse: partial evaluations after each full one; 0 is none.
        counts: the run's (see `maskgit.decoding.changed_counts`).
        mask_token_id: V.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor | None, Context], Tensor],
        reuse: int,
        counts: Sequence[int],
        mask_token_id: int,
    ) -> None:
        self._network, self._reuse, self._counts, self._mask_token_id = network, reuse, counts, mask_token_id
        self._step = self._left = 0  # evaluations made, and partial ones left before the next full one
        self._context = Context()
        self._masked = torch.empty(0)  # bool [B, N], what was masked in the last evaluation

    def __call__(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """As the transformer for tokens int64 [B, N]: logits [B, N, V], which mean nothing where nothing is masked.

        Where the number of images changes, as guidance sets in or ends, the evaluation is a full one.
        """
        masked = tokens == self._mask_token_id
        if self._left == 0 or len(masked) != len(self._masked):
            self._context, self._left = Context(), self._reuse
        else:
            self._context.choose(masked | self._masked, self._counts[self._step])
            self._left -= 1
        self._masked = masked
        self._step += 1
        return self._network(tokens, labels, self._context)
