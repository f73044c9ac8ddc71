"""Distances between sets: closed forms, definitions written out, other libraries where they are installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import maskgit.metrics.features
import maskgit.metrics.sets
from maskgit.metrics.sets import (
    class_score,
    codebook_usage,
    fit_gaussian,
    frechet_distance,
    gaussian_of_moments,
    manifold_scores,
    monge_distance,
)


def exact_sample(mean: torch.Tensor, covariance: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Features float64 [count, D] whose sample mean and covariance are exactly those asked for (count > D)."""
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise - noise.mean(0)
    white = torch.linalg.qr(noise).Q * math.sqrt(count - 1)
    return mean + white @ torch.linalg.cholesky(covariance).T


def random_covariance(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


# --- Fréchet distance -------------------------------------------------------------------------------------------------


def test_frechet_distance_of_commuting_gaussians():
    # Covariances with the same axes: |m1 - m2|^2 + sum (s1 - s2)^2.
    axes = torch.linalg.qr(random_covariance(6, 0)).Q
    s1, s2 = torch.arange(1.0, 7).double(), torch.tensor([2.0, 0.5, 3, 1, 9, 0.1]).double()
    m1, m2 = torch.arange(6).double(), torch.ones(6).double()
    a = exact_sample(m1, axes @ torch.diag(s1**2) @ axes.T, 50, 1)
    b = exact_sample(m2, axes @ torch.diag(s2**2) @ axes.T, 50, 2)
    wanted = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [40, 9, 13], ids=["more than dimensions", "fewer", "as many"])
def test_frechet_distance_as_the_trace_of_a_matrix_root(count: int):
    a = exact_sample(torch.zeros(13).double(), random_covariance(13, 1), 60, 3)[:count]
    b = exact_sample(torch.ones(13).double(), random_covariance(13, 2), 60, 4)[:count]
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, axes = torch.linalg.eigh(cov_a)
    root = axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T
    common = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * common
    # The roots of eigenvalues that are 0 but for rounding cost this form half its digits.
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-6)


def test_frechet_distance_against_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a = exact_sample(torch.zeros(13).double(), random_covariance(13, 1), 60, 3)
    b = exact_sample(torch.ones(13).double(), random_covariance(13, 2), 40, 4)
    cov_a, cov_b = (torch.cov(x.T).numpy() for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b)
    wanted = 13 + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(np.real(root))
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("count", [5, 100])
def test_frechet_distance_of_identical_sets_is_zero(count: int):
    features = torch.randn(count, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)
    shifted = frechet_distance(features, features + 0.5)
    assert shifted == pytest.approx(20 * 0.25, rel=1e-5)


