"""How good are the pictures: PSNR, SSIM, codebook usage, Fréchet distance."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.tokenizer.losses import IMAGENET_MEAN, IMAGENET_STD


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images [B, 3, S, S] in [-1, 1]; float [B]."""
    error = (a - b).square().flatten(1).mean(1).clamp_min(1e-10)
    return 10 * torch.log10(4 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images [B, 3, S, S] in [-1, 1]; float [B].

    Wang et al., 2004: 11x11 Gaussian window of deviation 1.5, on each channel, without padding.
    """
    offsets = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 11)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, window.unsqueeze(2), groups=3), window.unsqueeze(3), groups=3)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return similarity.flatten(1).mean(1)


def codebook_usage(tokens: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of the codes that occur in tokens int64 [...], and the perplexity of their distribution."""
    counts = torch.bincount(tokens.flatten(), minlength=codebook_size).double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())


def psnr_of_mean_error(mean_square: float) -> float:
    """PSNR in dB for a mean squared error of images in [-1, 1]; at most 106 dB, as `psnr`."""
    return 10 * math.log10(4 / max(mean_square, 1e-10))


def hole_errors(a: Tensor, b: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute and mean squared difference of two images inside a hole.

    Args:
        a, b: float [B, 3, H, W].
        masks: bool [B, H, W], True in the hole; at least one pixel each.

    Returns:
        Both float64 [B].
    """
    hidden = masks[:, None].double()
    difference = (a.double() - b.double()) * hidden
    values = a.shape[1] * hidden.flatten(1).sum(1)
    return difference.abs().flatten(1).sum(1) / values, difference.square().flatten(1).sum(1) / values


# --- Fréchet distance -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def pooled_features(network: nn.Module, images: Tensor, size: int = 224, batch_size: int = 32) -> Iterator[Tensor]:
    """Pooled last features of EfficientNet-Lite0 (`maskgit.features`), batch by batch.

    Args:
        network: has `extract_features`, images [B, 3, size, size], normalised as ImageNet's, to [B, D, h, w].
        images: float [B, 3, S, S] in [-1, 1], on any device.
        size: images are resized to this, bicubic.
        batch_size: images per forward pass.

    Yields:
        float64 [up to batch_size, D] on the CPU; in order.
    """
    parameter = next(network.parameters())
    mean, std = (torch.tensor(v, device=parameter.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for part in images.split(batch_size):
        part = part.to(parameter.device, parameter.dtype)
        part = F.interpolate(part, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
        part = (((part + 1) / 2 - mean) / std).contiguous(memory_format=torch.channels_last)
        yield network.extract_features(part).double().mean((2, 3)).cpu()  # type: ignore[operator]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr sqrt(S_a S_b), as in Heusel et al., "GANs Trained by a Two
    Time-Scale Update Rule", NeurIPS 2017, with unbiased covariances. With Inception features it is the FID; with
    others it is not, and its values can't be compared with any FID.

    The last term is the sum of the square roots of S_a S_b's eigenvalues. With S_a = A^T A and S_b = B^T B those roots
    are the singular values of A B^T, so no covariance is formed and no matrix root is taken: sets smaller than the
    number of features, whose covariances are singular, are as exact as others.

    Small sets: the distance between two independent samples of one distribution is above 0, the more so the fewer
    they are (hundreds of images in 1280 dimensions: much). Compare distances between sets of one size only. Between
    images and edited copies of the same images the bias is small, as the sampling error is common to both; it is 0
    where nothing was edited.

    Args:
        a: float [n, D], n >= 2.
        b: float [m, D], m >= 2.

    Raises:
        ValueError: sets of other shapes, or features that aren't finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or len(a) < 2 or len(b) < 2:
        raise ValueError(
            f"two sets of at least 2 feature vectors of one length are needed, got {list(a.shape)} and {list(b.shape)}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features that are not finite have no Fréchet distance")
    a, b = a.double(), b.double()
    roots = []
    for features in (a, b):
        root = (features - features.mean(0)) / math.sqrt(len(features) - 1)
        # More samples than dimensions: R has the same R^T R and is smaller.
        roots.append(torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root)
    spread = roots[0].square().sum() + roots[1].square().sum()
    common = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + spread - 2 * common
    return max(0.0, float(distance))  # rounding can leave a hair below 0
