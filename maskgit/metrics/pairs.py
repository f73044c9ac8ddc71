"""How close a picture is to its original: PSNR, SSIM and a perceptual distance, of all of it or of a hole."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.tokenizer.losses import PerceptualLoss

SSIM_WINDOW = 11
"""Side of the window of `ssim`, which is the smallest side of an image that has one."""


def psnr(a: Tensor, b: Tensor, masks: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, at most 106.

    Args:
        a, b: float [B, 3, H, W] in [-1, 1].
        masks: bool [B, H, W], at least one pixel each: the error is that of these pixels. None: of all.

    Returns:
        float [B].
    """
    error = (a - b).square().flatten(1).mean(1) if masks is None else hole_errors(a, b, masks)[1]
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


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


def ssim(a: Tensor, b: Tensor, masks: Tensor | None = None) -> Tensor:
    """Structural similarity.

    Wang et al., 2004: 11x11 Gaussian window of deviation 1.5, on each channel, without padding. In a hole each window
    counts as much as the hole has a share in it, weighted as the window weights its pixels.

    Args:
        a, b: float [B, 3, H, W] in [-1, 1], at least 11 pixels each way.
        masks: bool [B, H, W], at least one pixel each; None: all of the image.

    Returns:
        float [B].
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=a.dtype, device=a.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, SSIM_WINDOW)

    def blur(x: Tensor) -> Tensor:
        channels = window[: x.shape[1]]
        x = F.conv2d(x, channels.unsqueeze(2), groups=x.shape[1])
        return F.conv2d(x, channels.unsqueeze(3), groups=x.shape[1])

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    if masks is None:
        return similarity.flatten(1).mean(1)
    return _weighted_mean(similarity.mean(1), blur(masks[:, None].to(a.dtype))[:, 0])


@torch.inference_mode()
def perceptual_distance(network: PerceptualLoss, a: Tensor, b: Tensor, masks: Tensor | None = None) -> Tensor:
    """Distance in the features of a network, as LPIPS without its learned weights.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1 with
    w = 1. Features see beyond their own place, so pixels around a hole have a say in the distance inside it.

    Args:
        network: such as PerceptualLoss(efficientnet_stages()).
        a, b: float [B, 3, H, W] in [-1, 1].
        masks: bool [B, H, W], at least one pixel each: in each feature map, places count by the share of the hole in
            them. None: all places count the same.

    Returns:
        float [B].
    """
    total = torch.zeros(len(a), device=a.device)
    for ours, theirs in zip(network.features(a), network.features(b), strict=True):
        difference = (ours - theirs).square().sum(1)  # [B, h, w]
        if masks is None:
            total += difference.flatten(1).mean(1)
        else:
            shares = F.adaptive_avg_pool2d(masks.to(a.dtype), (difference.shape[1], difference.shape[2]))
            total += _weighted_mean(difference, shares)
    return total


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Both [B, h, w] -> [B]."""
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
