"""The tokenizer: images to a grid of discrete tokens, and back."""

from __future__ import annotations

import math

from torch import Tensor, nn

from maskgit.config import TokenizerConfig
from maskgit.tokenizer.layers import Decoder, Encoder
from maskgit.tokenizer.quantizer import Codebook


class VQGAN(nn.Module):
    """Convolutional VQGAN (Esser et al., CVPR 2021): encoder, codebook, decoder.

    Images are float [B, 3, S, S] in [-1, 1] with S = config.image_size; tokens are int64 [B, N] in [0, V), row-major
    over the grid. The model works on any size that is a multiple of config.patch; N then changes with it.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.codebook = Codebook(config.codebook_size, config.codebook_dim)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def latents(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> continuous latents [B, D, h, w], before quantization."""
        if self.config.unit_pixels:
            images = (images + 1) / 2
        return self.quant_conv(self.encoder(images))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [B, D, h, w] (codes, or straight-through codes) -> images [B, 3, S, S], not clamped."""
        images = self.decoder(self.post_quant_conv(latents))
        return images * 2 - 1 if self.config.unit_pixels else images

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> tokens int64 [B, N]."""
        latents = self.latents(images).permute(0, 2, 3, 1)  # [B, h, w, D]
        return self.codebook.nearest(latents.flatten(0, 2)).view(len(images), -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, N] in [0, V), a square grid -> images float [B, 3, S, S], not clamped."""
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens are not a square grid")
        return self.decode_latents(self.codebook(tokens).view(len(tokens), side, side, -1).permute(0, 3, 1, 2))
