"""Which of a draft's tokens stay: as often as Bayes' rule says, by the seed alone."""

from __future__ import annotations

import math

import pytest
import torch

from maskgit.decoding.draft import doubtful

CODES, SEEDS = 5, 4000


def kept(p: float, odds: float, seeds: torch.Tensor | None = None) -> torch.Tensor:
    """Where a draft's token, code 3 of probability p, stays at the masked ones of six places; bool [SEEDS, 6]."""
    rest = (1 - p) / (CODES - 1)
    logits = torch.full((6, CODES), math.log(rest) if rest else -math.inf)
    logits[:, 3] = math.log(p) if p else -math.inf
    seeds = torch.arange(SEEDS) if seeds is None else seeds
    draft = torch.tensor([3, 3, 99, 3, 3, -7])  # 99 and -7 where nothing is masked
    masked = torch.tensor([True, True, False, True, True, False]).expand(len(seeds), 6)
    again = doubtful(
        (logits + 7).expand(len(seeds), 6, CODES),
        draft.expand(len(seeds), 6),
        masked,
        seeds,
        torch.full((len(seeds), 6), odds),
    )
    assert not again[~masked].any()
    return ~again


@pytest.mark.parametrize(
    "p, odds, share",
    [
        (0.5, 1, 0.5),
        (0.25, 9, 0.75),
        (0.1, 1, 0.1),
        (0.01, 99, 0.5),
        (0.9, 1 / 9, 0.5),
        (1, 0.01, 1),
        (0, 1e9, 0),
        (0.7, 0, 0),
    ],
)
def test_a_draft_stays_as_often_as_it_is_right(p: float, odds: float, share: float) -> None:
    shares = kept(p, odds)[:, [0, 1, 3, 4]].double().mean(0)
    error = 4 * math.sqrt(share * (1 - share) / SEEDS)
    assert ((shares - share).abs() <= error).all(), shares


def test_nan_is_not_hidden() -> None:
    """Decoding says what is wrong; if a draft stayed, nobody would."""
    assert not kept(math.nan, 9, torch.arange(3))[:, [0, 1, 3, 4]].any()


def test_lots_are_an_images_own() -> None:
    seeds = torch.tensor([3, -(2**62), 17, 3])
    together = kept(0.5, 1, seeds)
    assert torch.equal(together[0], together[3])
    assert torch.equal(together, torch.cat([kept(0.5, 1, seed[None]) for seed in seeds]))
    lots = kept(0.5, 1)[:, [0, 1, 3, 4]].double()
    assert torch.corrcoef(lots.T).fill_diagonal_(0).abs().max() < 0.08, "places draw lots of their own"