def test_frechet_distance_from_moments():
    a = exact_sample(torch.zeros(13).double(), random_covariance(13, 1), 60, 3)
    for count in (40, 9):  # of full rank and not
        b = exact_sample(torch.ones(13).double(), random_covariance(13, 2), 60, 4)[:count]
        moments = gaussian_of_moments(b.mean(0), torch.cov(b.T))
        assert frechet_distance(a, moments) == pytest.approx(frechet_distance(a, b), rel=1e-6)
        assert frechet_distance(fit_gaussian(a), moments) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    with pytest.raises(ValueError, match="don't fit"):
        gaussian_of_moments(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        gaussian_of_moments(torch.zeros(2), torch.full((2, 2), math.inf))


def test_frechet_distance_falls_with_the_sample_size():
    # The bias that the docstring warns of: one distribution, two samples.
    generator = torch.Generator().manual_seed(0)
    small, large = (
        frechet_distance(torch.randn(n, 50, generator=generator), torch.randn(n, 50, generator=generator))
        for n in (30, 3000)
    )
    assert small > 10 * large > 0


@pytest.mark.parametrize(
    "a, b, reason",
    [
        (torch.zeros(1, 4), torch.zeros(5, 4), "at least 2"),
        (torch.zeros(5, 4), torch.zeros(5, 3), "one length"),
        (torch.full((5, 4), math.nan), torch.zeros(5, 4), "not finite"),
    ],
)
def test_frechet_distance_refuses(a: torch.Tensor, b: torch.Tensor, reason: str):
    with pytest.raises(ValueError, match=reason):
        frechet_distance(a, b)


# --- Monge distance ---------------------------------------------------------------------------------------------------


def features(count: int, dimensions: int, seed: int) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_monge_distance_of_a_shift():
    # Along a direction u the sets differ by u . shift, whose mean square over the sphere is |shift|^2 / D.
    a, shift = features(20, 4, 0), torch.tensor([3.0, 0, -4, 1]).double()
    assert monge_distance(a, a + shift, directions=40_000) == pytest.approx(3 * 26, rel=0.02)
    # Few directions: exactly the mean over those, whichever they are; scaled sets are further apart by the square.
    once = monge_distance(a, a + shift, directions=7)
    assert monge_distance(5 * a, 5 * (a + shift), directions=7) == pytest.approx(25 * once)
    assert monge_distance(a + 100, a + shift + 100, directions=7) == pytest.approx(once)


@pytest.mark.parametrize("n, m", [(30, 30), (30, 17), (1, 8), (12, 36)])
def test_monge_distance_on_a_line(n: int, m: int):
    # In one dimension all directions are one: each vector repeated until the sets are of one size, in order.
    a, b = features(n, 1, 1), features(m, 1, 2) * 2 + 1
    many = math.lcm(n, m)
    pairs = zip(sorted(a[:, 0].tolist() * (many // n)), sorted(b[:, 0].tolist() * (many // m)), strict=True)
    wanted = 3 * sum((x - y) ** 2 for x, y in pairs) / many
    assert monge_distance(a, b, directions=3) == pytest.approx(wanted, rel=1e-12)


def test_monge_distance_is_the_cheapest_assignment():
    optimize = pytest.importorskip("scipy.optimize")
    a, b = features(9, 1, 3), features(9, 1, 4)
    cost = (a - b.T).square().numpy()
    assert monge_distance(a, b) == pytest.approx(3 * cost[optimize.linear_sum_assignment(cost)].mean(), rel=1e-12)


def test_monge_distance_of_pictures_in_any_order():
    a, b = features(40, 6, 5), features(25, 6, 6)
    distance = monge_distance(a, b)
    assert distance == monge_distance(a, b) and distance == pytest.approx(monge_distance(b, a))
    assert monge_distance(a.flip(0), b[torch.randperm(25)]) == pytest.approx(distance, rel=1e-12)
    assert monge_distance(a, a.flip(0).repeat(2, 1)) == pytest.approx(0, abs=1e-12)  # the same distribution
    assert distance != monge_distance(a, b, seed=1)
    assert monge_distance(a.float(), b.float()) == pytest.approx(distance, rel=1e-5)


def test_monge_distance_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch):
    a, b = features(11, 6, 7), features(8, 6, 8)
    whole = monge_distance(a, b, directions=50)
    monkeypatch.setattr(maskgit.metrics.sets, "_DIRECTIONS", 7)
    assert monge_distance(a, b, directions=50) == pytest.approx(whole, rel=1e-12)


def test_monge_distance_sees_what_moments_do_not():
    # Equal means and variances: two points against a bell.
    points = torch.tensor([[-1.0], [1.0]]).repeat(100, 1)
    bell = features(200, 1, 9)
    bell = (bell - bell.mean()) / bell.std()
    assert frechet_distance(points / points.std(), bell) == pytest.approx(0, abs=1e-6)
    assert monge_distance(points, bell) > 0.5


@pytest.mark.parametrize(
    "a, b, options, message",
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), {}, r"got \[3, 4\], \[3, 5\]"),
        (torch.zeros(0, 4), torch.zeros(3, 4), {}, "got"),
        (torch.zeros(3), torch.zeros(3, 4), {}, "got"),
        (torch.zeros(3, 4), torch.full((3, 4), torch.inf), {}, "not finite"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"directions": 0}, "0 directions"),
    ],
)
def test_monge_distance_refuses(a: Tensor, b: Tensor, options: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        monge_distance(a, b, **options)


# --- class score ------------------------------------------------------------------------------------------------------


def test_class_score_of_known_distributions():
    certain = torch.eye(8).repeat(5, 1) * 200
    assert class_score(certain)[0] == pytest.approx(8)  # sure of each, and all classes occur
    assert class_score(certain[::8])[0] == pytest.approx(1)  # one class only
    assert class_score(torch.zeros(40, 8))[0] == pytest.approx(1)  # unsure


def test_class_score_written_out():
    logits = 3 * torch.randn(60, 9)
    p = logits.double().softmax(1)
    wanted = ((p * (p / p.mean(0)).log()).sum(1)).mean().exp()
    mean, std = class_score(logits)
    assert mean == pytest.approx(float(wanted)) and std == 0
    # In splits: fewer images each, so a lower score; and the order of files, by class maybe, must not matter.
    by_class = torch.eye(10).repeat_interleave(30, 0) * 200
    in_order, std = class_score(by_class, splits=5)
    assert 8.5 < in_order < 10 and std > 0
    for splits in (0, 61):
        with pytest.raises(ValueError, match="splits"):
            class_score(logits, splits)


# --- precision, recall, density, coverage -----------------------------------------------------------------------------


def manifold_written_out(real: Tensor, generated: Tensor, k: int) -> tuple[float, float, float, float]:
    def distance(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).norm())

    def radii(points: Tensor) -> list[float]:
        return [sorted(distance(x, y) for j, y in enumerate(points) if j != i)[k - 1] for i, x in enumerate(points)]

    real_radii, generated_radii = radii(real), radii(generated)
    inside = [[distance(x, g) < r for x, r in zip(real, real_radii, strict=True)] for g in generated]
    precision = np.mean([any(row) for row in inside])
    recall = np.mean([any(distance(x, g) < r for g, r in zip(generated, generated_radii, strict=True)) for x in real])
    density = np.sum(inside) / (k * len(generated))
    coverage = np.mean(np.any(inside, axis=0))
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scale, shift", [(1.0, 0.3), (0.3, 0.0), (1.0, 9.0)], ids=["near", "narrow", "far"])
def test_manifold_scores_written_out(k: int, scale: float, shift: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(maskgit.metrics.sets, "_BLOCK", 7)  # several blocks, the last one smaller
    real, generated = 5 + torch.randn(25, 3), 5 + scale * torch.randn(18, 3) + shift
    scores = manifold_scores(real, generated, k)
    assert tuple(scores) == pytest.approx(manifold_written_out(real, generated, k))
    if shift > 5:
        assert tuple(scores) == (0, 0, 0, 0)
    elif scale < 1:
        assert scores.precision > scores.recall


def test_manifold_scores_against_prdc():
    prdc = pytest.importorskip("prdc")
    real, generated = torch.randn(60, 8), 0.8 * torch.randn(40, 8) + 0.2
    wanted = prdc.compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=5)
    assert manifold_scores(real, generated, 5)._asdict() == pytest.approx(wanted)


