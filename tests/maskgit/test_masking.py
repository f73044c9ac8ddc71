import math

import pytest
import torch

from maskgit.masking import mvtm_masks, random_masks
from maskgit.schedules import SCHEDULES, gamma


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
