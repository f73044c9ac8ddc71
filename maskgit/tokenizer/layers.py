"""Encoder and decoder of the VQGAN (Esser et al., CVPR 2021), built from a list of stages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.config import TokenizerConfig

GROUP_NORM_EPS = 1e-6  # what every public VQGAN uses


Norm = Callable[[int], nn.Module]
"""Makes the normalization of a feature map, given its channels."""


class PositionNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of a feature map."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Normalization, SiLU, 3x3 convolution, twice, around a shortcut (1x1 where the width changes)."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(x) + hidden


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        batch, channels, height, width = x.shape
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        # One head as wide as the feature map: wider than any fused kernel takes, so SDPA's own choice is right here.
        out = F.scaled_dot_product_attention(q, k, v)  # [B, 1, h * w, C]
        return x + self.proj(out.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width))


class Downsample(nn.Sequential):
    """[B, C, h, w] -> [B, C, h / 2, w / 2]: 3x3 convolution of stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        super().__init__(OrderedDict(pad=pad, conv=conv))


class Upsample(nn.Sequential):
    """[B, C, h, w] -> [B, C, 2 h, 2 w]: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        larger, conv = nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels, 3, padding=1)
        super().__init__(OrderedDict(larger=larger, conv=conv))


def _norm(config: TokenizerConfig, encoding: bool) -> Norm:
    if encoding and config.encoder_norm == "position":
        return lambda channels: PositionNorm(channels, GROUP_NORM_EPS)
    return lambda channels: nn.GroupNorm(config.groups, channels, GROUP_NORM_EPS)


def _middle(channels: int, norm: Norm, config: TokenizerConfig) -> list[nn.Module]:
    attention = [AttentionBlock(channels, norm)] if config.middle_attention else []
    return [ResidualBlock(channels, channels, norm), *attention, ResidualBlock(channels, channels, norm)]


def _stages(width: int, encoding: bool, norm: Norm, config: TokenizerConfig) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for stage in config.encoder if encoding else config.decoder:
        for _ in range(stage.blocks):
            layers.append(ResidualBlock(width, stage.channels, norm))
            width = stage.channels
            if stage.attention:
                layers.append(AttentionBlock(width, norm))
        if stage.resample and not encoding:
            layers.append(Upsample(width))
        elif stage.resample:
            layers.append(nn.AvgPool2d(2) if config.downsample == "mean" else Downsample(width))
    return layers, width


class Encoder(nn.Sequential):
    """Images [B, 3, S, S] in [-1, 1] -> latents [B, latent_channels, S / patch, S / patch]."""

    def __init__(self, config: TokenizerConfig) -> None:
        norm = _norm(config, encoding=True)
        layers, width = _stages(config.stem_channels, True, norm, config)
        super().__init__(
            nn.Conv2d(3, config.stem_channels, 3, padding=1),
            *layers,
            *(_middle(width, norm, config) if config.encoder_middle else []),
            norm(width),
            nn.SiLU(),
            nn.Conv2d(width, config.latent_channels, 3, padding=1),
        )


class Decoder(nn.Sequential):
    """Latents [B, latent_channels, S / patch, S / patch] -> images [B, 3, S, S], about [-1, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        norm, first = _norm(config, encoding=False), config.decoder[0].channels
        layers, width = _stages(first, False, norm, config)
        super().__init__(
            nn.Conv2d(config.latent_channels, first, 3, padding=1),
            *_middle(first, norm, config),
            *layers,
            norm(width),
            nn.SiLU() if config.output_activation else nn.Identity(),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, at which the adversarial loss is balanced."""
        layer = self[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer.weight