def test_manifold_scores_of_a_copy():
    # Distances that are equal in exact arithmetic, computed by different sums: rounding must not decide.
    real = 100 + torch.rand(600, 64)
    scores = manifold_scores(real, real[torch.randperm(600)].clone(), 3)
    assert tuple(scores) == pytest.approx((1, 1, 1, 1))
    # All pictures equal: there is no neighborhood to be in.
    assert tuple(manifold_scores(real[:1].repeat(9, 1), real[:1].repeat(9, 1), 3)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "real, generated, k, reason",
    [
        (torch.zeros(5, 2), torch.zeros(5, 3), 1, "one length"),
        (torch.zeros(5, 2), torch.zeros(3, 2), 3, "neighbors"),
        (torch.zeros(5, 2), torch.zeros(5, 2), 0, "neighbors"),
        (torch.zeros(5, 2), torch.full((5, 2), math.inf), 1, "not finite"),
    ],
)
def test_manifold_scores_refuse(real: Tensor, generated: Tensor, k: int, reason: str):
    with pytest.raises(ValueError, match=reason):
        manifold_scores(real, generated, k)


def test_frechet_distance_against_pytorch_fid():
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    a, b = torch.randn(60, 13), torch.randn(50, 13) @ torch.randn(13, 13) + 1
    moments = [(x.double().mean(0).numpy(), torch.cov(x.double().T).numpy()) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(fid_score.calculate_frechet_distance(*moments[0], *moments[1]))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_codebook_usage():
    used, perplexity = codebook_usage(torch.tensor([[0, 1], [2, 3]]), 8)
    assert used == 0.5 and perplexity == pytest.approx(4)
