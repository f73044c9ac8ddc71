import math
from fractions import Fraction

import pytest
import torch
import tyro
from safetensors.torch import load_file

from maskgit.cli.options import Options
from maskgit.decoding.schedules import (
    COUNTS,
    PROGRESSES,
    SCHEDULES,
    ceil_count,
    floor_count,
    gamma,
    halton_order,
    mask_counts,
)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_range_and_monotony(name):
    r = torch.linspace(0, 1, 1001, dtype=torch.float64)
    g = gamma(r, name)
    assert g[0] == 1 and g[-1] == 0
    assert (g.diff() < 0).all() and g.dtype == torch.float64
    assert gamma(0.0, name) == 1 and gamma(1, name) == 0
    numbers = [gamma(x, name) for x in r.tolist()]
    assert all(isinstance(x, float) for x in numbers)
    assert torch.allclose(torch.tensor(numbers, dtype=torch.float64), g, rtol=1e-14, atol=1e-15)


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
    assert gamma(r, name) == pytest.approx(value, abs=1e-12)


def test_float32_progress_is_computed_in_float64():
    assert gamma(torch.tensor([0.5], dtype=torch.float32), "cosine").item() == math.cos(math.pi / 4)


def test_exact_counts_come_out_exact():
    assert int(floor_count(gamma(torch.tensor(2 / 3, dtype=torch.float64), "cosine"), 256)) == 128
    for steps in range(1, 65):
        for step in range(1, steps + 1):
            for total in (64, 100, 256, 1024):
                share = gamma(torch.tensor(step / steps, dtype=torch.float64), "linear")
                assert int(floor_count(share, total)) == total * (steps - step) // steps
                assert int(ceil_count(share, total)) == -(-total * (steps - step) // steps)


def test_errors():
    with pytest.raises(ValueError, match="schedule must be one of cosine, .* got 'cos'"):
        gamma(0.5, "cos")
    with pytest.raises(ValueError, match=r"r must be in \[0, 1\], got 1.5"):
        gamma(1.5, "cosine")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        mask_counts(torch.tensor([3]), 0, "cosine")
    with pytest.raises(ValueError, match="counts must be one of official, floor, decisive, compound, got 'round'"):
        mask_counts(torch.tensor([3]), 1, "cosine", rule="round")
    with pytest.raises(ValueError, match="progress must be one of after, before, inclusive, got 'now'"):
        mask_counts(torch.tensor([3]), 1, "cosine", progress="now")
    with pytest.raises(ValueError, match="at least one row and one column, got 0 x 4"):
        halton_order(0, 4)


def test_counts_of_the_paper():
    """The official code's cosine schedule in exact arithmetic: floor(256 cos(pi/2 (t + 1)/8)), then 0."""
    assert mask_counts(torch.tensor([256]), 8, "cosine")[:, 0].tolist() == [251, 236, 212, 181, 142, 97, 49, 0]
    assert mask_counts(torch.tensor([256]), 3, "cosine")[1, 0] == 128


@pytest.mark.parametrize("name", SCHEDULES)
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


@pytest.mark.parametrize("progress, first, last", [("after", 0.25, 1), ("before", 0, 0.75), ("inclusive", 0, 1)])
def test_progress(progress, first, last):
    r = [PROGRESSES[progress](step, 4) for step in range(4)]
    assert (r[0], r[-1]) == (first, last)
    assert all(b - a == pytest.approx((last - first) / 3) for a, b in zip(r, r[1:], strict=False))
    assert PROGRESSES[progress](0, 1) == (0 if progress == "before" else 1)


@pytest.mark.parametrize("progress", PROGRESSES)
@pytest.mark.parametrize("rule", COUNTS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_all_rules_end_with_nothing_and_never_mask_again(name, rule, progress):
    totals = torch.arange(70)
    for steps in (1, 2, 7, 100):
        counts = mask_counts(totals, steps, name, rule=rule, progress=progress)
        assert counts.shape == (steps, 70) and counts.dtype == torch.int64
        assert (counts >= 0).all() and (counts[-1] == 0).all()
        assert (torch.cat([totals[None], counts]).diff(dim=0) <= 0).all()


def test_counts_of_the_rules():
    """By hand: linear, 10 tokens, 4 steps."""
    ten = torch.tensor([10])

    def counts(rule, progress):
        return mask_counts(ten, 4, "linear", rule=rule, progress=progress)[:, 0].tolist()

    assert counts("official", "after") == [7, 5, 2, 0]
    assert counts("official", "inclusive") == [9, 6, 3, 0]
    assert counts("floor", "before") == [10, 7, 5, 0]
    assert counts("floor", "after") == [7, 5, 2, 0]
    assert counts("decisive", "after") == [8, 5, 3, 0]
    assert counts("decisive", "inclusive") == [9, 7, 4, 0]
    assert counts("compound", "after") == [8, 4, 1, 0]


# --- the Halton order -------------------------------------------------------------------------------------------------


def radical_inverse(index, base):
    """The digits of index, last one first, behind the point."""
    digits = []
    while index:
        digits.append(index % base)
        index //= base
    return sum(Fraction(digit, base ** (place + 1)) for place, digit in enumerate(digits))


@pytest.mark.parametrize("height, width", [(1, 1), (4, 4), (5, 3), (1, 7), (8, 8), (12, 20)])
def test_halton_order(height, width):
    seen = []
    for index in range(1, 5000):
        cell = int(radical_inverse(index, 2) * height) * width + int(radical_inverse(index, 3) * width)
        if cell not in seen:
            seen.append(cell)
        if len(seen) == height * width:
            break
    assert list(halton_order(height, width)) == seen


def test_halton_order_starts_spread_out():
    """The first 16 of 256 tokens fall into 16 of the 36 blocks of a 6 x 6 grid, or nearly so; a raster into 6."""
    first = torch.tensor(halton_order(16, 16)[:16])
    blocks = (first // 16 * 6 // 16) * 6 + first % 16 * 6 // 16
    assert len(blocks.unique()) >= 14


def test_halton_order_of_its_authors(golden):
    orders = load_file(golden / "halton_v2" / "halton_order.safetensors")
    assert set(orders) == {"8", "16", "24", "32"}
    for size, cells in orders.items():
        rows, columns = cells.unbind(1)
        assert list(halton_order(int(size), int(size))) == (rows * int(size) + columns).tolist()


def test_the_help_has_all_of_them(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Options, args=["--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"one of {', '.join(SCHEDULES)}." in printed
