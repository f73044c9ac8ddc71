import math

import pytest
import torch

from maskgit.schedules import SCHEDULES, ceil_count, floor_count, gamma, mask_counts

NAMES = ["cosine", "linear", "square", "cubic", "exponential", "sqrt", "logarithmic", "arccos"]


def test_all_are_there():
    assert list(SCHEDULES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_ends_range_and_monotony(name):
    r = torch.linspace(0, 1, 1001, dtype=torch.float64)
    g = gamma(r, name)
    assert g[0] == 1 and g[-1] == 0
    assert (g.diff() < 0).all() and g.dtype == torch.float64
    assert gamma(0.0, name) == 1 and gamma(1, name) == 0
    assert torch.equal(gamma(r[500].item(), name), g[500])


@pytest.mark.parametrize(
    "name, r, value",
    [
        ("cosine", 2 / 3, 0.5),
        ("linear", 0.25, 0.75),
        ("square", 0.5, 0.75),
        ("cubic", 0.5, 0.875),
        ("exponential", 0.5, (1 - 1 / 16) / (1 - 1 / 256)),
        ("sqrt", 0.25, 0.5),
        ("logarithmic", 0.5, -math.log(0.5 + 0.5 / 256) / math.log(256)),
        ("arccos", 0.5, 2 / 3),
    ],
)
def test_values(name, r, value):
    assert float(gamma(r, name)) == pytest.approx(value, abs=1e-12)


def test_float32_progress_is_computed_in_float64():
    assert gamma(torch.tensor([0.5], dtype=torch.float32), "cosine").item() == math.cos(math.pi / 4)


def test_exact_counts_come_out_exact():
    assert int(floor_count(gamma(2 / 3, "cosine"), 256)) == 128
    for steps in range(1, 65):
        for step in range(1, steps + 1):
            for total in (64, 100, 256, 1024):
                share = gamma(step / steps, "linear")
                assert int(floor_count(share, total)) == total * (steps - step) // steps
                assert int(ceil_count(share, total)) == -(-total * (steps - step) // steps)


def test_errors():
    with pytest.raises(ValueError, match="schedule must be one of cosine, .* got 'cos'"):
        gamma(0.5, "cos")
    with pytest.raises(ValueError, match=r"r must be in \[0, 1\], got 1.5"):
        gamma(1.5, "cosine")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        mask_counts(torch.tensor([3]), 0, "cosine")


def test_counts_of_the_paper():
    """The official code's cosine schedule in exact arithmetic: floor(256 cos(pi/2 (t + 1)/8)), then 0."""
    assert mask_counts(torch.tensor([256]), 8, "cosine")[:, 0].tolist() == [251, 236, 212, 181, 142, 97, 49, 0]
    assert mask_counts(torch.tensor([256]), 3, "cosine")[1, 0] == 128


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 8, 12, 300])
def test_every_step_decides_something_until_nothing_is_left(name, steps):
    totals = torch.tensor([0, 1, 2, 5, 64, 255, 256, 1024])
    counts = mask_counts(totals, steps, name)
    assert counts.shape == (steps, len(totals)) and counts.dtype == torch.int64
    assert (counts >= 0).all() and (counts[-1] == 0).all()
    before = torch.cat([totals[None], counts[:-1]])
    assert (counts < before)[before > 0].all()
    # All the steps are used if the flattest end, the logarithmic one's, still decides a token per step.
    assert (counts[:-1, totals >= 6 * steps] > 0).all()
    for column, total in enumerate(totals):
        assert torch.equal(mask_counts(total[None], steps, name)[:, 0], counts[:, column])
