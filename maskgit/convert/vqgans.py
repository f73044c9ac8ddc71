"""What the readers of VQGANs share: our encoder and decoder, put together layer by layer."""

from __future__ import annotations

import dataclasses
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

    Hands out our names of the layers ("encoder.3") and keeps the list of stages that has them.
    """

    def __init__(self, name: str, width: int) -> None:
        """`width`: channels behind the first convolution."""
        self.name, self.width = name, width
        self._first, self._layers = width, 0
        self._items: list[tuple[int, bool] | None] = []  # blocks with and without attention, None for a resampling

    def layer(self) -> str:
        """Our name of the next layer, one that isn't part of a stage."""
        self._layers += 1
        return f"{self.name}.{self._layers - 1}"

    def block(self, width: int) -> str:
        """A residual block with `width` channels out."""
        self.width = width
        self._items.append((width, False))
        return self.layer()

    def attention(self) -> str:
        """Attention behind the last block."""
        if not self._items or self._items[-1] is None:
            raise ConvertError(f"the {self.name} has attention without a residual block before it")
        self._items[-1] = self.width, True
        return self.layer()

    def resample(self) -> str:
        """A change of resolution."""
        self._items.append(None)
        return self.layer()

    def stages(self) -> tuple[Stage, ...]:
        """What was put together."""
        stages: list[Stage] = []
        width = self._first
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


def build_vqgan(weights: Weights, hints: Hints, encoder: Half, decoder: Half, **fields: Any) -> VQGAN:
    """The VQGAN of two halves and some more fields of its configuration.

    A VQGAN is convolutional, so its file doesn't tell the size of its images: 16x16 tokens unless there is a hint.
    """
    codebook_size, codebook_dim = weights.placed("codebook.weight", 2)

    def make() -> VQGAN:
        patch = 2 ** sum(stage.resample for stage in encoder.stages())
        config = TokenizerConfig(
            image_size=USUAL_GRID * patch if hints.image_size is None else hints.image_size,
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            encoder=encoder.stages(),
            decoder=decoder.stages(),
            **fields,
        )
        return VQGAN(config)

    return weights.build(make)
