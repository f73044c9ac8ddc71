"""What the readers of VQGANs share: our encoder and decoder, put together layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from maskgit.config import Stage, TokenizerConfig
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.weights import Weights
from maskgit.tokenizer import VQGAN

USUAL_GRID = 16  # tokens per side, in every source's smallest model


class Half:
    """Encoder or decoder of a VQGAN, put together in the order in which its layers run.

    Hands out our names of the layers ("encoder.3") and keeps the list of stages that has them. `width` are the channels
    behind the first convolution.
    """

    def __init__(self, name: str, width: int) -> None:
        self.name, self.stem = name, width
        self._layers = 0
        self._items: list[tuple[int, bool] | None] = []  # blocks with and without attention, None for a resampling

    def layer(self) -> str:
        """Our name of the next layer, one that isn't part of a stage."""
        self._layers += 1
        return f"{self.name}.{self._layers - 1}"

    def block(self, width: int) -> str:
        """A residual block with `width` channels out."""
        self._items.append((width, False))
        return self.layer()

    def attention(self) -> str:
        """Attention behind the last block."""
        if not self._items or self._items[-1] is None:
            raise ConvertError(f"the {self.name} has attention without a residual block before it")
        self._items[-1] = self._items[-1][0], True
        return self.layer()

    def resample(self) -> str:
        """A change of resolution."""
        self._items.append(None)
        return self.layer()

    def stages(self) -> tuple[Stage, ...]:
        """What was put together."""
        stages: list[Stage] = []
        width = self.stem
        for item, run in groupby(self._items):
            if item is not None:
                width, attention = item
                stages.append(Stage(width, len(list(run)), attention))
                continue
            for _ in run:
                if not stages or stages[-1].resample:
                    stages.append(Stage(width, 0))
                stages[-1] = dataclasses.replace(stages[-1], resample=True)
        return tuple(stages)


def read_half(
    weights: Weights, name: str, layers: Sequence[str], middle: Collection[str], parts: Mapping[str, str]
) -> Half:
    """Encoder or decoder of the kind that taming-transformers introduced.

    Args:
        name: ours.
        layers: their names of what has weights, in the order in which it runs: a convolution; residual blocks,
            attention and changes of resolution; a norm; a convolution.
        middle: those of them that are part of no stage.
        parts: our names of the parts of a block ("norm1", "conv1", "norm2", "conv2", "shortcut") and of attention
            ("norm", "q", "k", "v", "proj"), and theirs.
    """
    first, *inner, norm, last = layers
    half = Half(name, weights.shape(f"{first}.weight", 4)[0])
    weights.layer(half.layer(), first)
    for layer in inner:
        if f"{layer}.conv.weight" in weights:
            weights.layer(f"{half.resample()}.conv", f"{layer}.conv")
        elif f"{layer}.{parts['q']}.weight" in weights:
            ours = half.layer() if layer in middle else half.attention()
            weights.layer(f"{ours}.norm", f"{layer}.{parts['norm']}")
            for part in ("q", "k", "v", "proj"):
                theirs = f"{layer}.{parts[part]}"
                weight = weights.take(f"{theirs}.weight")
                # Some write a 1x1 convolution as a linear layer.
                weight = weight[..., None, None] if weight.ndim == 2 else weight
                weights.put(f"{ours}.{part}.weight", weight, f"{theirs}.weight")
                weights.move(f"{ours}.{part}.bias", f"{theirs}.bias")
        else:
            width = weights.shape(f"{layer}.{parts['conv2']}.weight", 4)[0]
            ours = half.layer() if layer in middle else half.block(width)
            for part in ("norm1", "conv1", "norm2", "conv2", "shortcut"):
                if part != "shortcut" or f"{layer}.{parts[part]}.weight" in weights:
                    weights.layer(f"{ours}.{part}", f"{layer}.{parts[part]}")
    weights.layer(half.layer(), norm)
    half.layer()  # the activation
    weights.layer(half.layer(), last)
    return half


def build_vqgan(weights: Weights, hints: Hints, encoder: Half, decoder: Half, **fields: Any) -> VQGAN:
    """The VQGAN of two halves and the codebook that has been put, and some more fields of its configuration.

    A VQGAN is convolutional, so its file doesn't tell the size of its images: 16x16 tokens unless there is a hint.
    """
    codebook_size, codebook_dim = weights.placed("codebook.weight", 2)
    latent_channels = weights.placed("quant_conv.weight", 4)[1]

    def make() -> VQGAN:
        patch = 2 ** sum(stage.resample for stage in encoder.stages())
        config = TokenizerConfig(
            image_size=USUAL_GRID * patch if hints.image_size is None else hints.image_size,
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            latent_channels=latent_channels,
            stem_channels=encoder.stem,
            encoder=encoder.stages(),
            decoder=decoder.stages(),
            **fields,
        )
        return VQGAN(config)

    return weights.build(make)
