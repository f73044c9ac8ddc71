"""How good a model's fills are, measured while it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from maskgit.canvas.holes import cells_with_holes
from maskgit.data.tokens import TokenSample, TokenShard, hole_of
from maskgit.decoding import DecodeConfig, decode
from maskgit.metrics import frechet_distance
from maskgit.metrics.features import efficientnet_lite0, pooled_features
from maskgit.tokenizer import VQGAN

NAME = "frechet distance (efficientnet-lite0, not FID)"
BATCH = 32


class FillDistance:
    """Fréchet distance between fixed held-out pictures and the same pictures with their holes filled.

    Of the features of EfficientNet-Lite0, whose weights come in a package: it is not the FID. Both sides are decoded
    from tokens, so the tokenizer has no part in it; pictures, holes and noise are the same at every call. Compare it
    within one run only.

    Args:
        held_out: its plain views; where it has holes these are filled as inpainting does, from tokens that were encoded
            without what is hidden, else from the tokens of the whole picture.
        tokenizer: on the device where all of it shall run.
        images: how many of them, spread evenly; all if there are fewer.

    Raises:
        ImportError: the packages of the features are missing.
    """

    def __init__(self, held_out: TokenShard, tokenizer: VQGAN, images: int) -> None:
        self.tokenizer, self.device = tokenizer, next(tokenizer.parameters()).device
        self.network = efficientnet_lite0().to(self.device)
        chosen = np.linspace(0, len(held_out) - 1, min(images, len(held_out))).astype(int)
        samples = [_with_hole(held_out, int(index), tokenizer.config.image_size) for index in chosen]
        self.samples: TokenSample = default_collate(samples)
        self.real = self._features(self.samples.tokens)

    @torch.no_grad()
    def __call__(self, model: nn.Module, labels: Callable[[Tensor], Tensor | None], mask_token_id: int) -> float:
        """The distance of `model`'s fills.

        Args:
            model: tokens int64 [B, N] and labels -> logits [B, N, V].
            labels: what the model takes for the classes int64 [B].
            mask_token_id: V.
        """
        filled = []
        for start in range(0, len(self.samples.tokens), BATCH):
            part = TokenSample(*(values[start : start + BATCH].to(self.device) for values in self.samples))
            seeds = torch.arange(start, start + len(part.tokens), device=self.device)
            predict = functools.partial(_predict, model, labels(part.label))
            filled.append(
                decode(predict, part.visible, part.candidates, DecodeConfig(), seeds, mask_token_id=mask_token_id)
            )
        return frechet_distance(self._features(torch.cat(filled)), self.real)

    @torch.no_grad()
    def _features(self, tokens: Tensor) -> Tensor:
        """Of the pictures that tokens int64 [n, N] decode to; float64 [n, D]."""
        features: list[Tensor] = []
        for part in tokens.split(BATCH):
            features += pooled_features(self.network, self.tokenizer.decode(part.to(self.device)).clamp(-1, 1))
        return torch.cat(features)


def _predict(model: nn.Module, classes: Tensor | None, held: Tensor) -> Tensor:
    return model(held, classes)


def _with_hole(shard: TokenShard, index: int, size: int) -> TokenSample:
    """The plain view of an image with its first hole."""
    if shard.holes is not None:
        return shard.with_hole(index, 0, 0)
    tokens, grid = torch.from_numpy(shard.tokens[0, index].astype(np.int64)), round(shard.tokens.shape[2] ** 0.5)
    inside = torch.from_numpy(cells_with_holes(hole_of(size, 0, index, 0, shard.seed), grid, grid).ravel())
    return TokenSample(tokens, tokens, inside, torch.tensor(shard.labels[index]))
