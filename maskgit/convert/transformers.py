"""What the readers of transformers share: sizes that must fit the tokenizer, the number of heads, our network."""

from __future__ import annotations

from typing import Any

from maskgit.config import TransformerConfig
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.weights import Weights
from maskgit.network.transformer import Transformer

USUAL_HEADS = 16
DROPOUT = 0.1  # anywhere, in every source


def require_codes(rows: int, codebook_size: int) -> None:
    """Raise a ConvertError unless an embedding has so many rows as there are codes, and one for the mask token."""
    if rows != codebook_size + 1:
        raise ConvertError(f"it has {rows - 1} codes and a mask token, but the tokenizer has {codebook_size} codes")


def require_classes(rows: int, codebook_size: int, others: int) -> None:
    """Raise a ConvertError if codes and `others` leave no row of an embedding for a class."""
    if rows <= codebook_size + others:
        raise ConvertError(
            f"{rows} embeddings are too few for the tokenizer's {codebook_size} codes, a mask and classes"
        )


def count_heads(weights: Weights, hints: Hints, dim: int, told: int | None = None, usual: int = USUAL_HEADS) -> int:
    """The number of attention heads of a transformer of width `dim`: what its file has told, or the hint, or the usual
    one, which a note says.

    Raises ConvertError: the hint says something else than the file, or the number doesn't divide the width.
    """
    if told is not None:
        if hints.heads not in (None, told):
            raise ConvertError(f"it has {told} heads, not {hints.heads}")
        return told
    heads = usual if hints.heads is None else hints.heads
    if heads < 1 or dim % heads:
        raise ConvertError(f"a width of {dim} doesn't divide into {heads} heads; say how many there are (--heads)")
    if hints.heads is None:
        weights.notes.append(f"the file doesn't tell the number of heads: {heads} assumed (--heads)")
    return heads


def build_transformer(weights: Weights, codebook_size: int, depth: int, heads: int, **style: Any) -> Transformer:
    """The transformer whose tensors have been put; `style` is what no tensor tells, fields of `TransformerConfig`."""
    rows, dim = weights.placed("token_embedding.weight", 2)
    num_classes = max(0, rows - codebook_size - 2)  # besides the mask token and "no class"
    sizes: dict[str, Any] = {
        "codebook_size": codebook_size,
        "num_tokens": weights.placed("position_embedding", 2)[0] - (num_classes > 0),  # less the class token
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_dim": weights.placed("blocks.0.mlp.0.weight", 2)[0],
        "num_classes": num_classes,
    }
    return weights.build(
        lambda: Transformer(TransformerConfig(dropout=DROPOUT, attention_dropout=DROPOUT, **sizes, **style))
    )
