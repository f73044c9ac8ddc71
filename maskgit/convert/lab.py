"""The course lab's VQGAN and transformer ("MaskGIT for image inpainting"), as its students have them.

The course gives all of the VQGAN and most of the transformer. The attention is the student's own, so its layers have
any name, and some have no bias: theirs is zero here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgit.config import TransformerConfig
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.vqgans import Half, build_vqgan
from maskgit.convert.weights import Weights, some
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

NORM_EPS = 1e-12
DROPOUT = 0.1

# --- VQGAN ------------------------------------------------------------------------------------------------------------


def read_vqgan(weights: Weights, hints: Hints) -> VQGAN:
    """The VQGAN: two lists of layers, numbered as they run."""
    weights.move("codebook.weight", "codebook.embedding.weight")
    weights.layer("quant_conv", "quant_conv")
    weights.layer("post_quant_conv", "post_quant_conv")
    latent_channels = weights.shape("quant_conv.weight", 4)[1]
    stem_channels = weights.shape("encoder.model.0.weight", 4)[0]

    encoder = Half("encoder", stem_channels)
    first, *inner, norm, last = _layers(weights, "encoder")
    weights.layer(encoder.layer(), first)
    for name in inner[:-3]:
        _stage_layer(weights, encoder, name)
    _middle(weights, encoder, inner[-3:])
    weights.layer(encoder.layer(), f"{norm}.gn")
    encoder.layer()  # the activation
    weights.layer(encoder.layer(), last)

    first, *inner, norm, last = _layers(weights, "decoder")
    decoder = Half("decoder", weights.shape(f"{first}.weight", 4)[0])
    weights.layer(decoder.layer(), first)
    _middle(weights, decoder, inner[:3])
    for name in inner[3:]:
        _stage_layer(weights, decoder, name)
    weights.layer(decoder.layer(), f"{norm}.gn")
    decoder.layer()  # nothing in its place
    weights.layer(decoder.layer(), last)
    return build_vqgan(
        weights,
        hints,
        encoder,
        decoder,
        latent_channels=latent_channels,
        stem_channels=stem_channels,
        output_activation=False,
        unit_pixels=hints.unit_pixels,
    )


def _layers(weights: Weights, half: str) -> list[str]:
    """Names of the layers that have weights, in the order in which they run."""
    prefix = f"{half}.model."
    numbers = {name.partition(".")[0] for name in weights.names(prefix)}
    if not all(number.isdecimal() for number in numbers):
        raise ConvertError(f"the layers of {half}.model aren't all numbered: {', '.join(sorted(numbers))}")
    if len(numbers) < 7:
        raise ConvertError(f"{half}.model has {len(numbers)} layers; the lab's has a dozen at least")
    return [f"{prefix}{number}" for number in sorted(numbers, key=int)]


def _stage_layer(weights: Weights, half: Half, theirs: str) -> None:
    if f"{theirs}.block.5.weight" in weights:
        _block(weights, half.block(weights.shape(f"{theirs}.block.5.weight", 4)[0]), theirs)
    elif f"{theirs}.q.weight" in weights:
        _attention(weights, half.attention(), theirs)
    else:
        weights.layer(f"{half.resample()}.conv", f"{theirs}.conv")


def _middle(weights: Weights, half: Half, theirs: Sequence[str]) -> None:
    first, attention, last = theirs
    _block(weights, half.layer(), first)
    _attention(weights, half.layer(), attention)
    _block(weights, half.layer(), last)


def _block(weights: Weights, ours: str, theirs: str) -> None:
    for our_part, part in (("norm1", "0.gn"), ("conv1", "2"), ("norm2", "3.gn"), ("conv2", "5")):
        weights.layer(f"{ours}.{our_part}", f"{theirs}.block.{part}")
    if f"{theirs}.channel_up.weight" in weights:
        weights.layer(f"{ours}.shortcut", f"{theirs}.channel_up")


def _attention(weights: Weights, ours: str, theirs: str) -> None:
    for our_part, part in (("norm", "norm.gn"), ("q", "q"), ("k", "k"), ("v", "v"), ("proj", "proj_out")):
        weights.layer(f"{ours}.{our_part}", f"{theirs}.{part}")


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
    num_tokens = weights.shape("pos_emb", 2)[0]
    depth = weights.count("blocks.")
    mlp_dim = weights.shape("blocks.0.MLP.0.weight", 2)[0]
    if rows != codebook_size + 1:
        raise ConvertError(f"it has {rows - 1} codes and a mask token, but the tokenizer has {codebook_size} codes")
    weights.move("token_embedding.weight", "tok_emb.weight")
    weights.move("position_embedding", "pos_emb")
    weights.put("bias", weights.take("bias", num_tokens, rows)[:, :codebook_size], "bias")  # less the mask token
    weights.layer("embedding_norm", "LN")
    for number in range(1, depth):
        differing = set(weights.names("blocks.0.")) ^ set(weights.names(f"blocks.{number}."))
        if differing:
            raise ConvertError(f"blocks.0 and blocks.{number} differ in {some(differing)}")
    attention = find_projections(weights, hints, dim, "blocks.0.Attention.")
    heads = attention.heads or hints.heads_for(dim)
    if hints.heads not in (None, heads):
        raise ConvertError(f"it has {heads} heads, not {hints.heads}")
    for number in range(depth):
        block = f"blocks.{number}"
        _attention_layers(weights, attention, hints, heads, f"{block}.attention", f"{block}.Attention.")
        weights.layer(f"{block}.norm1", f"{block}.LayerNorm1")
        weights.layer(f"{block}.norm2", f"{block}.LayerNorm2")
        weights.layer(f"{block}.mlp.0", f"{block}.MLP.0")
        weights.layer(f"{block}.mlp.2", f"{block}.MLP.2")
    weights.layer("head.0", "Token_Prediction.0")
    weights.layer("head.2", "Token_Prediction.2")
    if attention.heads is None and hints.heads is None:
        weights.notes.append(f"the file doesn't tell the number of heads: {heads} assumed (--heads)")
    if len(attention.inputs) == 1 and hints.packing == "qkv":
        weights.notes.append("its packed projection is taken as all queries, all keys, all values (--packing)")
    return weights.build(
        lambda: Transformer(
            TransformerConfig(
                codebook_size=codebook_size,
                num_tokens=num_tokens,
                dim=dim,
                depth=depth,
                heads=heads,
                mlp_dim=mlp_dim,
                dropout=DROPOUT,
                attention_dropout=DROPOUT,
                norm="post",
                norm_eps=NORM_EPS,
            )
        )
    )


def find_projections(weights: Weights, hints: Hints, dim: int, prefix: str) -> Projections:
    """Find out what each layer of an attention does, from its shape and name.

    Args:
        dim: width of the transformer.
        prefix: what the names of the attention's tensors start with.

    Raises:
        ConvertError: shapes and names don't tell.
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


