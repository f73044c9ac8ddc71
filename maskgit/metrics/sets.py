"""How far one set of pictures is from another, in the features of a network; how a set uses the codebook.

All of it depends on the network and on how many pictures there are: compare figures of one network and one size only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 512  # rows of a distance matrix that are in memory at a time: 200 MB for 50,000 pictures
_DIRECTIONS = 64  # that sets are projected on at a time: 25 MB for 50,000 pictures

# Distances are compared with others that may be equal to them but for rounding, above all where both sets hold the
# same picture. This much, of the radius, counts as equal.
_ROUNDING = 5e-10

# How far covariances that are read may be from symmetric and positive, of their largest number: float32's rounding.
_INEXACT = 1e-4


# --- Fréchet distance -------------------------------------------------------------------------------------------------


class Gaussian(NamedTuple):
    """A normal distribution over features."""

    mean: Tensor
    """float64 [D]."""
    root: Tensor
    """float64 [R, D] with root^T root the covariance; R may be below D."""


def fit_gaussian(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of features float [n, D], n >= 2. Raises ValueError for others, or not finite."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a set of at least 2 feature vectors is needed, got {list(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("features that are not finite have no Fréchet distance")
    features = features.double()
    root = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    # More samples than dimensions: R has the same R^T R and is smaller.
    root = torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root
    return Gaussian(features.mean(0), root)


def gaussian_of_moments(mean: Tensor, covariance: Tensor) -> Gaussian:
    """From a mean float [D] and a covariance [D, D], as files of statistics hold them.

    Raises:
        ValueError: other shapes, numbers that aren't finite, a matrix that is no covariance.
    """
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mean and covariance don't fit: {list(mean.shape)} and {list(covariance.shape)}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("statistics that are not finite have no Fréchet distance")
    covariance = covariance.double()
    values, axes = torch.linalg.eigh(covariance)
    asymmetry = (covariance - covariance.T).abs().max()
    if asymmetry > _INEXACT * covariance.abs().max() or values[0] < -_INEXACT * values.abs().max():
        raise ValueError("the covariance is no covariance: not symmetric, or of negative variance along an axis")
    return Gaussian(mean.double(), values.clamp(min=0).sqrt()[:, None] * axes.T)


def frechet_distance(a: Tensor | Gaussian, b: Tensor | Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr sqrt(S_a S_b), as in Heusel et al., "GANs Trained by a Two
    Time-Scale Update Rule", NeurIPS 2017, with unbiased covariances. With Inception features it is the FID; with
    others it is not, and its values can't be compared with any FID.

    The last term is the sum of the square roots of S_a S_b's eigenvalues. With S_a = A^T A and S_b = B^T B those roots
    are the singular values of A B^T, so no covariance is formed and no matrix root is taken: sets smaller than the
    number of features, whose covariances are singular, are as exact as others.

    Two independent samples of one distribution are further than 0 apart, much further where they are fewer than the
    dimensions: compare sets of one size only. Between images and edited copies of them the bias is small, as the
    sampling error is common to both.

    Args:
        a, b: float [n, D] and [m, D], n and m >= 2, or what was fitted to them.

    Raises:
        ValueError: sets of other shapes, or features that aren't finite.
    """
    a, b = (x if isinstance(x, Gaussian) else fit_gaussian(x) for x in (a, b))
    if len(a.mean) != len(b.mean):
        raise ValueError(f"feature vectors of one length are needed, got {len(a.mean)} and {len(b.mean)}")
    spread = a.root.square().sum() + b.root.square().sum()
    common = torch.linalg.svdvals(a.root @ b.root.T).sum()
    distance = (a.mean - b.mean).square().sum() + spread - 2 * common
    return max(0.0, float(distance))  # rounding can leave a hair below 0


# --- Monge distance ---------------------------------------------------------------------------------------------------


