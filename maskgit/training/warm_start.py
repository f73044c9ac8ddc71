"""`--init`: another model to go on from, one's own or converted, also over other classes or a larger grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.config import HaltonConfig, TokenizerConfig, TransformerConfig, config_to_dict, preset
from maskgit.data.tokens import fingerprint
from maskgit.network.folder import Model, load_model, load_transformer_config, make_transformer
from maskgit.tokenizer import VQGAN
from maskgit.training.settings import TrainingError, TransformerTraining

OVER_THE_GRID = ("position_embedding", "bias")
"""The matrices of a transformer that have a row for each position. (A bias that is no matrix is of the codes alone.)"""


def starting_architecture(config: TransformerTraining, tokenizer: TokenizerConfig) -> TransformerConfig | HaltonConfig:
    """What the transformer of `config.init` is, with that model's classes, over the grid of a tokenizer.

    Raises ModelError and ConfigError: no such model, no such preset; and TrainingError: it is another than config.model
    says, or over another grid, to which it isn't to be interpolated.
    """
    assert config.init is not None
    if (config.output / "model").resolve() == config.init.resolve():
        raise TrainingError(
            f"--output {config.output}: the model that comes of it would replace that of --init; choose another"
        )
    theirs = load_transformer_config(config.init)
    ours = theirs if config.model is None else preset(config.model).transformer
    ours = dataclasses.replace(ours, codebook_size=tokenizer.codebook_size, num_tokens=tokenizer.num_tokens)
    # Neither how many classes there are nor how much is dropped has an influence on what the other weights mean.
    if ours.num_classes and theirs.num_classes:
        ours = dataclasses.replace(ours, num_classes=theirs.num_classes)
    here, there = config_to_dict(ours), config_to_dict(theirs)
    if config.interpolate:
        there["num_tokens"] = ours.num_tokens
    compared = [name for name in here | there if name == "kind" or (name in here and name in there)]
    names = [name for name in compared if here.get(name) != there.get(name) and "dropout" not in name]
    if names:
        hint = "leave --tokenizer out" if config.model is None else "leave --model out, as it has a size of its own"
        if names == ["num_tokens"]:
            interpolate = "--interpolate goes to a larger grid, " if theirs.num_tokens < ours.num_tokens else ""
            size = math.isqrt(theirs.num_tokens) * tokenizer.patch
            hint = f"{interpolate}--image-size {size} takes pictures of its size"
        raise TrainingError(
            f"--init {config.init}: another transformer than the one to be trained: "
            + ", ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names)
            + f"; {hint}"
        )
    return ours


def starting_model(
    config: TransformerTraining, architecture: TransformerConfig | HaltonConfig, tokenizer: VQGAN, names: Sequence[str]
) -> Model:
    """The model at `config.init`, fitted: its transformer to `architecture` and to the classes of the data.

    Args:
        architecture: as `starting_architecture`, with as many classes as `names`, where there are both.
        tokenizer: of which the tokens are; it becomes the model's.
        names: the classes of the data. Where they are the model's too, the result has them in the model's order.

    Raises ModelError, and TrainingError: its tokens aren't those of `tokenizer`.
    """
    assert config.init is not None
    model = load_model(config.init)
    size = tokenizer.config.grid * model.tokenizer.config.patch
    model.tokenizer.config = dataclasses.replace(model.tokenizer.config, image_size=size)  # of no matter to the layers
    if fingerprint(model.tokenizer) != fingerprint(tokenizer):
        raise TrainingError(
            f"--init {config.init}: its tokenizer is not the one to be trained on, so its tokens differ; leave "
            "--tokenizer out"
        )
    weights, source, class_names = model.transformer.state_dict(), model.transformer.config, model.class_names
    if source.num_tokens != architecture.num_tokens:
        weights = interpolate_grid(weights, source.num_tokens, architecture.num_tokens)
        print(f"{config.init}: from {source.num_tokens} to {architecture.num_tokens} positions by interpolation")
    if names and source.num_classes:
        if not class_names and len(names) == source.num_classes:
            class_names = list(names)
            print(f"{config.init}: its {len(names)} classes have no names; taken for those of the data, in their order")
        if sorted(names) != sorted(class_names):
            weights, new = exchange_classes(weights, source, class_names, names)
            class_names = list(names)
            print(f'{config.init}: {new} of {len(names)} classes are new to it and start as its "no class"')
    transformer = make_transformer(architecture)
    transformer.load_state_dict(weights)
    return dataclasses.replace(model, tokenizer=tokenizer, transformer=transformer, class_names=class_names)


def exchange_classes(
    weights: Mapping[str, Tensor], config: TransformerConfig | HaltonConfig, theirs: Sequence[str], ours: Sequence[str]
) -> tuple[dict[str, Tensor], int]:
    """A transformer's weights for other classes, and how many of these are new to it. "No class" stays what it is.

    A new class starts as "no class". That row was trained, wherever a class was dropped, to stand for pictures of which
    nothing is known: with it the model is at first the unconditional one, and guidance, which goes by the difference of
    the two, does nothing until the pictures of the class have made one. The mean of all rows was never trained.

    Args:
        weights: the state dict of a network with classes, of this configuration.
        theirs: the names of its classes, in their order, or none.
        ours: the names that the classes shall have. What has the same name keeps its row.
    """
    name, start = "token_embedding.weight", config.codebook_size + 1  # behind the codes and the mask token
    if isinstance(config, HaltonConfig):
        name, start = "class_embedding.weight", 0
    numbers = {known: number for number, known in enumerate(theirs)}
    rows = [numbers.get(wanted, config.num_classes) for wanted in ours]
    table = weights[name]
    classes = table[start:][[*rows, config.num_classes]]
    return {**weights, name: torch.cat([table[:start], classes])}, rows.count(config.num_classes)


def interpolate_grid(weights: Mapping[str, Tensor], num_tokens: int, larger: int) -> dict[str, Tensor]:
    """A transformer's weights for a larger grid: bicubic between the positions, everything else as it is.

    Args:
        weights: the state dict of a transformer. Rows behind the first N of the position embedding, the class token's,
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
        if name in weights and weights[name].ndim == 2:
            rows, rest = weights[name][:num_tokens], weights[name][num_tokens:]
            picture = rows.T.reshape(1, -1, side, side)  # [1, D, h, h]
            resized = F.interpolate(picture, (new_side, new_side), mode="bicubic", align_corners=False)
            result[name] = torch.cat([resized[0].flatten(1).T, rest])
    return result
