"""The course lab's VQGAN and transformer ("MaskGIT for image inpainting"), as its students have them.

The course gives all of the VQGAN and most of the transformer. The attention is the student's own, so its layers have
any name, and some have no bias: theirs is zero here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgit.config import some
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.transformers import build_transformer, count_heads, require_codes
from maskgit.convert.vqgans import build_vqgan, read_half
from maskgit.convert.weights import Weights
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

NORM_EPS = 1e-12

# --- VQGAN ------------------------------------------------------------------------------------------------------------

PARTS = {
    "norm1": "block.0.gn",
    "conv1": "block.2",
    "norm2": "block.3.gn",
    "conv2": "block.5",
    "shortcut": "channel_up",
    "norm": "norm.gn",
    "q": "q",
    "k": "k",
    "v": "v",
    "proj": "proj_out",
}
"""Our parts of residual blocks and attention, and what they are called here."""


def read_vqgan(weights: Weights, hints: Hints) -> VQGAN:
    """The VQGAN: two lists of layers, numbered as they run. The decoder has no activation before its last one."""
    weights.move("codebook.weight", "codebook.embedding.weight")
    weights.layers({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    layers = _layers(weights, "encoder")
    encoder = read_half(weights, "encoder", layers, layers[-5:-2], PARTS)
    layers = _layers(weights, "decoder")
    decoder = read_half(weights, "decoder", layers, layers[1:4], PARTS)
    return build_vqgan(weights, hints, encoder, decoder, output_activation=False, unit_pixels=hints.unit_pixels)


def _layers(weights: Weights, half: str) -> list[str]:
    """Names of the layers that have weights, in the order in which they run."""
    prefix = f"{half}.model."
    numbers = {name.partition(".")[0] for name in weights.names(prefix)}
    if not all(number.isdecimal() for number in numbers):
        raise ConvertError(f"the layers of {half}.model aren't all numbered: {', '.join(sorted(numbers))}")
    if len(numbers) < 7:
        raise ConvertError(f"{half}.model has {len(numbers)} layers; the lab's has a dozen at least")
    *layers, norm, last = [f"{prefix}{number}" for number in sorted(numbers, key=int)]
    return [*layers, f"{norm}.gn", last]


# --- transformer ------------------------------------------------------------------------------------------------------

ROLES = (
    {"q", "wq", "qw", "qs", "query", "queries"},
    {"k", "wk", "kw", "ks", "key", "keys"},
    {"v", "wv", "vw", "vs", "value", "values"},
)
"""Words in the name of a layer that give away that it makes queries, keys or values."""


@dataclass(frozen=True)
class Projections:
    """The layers of an attention: their names up to "weight" or "bias", several if each head has its own."""

    inputs: tuple[str, ...]
    """Those whose rows, one after the other, are all queries, all keys and all values."""
    output: str
    heads: int | None
    """The number of heads, if the file tells."""


def read_transformer(weights: Weights, hints: Hints, codebook_size: int) -> Transformer:
    """The transformer: post-norm, its output tied to the embedding, with a bias for each position."""
    rows, dim = weights.shape("tok_emb.weight", 2)
    require_codes(rows, codebook_size)
    weights.move("token_embedding.weight", "tok_emb.weight")
    weights.move("position_embedding", "pos_emb")
    weights.put("bias", weights.take("bias", None, rows)[:, :codebook_size], "bias")  # less the mask token
    weights.layer("embedding_norm", "LN")
    depth = weights.count("blocks.")
    for number in range(1, depth):
        differing = set(weights.names("blocks.0.")) ^ set(weights.names(f"blocks.{number}."))
        if differing:
            raise ConvertError(f"blocks.0 and blocks.{number} differ in {some(differing)}")
    attention = find_projections(weights, hints, dim, "blocks.0.Attention.")
    heads = count_heads(weights, hints, dim, attention.heads)
    if len(attention.inputs) == 1 and hints.packing == "qkv":
        weights.notes.append("its packed projection is taken as all queries, all keys, all values (--packing)")
    for number in range(depth):
        block = f"blocks.{number}."
        _read_attention(weights, attention, hints, heads, f"{block}attention", f"{block}Attention.")
        names = {"norm1": "LayerNorm1", "norm2": "LayerNorm2", "mlp.0": "MLP.0", "mlp.2": "MLP.2"}
        weights.layers(names, block, block)
    weights.layers({"head.0": "Token_Prediction.0", "head.2": "Token_Prediction.2"})
    return build_transformer(weights, codebook_size, depth, heads, norm="post", norm_eps=NORM_EPS)


def find_projections(weights: Weights, hints: Hints, dim: int, prefix: str) -> Projections:
    """What each layer of an attention does, by its shape and name; `dim` is the transformer's width.

    Raises ConvertError: shapes and names don't tell.
    """
    if hints.projections is not None:
        *inputs, output = (f"{name}." for name in hints.projections)
        return Projections(tuple(inputs), output, None)
    found = [name.removesuffix("weight") for name in weights.names(prefix) if name.endswith("weight")]
    packed = [name for name in found if weights.shape(f"{prefix}{name}weight", 2) == (3 * dim, dim)]
    roles = [sorted((name for name in found if words & _words(name)), key=_numbers) for words in ROLES]
    inputs = packed or [name for names in roles for name in names]
    outputs = [name for name in found if name not in inputs]
    # As many layers make queries as keys and values, and none makes two of them.
    clear = len(packed) == 1 or (len({len(names) for names in roles}) == 1 and len(set(inputs)) == len(inputs) > 0)
    if not clear or len(outputs) != 1:
        names = ", ".join(name.rstrip("._") for name in found)
        raise ConvertError(
            f"it isn't clear which of {prefix}* is query, key, value and output: {names or 'nothing'} (--projections)"
        )
    return Projections(tuple(inputs), outputs[0], len(inputs) // 3 if len(inputs) > 3 else None)


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)}


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _read_attention(weights: Weights, attention: Projections, hints: Hints, heads: int, ours: str, theirs: str) -> None:
    parts = [_weight_and_bias(weights, f"{theirs}{name}") for name in attention.inputs]
    packed = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if len(parts) == 1 and hints.packing == "heads":
        packed = tuple(_untangle(tensor, heads) for tensor in packed)
    output = _weight_and_bias(weights, f"{theirs}{attention.output}")
    for layer, tensors, name in (("qkv", packed, attention.inputs[0]), ("proj", output, attention.output)):
        for part, tensor in zip(("weight", "bias"), tensors, strict=True):
            weights.put(f"{ours}.{layer}.{part}", tensor, f"{theirs}{name}{part}")


def _weight_and_bias(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    dim = weights.placed("token_embedding.weight", 2)[1]
    weight = weights.take(f"{name}weight", None, dim)
    if f"{name}bias" not in weights:
        return weight, torch.zeros(len(weight))
    return weight, weights.take(f"{name}bias", len(weight))


def _untangle(tensor: Tensor, heads: int) -> Tensor:
    """Rows (head, q/k/v, channel) -> rows (q/k/v, head, channel)."""
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