def monge_distance(a: Tensor, b: Tensor, directions: int = 1000, seed: int = 0) -> float:
    """3 D times the squared 2-Wasserstein distance of two sets along a line, averaged over random directions.

    Berthet et al., "MIND: Monge Inception Distance for Generative Models Evaluation", 2026 (arXiv 2605.06797): a sliced
    Wasserstein distance. With Inception features it is the MIND (the factor is theirs, and so are 100 to 1000
    directions); with others it is not. It fits no Gaussian, so it sees more than means and covariances, and two samples
    of one distribution are much less far apart than by the Fréchet distance: a thousand pictures say something.

    Along a line the cheapest way to turn one set into the other keeps the order. So the distance is that of the sorted
    projections; of sets that differ in size (the paper's don't) that of their quantile functions, which are steps.

    Args:
        a, b: float [n, D] and [m, D], n and m >= 1.
        directions: unit vectors, uniform on the sphere.
        seed: of the directions: equal ones for all sets that are to be compared.

    Raises:
        ValueError: sets of other shapes, features that aren't finite, no direction.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise ValueError(f"two sets of feature vectors of one length are needed, got {list(a.shape)}, {list(b.shape)}")
    if directions < 1:
        raise ValueError(f"{directions} directions: must be at least 1")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features that are not finite have no Monge distance")
    a, b, (n, m) = a.double(), b.double(), (len(a), len(b))
    # Both quantile functions are constant between neighboring ends of steps, in units of 1 / (n m): whole numbers.
    ends = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique().to(a.device)
    lengths, starts = ends.diff().double() / (n * m), ends[:-1]
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(directions, a.shape[1], generator=generator, dtype=torch.float64)
    lines = (lines / lines.norm(dim=1, keepdim=True)).to(a.device)
    total = 0.0
    for some in lines.split(_DIRECTIONS):
        of_a, of_b = ((x @ some.T).sort(dim=0).values for x in (a, b))  # [n, up to _DIRECTIONS], [m, likewise]
        differences = of_a[starts // m] - of_b[starts // n]  # [up to n + m - 1, up to _DIRECTIONS]
        total += float((lengths @ differences.square()).sum())
    return 3 * a.shape[1] * total / directions


# --- class score ------------------------------------------------------------------------------------------------------


def class_score(logits: Tensor, splits: int = 1, seed: int = 0) -> tuple[float, float]:
    """exp of the mean KL(p(class | image), p(class)): how sure the classes of images are, and how varied.

    Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016. With the logits of `InceptionFeatures` it is
    the Inception score; with those of another network it is not. It lies between 1 and the number of classes, and at
    most at n for n images.

    Args:
        logits: float [n, C].
        splits: the images are dealt at random into so many sets that each give a score.
        seed: of the dealing.

    Returns:
        Mean and standard deviation of the sets' scores (as the original code: that of the population).

    Raises:
        ValueError: fewer images than splits, or no splits.
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"{splits} splits of logits {list(logits.shape)}: must be from 1 to the number of images")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    scores = []
    for part in logits[order.to(logits.device)].double().tensor_split(splits):
        log_p = part.log_softmax(1)
        log_mean = log_p.logsumexp(0) - math.log(len(part))
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    result = torch.stack(scores)
    return float(result.mean()), float(result.std(correction=0))


# --- precision, recall, density, coverage -----------------------------------------------------------------------------


class Manifold(NamedTuple):
    """What `manifold_scores` returns."""

    precision: float
    """Share of the generated pictures that lie among the real ones: quality."""
    recall: float
    """Share of the real pictures that lie among the generated ones: variety."""
    density: float
    """How many real neighborhoods a generated picture lies in, over k: as precision, less moved by outliers."""
    coverage: float
    """Share of the real pictures that have a generated one in their neighborhood: as recall, likewise."""


def manifold_scores(real: Tensor, generated: Tensor, k: int = 3) -> Manifold:
    """Precision, recall, density and coverage.

    A picture's neighborhood is the open ball around it that reaches to its k-th nearest neighbor in its own set.
    Precision and recall: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models",
    NeurIPS 2019 (there with k = 3, closed balls, and VGG-16). Density and coverage: Naeem et al., "Reliable Fidelity
    and Diversity Metrics for Generative Models", ICML 2020 (there with k = 5). The definitions are those of the
    latter's package prdc. Memory grows with the larger set only, not with the product.

    Args:
        real, generated: float [n, D] and [m, D].
        k: at least 1, below n and m.

    Raises:
        ValueError: sets of other shapes, not finite, or too small for k.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(f"feature vectors of one length are needed, got {list(real.shape)}, {list(generated.shape)}")
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(f"k = {k} neighbors: must be from 1 to below the number of images of each set")
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise ValueError("features that are not finite have no neighbors")
    center = real.double().mean(0)  # the smaller the vectors, the less is lost where their squares cancel
    real, generated = real.double() - center, generated.double() - center
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)

    precise = inside = 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    nearest = torch.full_like(real_radii, torch.inf)
    for some, radii in zip(generated.split(_BLOCK), generated_radii.split(_BLOCK), strict=True):
        distances = torch.cdist(some, real)  # [up to _BLOCK, n]
        within = distances < real_radii
        precise += int(within.any(1).sum())
        inside += int(within.sum())
        recalled |= (distances < radii[:, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return Manifold(
        precision=precise / len(generated),
        recall=float(recalled.double().mean()),
        density=inside / (k * len(generated)),
        coverage=float((nearest < real_radii).double().mean()),
    )


def _radii(features: Tensor, k: int) -> Tensor:
    """Distances to the k-th nearest other vector, less what rounding may add. float64 [n, D] -> [n]."""
    # The nearest of all is the vector itself.
    radii = [torch.cdist(some, features).kthvalue(k + 1, dim=1).values for some in features.split(_BLOCK)]
    return torch.cat(radii) * (1 - _ROUNDING)


# --- tokens -----------------------------------------------------------------------------------------------------------


def codebook_usage(tokens: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of the codes that occur in tokens int64 [...], and the perplexity of their distribution."""
    counts = torch.bincount(tokens.flatten(), minlength=codebook_size).double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
