import math

import pytest
import torch

from maskgit.decoding.masking import mvtm_masks, random_masks
from maskgit.decoding.schedules import SCHEDULES, gamma


def test_random_masks_are_exact():
    counts = torch.arange(18)
    masks = random_masks(counts, 17)
    assert masks.dtype == torch.bool and masks.shape == (18, 17)
    assert torch.equal(masks.sum(1), counts.clamp(max=17))


def test_random_masks_are_uniform():
    masks = random_masks(torch.full((20000,), 3), 8, generator=torch.Generator().manual_seed(0)).double()
    assert (masks.mean(0) - 3 / 8).abs().max() < 4.5 * (15 / 64 / 20000) ** 0.5
    pairs = masks.T @ masks / 20000  # both of two positions masked: 3/8 * 2/7
    assert (pairs - torch.diag(pairs.diag()) + torch.eye(8) * 6 / 56 - 6 / 56).abs().max() < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_follow_the_schedule(schedule):
    batch, num_tokens = 4000, 64
    masks = mvtm_masks(batch, num_tokens, schedule, generator=torch.Generator().manual_seed(1))
    counts = masks.sum(1)
    assert counts.min() >= 1 and counts.max() <= num_tokens
    # The mean share is the integral of gamma, half a token more because of the ceiling.
    grid = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    expected = torch.ceil(gamma(grid, schedule) * num_tokens).mean()
    assert abs(counts.double().mean() - expected) < 4.5 * num_tokens * 0.35 / math.sqrt(batch)


def test_same_generator_same_masks_and_each_image_its_own():
    first, second = (mvtm_masks(16, 64, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.sum(1).unique()) > 4


def test_one_token():
    assert mvtm_masks(5, 1).all()
    assert mvtm_masks(0, 4).shape == (0, 4)


def test_candidates_bound_the_mask():
    candidates = torch.rand(200, 30, generator=torch.Generator().manual_seed(0)) < 0.4
    counts = (candidates.sum(1) * torch.linspace(0, 1, 200)).long()
    masks = random_masks(counts, 30, candidates)
    assert torch.equal(masks.sum(1), counts)
    assert not (masks & ~candidates).any()


def test_masks_among_candidates():
    candidates = torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    candidates[:, 0] = True
    candidates[0, 1:] = False
    masks = mvtm_masks(4000, 64, "linear", candidates, generator=torch.Generator().manual_seed(1))
    assert not (masks & ~candidates).any() and masks.any(1).all()
    # ceil((1 - r) * n) is uniform over 1 to n.
    share = (masks.sum(1) - 0.5) / candidates.sum(1)
    assert abs(share.double().mean() - 0.5) < 4.5 * (1 / 12 / 4000) ** 0.5


@pytest.mark.parametrize("count", ["exact", "bernoulli"])
def test_one_share_for_the_batch(count):
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(200):
        masks = mvtm_masks(6, 100, "linear", per="batch", count=count, generator=generator)
        counts = masks.sum(1).double()
        assert len(masks.unique(dim=0)) > 1 or masks.all()  # other tokens in each image
        shares.append(counts / 100)
    shares = torch.stack(shares)
    # Between the images of a batch the counts differ by the Bernoulli trials only: p (1 - p) / N, on average 1 / (6 N).
    expected = 0.0 if count == "exact" else 1 / 600
    assert abs(shares.var(1).mean() - expected) < 0.3 * expected + 1e-12
    assert abs(shares.mean() - 0.5) < 4.5 * (1 / 12 / 200) ** 0.5 and shares.mean(1).std() > 0.2


def test_a_fixed_ratio():
    masks = mvtm_masks(50, 64, ratio=0.3, generator=torch.Generator().manual_seed(0))
    assert (masks.sum(1) == 20).all()  # ceil(19.2)
    assert (mvtm_masks(5, 64, ratio=0.5).sum(1) == 32).all() and mvtm_masks(5, 64, ratio=1.0).all()
    candidates = torch.arange(64) < torch.tensor([[1], [10], [64]])
    assert mvtm_masks(3, 64, candidates=candidates, ratio=0.5).sum(1).tolist() == [1, 5, 32]


def test_bernoulli_counts_are_binomial():
    masks = mvtm_masks(20000, 32, ratio=0.5, count="bernoulli", generator=torch.Generator().manual_seed(0)).double()
    assert (masks.mean(0) - 0.5).abs().max() < 4.5 * (0.25 / 20000) ** 0.5
    variance = masks.sum(1).var()  # N p (1 - p) where the tokens are independent
    assert abs(variance - 8) < 4.5 * 8 * (2 / 20000) ** 0.5
    both = masks.T @ masks / 20000
    assert (both - torch.diag(both.diag()) - 0.25 * (1 - torch.eye(32))).abs().max() < 5 * (3 / 16 / 20000) ** 0.5


def test_bernoulli_follows_the_schedule():
    masks = mvtm_masks(8000, 64, "arccos", count="bernoulli", generator=torch.Generator().manual_seed(2))
    grid = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    assert abs(masks.double().mean() - gamma(grid, "arccos").mean()) < 4.5 * 0.35 / 8000**0.5
    assert masks.any(1).all()


def test_bernoulli_masks_at_least_one_token_and_any():
    """Where the trials leave nothing, one token is masked, and each is as likely."""
    masks = mvtm_masks(16000, 8, ratio=1e-6, count="bernoulli", generator=torch.Generator().manual_seed(3))
    assert (masks.sum(1) == 1).all()
    assert (masks.double().mean(0) - 1 / 8).abs().max() < 4.5 * (7 / 64 / 16000) ** 0.5
    candidates = torch.zeros(500, 8, dtype=torch.bool)
    candidates[:, 2] = candidates[:, 5] = True
    masks = mvtm_masks(500, 8, candidates=candidates, ratio=1e-6, count="bernoulli")
    assert not (masks & ~candidates).any() and (masks.sum(1) == 1).all() and masks[:, 2].any() and masks[:, 5].any()
