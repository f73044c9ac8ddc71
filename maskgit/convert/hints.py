"""What checkpoint files leave unsaid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Hints:
    """What can't be read off a checkpoint and has to be told, where the usual value is wrong."""

    heads: int | None = None
    """Attention heads of the transformer, where the file doesn't tell. Default: what its system usually has, 16."""
    packing: Literal["qkv", "heads"] = "qkv"
    """How a packed projection (course lab) is ordered: all queries, then all keys, then all values; or query, key and
    value of the first head, then those of the next."""
    projections: tuple[str, str, str, str] | None = None
    """Names of the attention's query, key, value and output layers (course lab), where they don't speak for themselves:
    such as fc1 fc2 fc3 fc4."""
    image_size: int | None = None
    """Side of the tokenizer's images in pixels. Default: what the transformer was trained on, or 16x16 patches."""
    unit_pixels: bool = False
    """The tokenizer was trained on pixels in [0, 1] and not in [-1, 1]: amused's, for one. Google's needs no hint."""
