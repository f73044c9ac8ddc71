"""How close a picture is to its original: PSNR, SSIM and a perceptual distance, of all of it or of a hole."""

from __future__ import annotations

import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.tokenizer.losses import PerceptualLoss

SSIM_WINDOW = 11
"""Side of the window of `ssim`, which is the smallest side of an image that has one."""

_TILE = 64  # side of the squares that are compared at a time: in float64 the convolutions take 3 kB a pixel


def import_torchmetrics() -> ModuleType:
    """The functions of torchmetrics on images. Raises ImportError, naming the extra to install, where it is missing."""
    try:
        from torchmetrics.functional import image  # here, because it takes seconds
    except ImportError as error:
        raise ImportError("PSNR and SSIM need torchmetrics: pip install 'maskgit-inpaint[metrics]'") from error
    return image


def psnr(a: Tensor, b: Tensor, masks: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, at most 106.

    Args:
        a, b: float [B, 3, H, W] in [-1, 1].
        masks: bool [B, H, W], at least one pixel each: the error is that of these pixels. None: of all.

    Returns:
        float [B].
    """
    ratio = import_torchmetrics().peak_signal_noise_ratio
    dtype, a, b = a.dtype, _unit_range(a), _unit_range(b)
    if masks is None:
        values = ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    else:
        holes = zip(a, b, masks, strict=True)
        values = torch.stack([ratio(x[:, hole], y[:, hole], data_range=1.0) for x, y, hole in holes])
    return values.clamp_max(psnr_of_mean_error(0)).to(dtype)


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
        a, b: float [B, 3, H, W] in [-1, 1].
        masks: bool [B, H, W], at least one pixel each; None: all of the image.

    Returns:
        float [B].

    Raises:
        ValueError: images smaller than the window.
    """
    if min(a.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"images of {a.shape[3]}x{a.shape[2]} pixels: SSIM needs {SSIM_WINDOW} each way")
    pairs = zip(_unit_range(a).split(1), _unit_range(b).split(1), strict=True)
    similarity = torch.cat([_similarity_map(x, y) for x, y in pairs])
    if masks is None:
        return similarity.flatten(1).mean(1).to(a.dtype)
    offsets = torch.arange(SSIM_WINDOW, device=a.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    shares = F.conv2d(masks[:, None].to(window), torch.outer(window, window)[None, None])
    return _weighted_mean(similarity, shares[:, 0]).to(a.dtype)


def _similarity_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each window inside an image, mean over the channels. [1, 3, H, W] in [0, 1] -> [1, H - 10, W - 10]."""
    measure, border = import_torchmetrics().structural_similarity_index_measure, SSIM_WINDOW // 2
    down, across = (range(0, side - 2 * border, _TILE) for side in a.shape[2:])

    def tile(top: int, left: int) -> Tensor:
        place = ..., slice(top, top + _TILE + 2 * border), slice(left, left + _TILE + 2 * border)
        _, whole = measure(a[place], b[place], data_range=1.0, return_full_image=True)
        return whole[..., border:-border, border:-border].mean(1)  # the rest is of mirrored pixels

    return torch.cat([torch.cat([tile(top, left) for left in across], 2) for top in down], 1)


def _unit_range(images: Tensor) -> Tensor:
    """[-1, 1] -> float64 in [0, 1]: SSIM compares means too, so that of shifted values is another."""
    return (images.double() + 1) / 2


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