def _attention_layers(
    weights: Weights, attention: Projections, hints: Hints, heads: int, ours: str, theirs: str
) -> None:
    parts = [_weight_and_bias(weights, f"{theirs}{name}") for name in attention.inputs]
    weight, bias = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if len(parts) == 1 and hints.packing == "heads":
        weight, bias = (_untangle(tensor, heads) for tensor in (weight, bias))
    weights.put(f"{ours}.qkv.weight", weight, f"{theirs}{attention.inputs[0]}weight")
    weights.put(f"{ours}.qkv.bias", bias, f"{theirs}{attention.inputs[0]}bias")
    weight, bias = _weight_and_bias(weights, f"{theirs}{attention.output}")
    weights.put(f"{ours}.proj.weight", weight, f"{theirs}{attention.output}weight")
    weights.put(f"{ours}.proj.bias", bias, f"{theirs}{attention.output}bias")


def _weight_and_bias(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    dim = weights.placed("token_embedding.weight", 2)[1]
    weight = weights.take(f"{name}weight", None, dim)
    if f"{name}bias" not in weights:
        return weight, torch.zeros(len(weight))
    return weight, weights.take(f"{name}bias", len(weight))


def _untangle(tensor: Tensor, heads: int) -> Tensor:
    """Rows (head, q/k/v, channel) -> rows (q/k/v, head, channel)."""
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
