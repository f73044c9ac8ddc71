import math

import pytest
import torch

from maskgit.masking import mvtm_masks, random_boxes, random_masks
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


def bounding_boxes(masks: torch.Tensor, grid: int) -> torch.Tensor:
    """bool [B, N] -> bool [B, N]: the smallest boxes around what is True."""
    masks = masks.view(-1, grid, grid)
    rows, columns = masks.any(2), masks.any(1)

    def between(lines: torch.Tensor) -> torch.Tensor:
        return (lines.cumsum(1) > 0) & (lines.flip(1).cumsum(1).flip(1) > 0)

    return (between(rows)[:, :, None] & between(columns)[:, None, :]).flatten(1)


@pytest.mark.parametrize("grid", [1, 2, 7, 16])
def test_random_boxes_are_boxes_of_every_size_and_place(grid):
    boxes = random_boxes(4000, grid, generator=torch.Generator().manual_seed(0))
    assert torch.equal(boxes, bounding_boxes(boxes, grid))
    heights = boxes.view(-1, grid, grid).any(2).sum(1)
    assert heights.unique().tolist() == list(range(math.ceil(grid / 4), grid + 1))
    shares = heights.bincount(minlength=grid + 1)[math.ceil(grid / 4) :] / 4000
    assert (shares - 1 / len(shares)).abs().max() < 4.5 * (0.25 / 4000) ** 0.5
    assert boxes.any(0).all()  # every position lies in some box


def test_candidates_bound_the_mask():
    candidates = torch.rand(200, 30, generator=torch.Generator().manual_seed(0)) < 0.4
    counts = (candidates.sum(1) * torch.linspace(0, 1, 200)).long()
    masks = random_masks(counts, 30, candidates)
    assert torch.equal(masks.sum(1), counts)
    assert not (masks & ~candidates).any()


def test_a_share_of_the_masks_lies_in_boxes():
    def spread(box_share: float) -> torch.Tensor:
        masks = mvtm_masks(2000, 256, box_share=box_share, generator=torch.Generator().manual_seed(0))
        assert masks.any(1).all()
        return bounding_boxes(masks, 16).all(1).double().mean()  # masks that reach all four sides

    everywhere, half = spread(0.0), spread(0.5)
    assert everywhere > 0.9
    assert 0.45 < half / everywhere < 0.65
