"""From a smaller grid to a larger one: a model of 256 px becomes the start of one of 512 px (seed 004, section 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.training.settings import TrainingError

OVER_THE_GRID = ("position_embedding", "bias")
"""The tensors of `maskgit.network.transformer.Transformer` that have a row for each position."""


def interpolate_grid(weights: Mapping[str, Tensor], num_tokens: int, larger: int) -> dict[str, Tensor]:
    """A transformer's weights for a larger grid: bicubic between the positions, everything else as it is.

    Args:
        weights: the state dict of a Transformer. Rows behind the first N of the position embedding, the class token's,
            belong to no place in the grid and are kept.
        num_tokens: N, a square.
        larger: the new N, a square.

    Returns:
        The state dict of a Transformer of `larger` tokens.

    Raises:
        TrainingError: the new grid is smaller.
    """
    if larger < num_tokens:
        raise TrainingError(
            f"--interpolate goes to a larger grid only: {math.isqrt(num_tokens)} x {math.isqrt(num_tokens)} tokens "
            f"there, {math.isqrt(larger)} x {math.isqrt(larger)} here"
        )
    result = dict(weights)
    for name in OVER_THE_GRID:
        if name in weights:
            grid, rest = weights[name][:num_tokens], weights[name][num_tokens:]
            result[name] = torch.cat([_resize(grid, math.isqrt(larger)), rest])
    return result


def _resize(rows: Tensor, side: int) -> Tensor:
    """[h * h, D] -> [side * side, D]."""
    old = math.isqrt(len(rows))
    picture = rows.T.reshape(1, -1, old, old)  # [1, D, h, h]
    resized = F.interpolate(picture, (side, side), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.contiguous()
