"""`--init`: another model's weights to start from, from a smaller grid to a larger one too (seed 004, section 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.config import TransformerConfig, config_to_dict
from maskgit.data.tokens import fingerprint
from maskgit.network.folder import load_model
from maskgit.tokenizer import VQGAN
from maskgit.training.settings import TrainingError

OVER_THE_GRID = ("position_embedding", "bias")
"""The tensors of `maskgit.network.transformer.Transformer` that have a row for each position."""


def initial_weights(
    folder: Path, architecture: TransformerConfig, tokenizer: VQGAN, interpolate: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the model to go on from, fitted to `architecture`, and the names of its classes.

    Raises ModelError, and TrainingError: another transformer, another tokenizer.
    """
    model = load_model(folder)
    weights, source = model.transformer.state_dict(), model.transformer.config
    if interpolate and isinstance(source, TransformerConfig) and source.num_tokens != architecture.num_tokens:
        weights = interpolate_grid(weights, source.num_tokens, architecture.num_tokens)
        print(f"{folder}: from {source.num_tokens} to {architecture.num_tokens} positions by interpolation")
        source = dataclasses.replace(source, num_tokens=architecture.num_tokens)
        # A tokenizer is the same at any size of the pictures.
        model.tokenizer.config = dataclasses.replace(
            model.tokenizer.config, image_size=tokenizer.config.grid * model.tokenizer.config.patch
        )
    ours, theirs = config_to_dict(architecture), config_to_dict(source)
    # How much is dropped has no influence on what the weights mean.
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name) and "dropout" not in name]
    if names:
        larger = names == ["num_tokens"]
        hint = "--interpolate goes to a larger grid" if larger else "give the --model that it was made with"
        raise TrainingError(
            f"--init {folder}: another transformer than the one to be trained: "
            + ", ".join(f"{name} is {theirs.get(name)} there and {ours.get(name)} here" for name in names)
            + f"; {hint}"
        )
    if fingerprint(model.tokenizer) != fingerprint(tokenizer):
        raise TrainingError(f"--init {folder}: its tokenizer is not the one to be trained on, so its tokens differ")
    return weights, model.class_names


def interpolate_grid(weights: Mapping[str, Tensor], num_tokens: int, larger: int) -> dict[str, Tensor]:
    """A transformer's weights for a larger grid: bicubic between the positions, everything else as it is.

    Args:
        weights: the state dict of a Transformer. Rows behind the first N of the position embedding, the class token's,
            belong to no place in the grid and are kept.
        num_tokens, larger: N, and the new one; squares.

    Raises TrainingError: the new grid is smaller.
    """
    side, new_side = math.isqrt(num_tokens), math.isqrt(larger)
    if new_side < side:
        raise TrainingError(
            f"--interpolate goes to a larger grid only: {side} x {side} tokens there, {new_side} x {new_side} here"
        )
    result = dict(weights)
    for name in OVER_THE_GRID:
        if name in weights:
            rows, rest = weights[name][:num_tokens], weights[name][num_tokens:]
            picture = rows.T.reshape(1, -1, side, side)  # [1, D, h, h]
            resized = F.interpolate(picture, (new_side, new_side), mode="bicubic", align_corners=False)
            result[name] = torch.cat([resized[0].flatten(1).T, rest])
    return result
