"""Figures of one picture against its original: against closed forms and definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_metrics import images, two_stages

from maskgit.metrics.pairs import hole_errors, perceptual_distance, psnr, psnr_of_mean_error, ssim


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[0] += 0.2
    b[1] += 0.02
    assert torch.allclose(psnr(a, b), torch.tensor([20.0, 40.0]), atol=1e-4)
    assert psnr_of_mean_error(0.04) == pytest.approx(20)
    assert psnr_of_mean_error(0.0) == pytest.approx(float(psnr(a, a)[0]))


def test_psnr_in_a_hole():
    a, b, masks = images(2, 16, 0), images(2, 16, 1), torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 3:9, 2:5] = True
    masks[1, 15, 15] = True
    for i in range(2):
        error = (a[i] - b[i])[:, masks[i]].double().square().mean()
        assert float(psnr(a, b, masks)[i]) == pytest.approx(10 * math.log10(4 / error))
    everything = torch.ones_like(masks)
    assert torch.allclose(psnr(a, b, everything).float(), psnr(a, b), atol=1e-4)


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
                    place = i, channel, slice(top, top + 11), slice(left, left + 11)
                    x, y = (127.5 * (t[place].double().numpy() + 1) for t in (a, b))  # pixels from 0 to 255
                    mx, my = (window * x).sum(), (window * y).sum()
                    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                    cov = (window * (x - mx) * (y - my)).sum()
                    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                    values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
        assert float(ssim(a, b)[i]) == pytest.approx(np.mean(values), abs=1e-6)
    assert torch.allclose(ssim(a, a), torch.ones(2), atol=1e-5)


def test_ssim_in_a_hole():
    a, b = images(2, 20, 0), images(2, 20, 1)
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, 4:9, 5:7] = True
    masks[1, 0, 19] = True  # in the corner, where only one window sees it
    assert torch.allclose(ssim(a, b, torch.ones_like(masks)), ssim(a, b), atol=1e-6)
    offsets = torch.arange(11) - 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window[:, None] * window / window.sum() ** 2
    for i in range(2):
        values = weights = 0.0
        for top in range(10):
            for left in range(10):
                place = slice(top, top + 11), slice(left, left + 11)
                weight = float((window * masks[i][place]).sum())
                # SSIM of an image that is a single window.
                values += weight * float(ssim(*(x[i : i + 1, :, place[0], place[1]] for x in (a, b))))
                weights += weight
        assert float(ssim(a, b, masks)[i]) == pytest.approx(values / weights, abs=1e-4)
    # What no window that sees the hole can see doesn't matter.
    changed = b.clone()
    changed[1, :, 12:] = 0
    assert float(ssim(a, changed, masks)[1]) == pytest.approx(float(ssim(a, b, masks)[1]), abs=1e-6)
    assert abs(float(ssim(a, changed)[1]) - float(ssim(a, b)[1])) > 1e-3


def test_perceptual_distance_is_the_training_loss_where_everything_counts():
    network, a, b = two_stages(), images(3, 16, 0), images(3, 16, 1)
    distances = perceptual_distance(network, a, b)
    assert distances.shape == (3,) and float(distances.min()) > 0
    assert float(distances.mean()) == pytest.approx(float(network(a, b)), rel=1e-5)
    assert torch.allclose(perceptual_distance(network, a, b, torch.ones(3, 16, 16, dtype=torch.bool)), distances)
    assert torch.equal(perceptual_distance(network, a, a), torch.zeros(3))


def test_perceptual_distance_in_a_hole():
    network, a = two_stages(), images(1, 16, 0)
    b = a.clone()
    b[:, :, 8:, 8:] = images(1, 8, 1)
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 8:, 8:] = True
    # Windows of 4 pixels that don't overlap: the quarter is by itself.
    alone = perceptual_distance(network, a[:, :, 8:, 8:], b[:, :, 8:, 8:])
    assert float(perceptual_distance(network, a, b, masks)) == pytest.approx(float(alone), rel=1e-5)
    assert float(perceptual_distance(network, a, b, ~masks)) == pytest.approx(0, abs=1e-6)
    # A single pixel of the hole has a place in each map.
    one = torch.zeros_like(masks)
    one[0, 9, 15] = True
    fine, coarse = (
        (ours - theirs).square().sum(1) for ours, theirs in zip(network.features(a), network.features(b), strict=True)
    )
    assert float(perceptual_distance(network, a, b, one)) == pytest.approx(float(fine[0, 4, 7] + coarse[0, 2, 3]))


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
