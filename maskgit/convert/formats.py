"""The systems whose checkpoints are known, and how to tell them from the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from maskgit.config import some
from maskgit.convert import google, lab, taming, valeo
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.weights import Weights
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN


class TokenizerFormat(NamedTuple):
    """A kind of tokenizer."""

    system: str
    landmark: str
    """The name of a tensor that only this kind has."""
    read: Callable[[Weights, Hints], VQGAN]
    names: tuple[tuple[str, str], ...] = ()
    """Patterns in its names and their replacements, applied in order before it is read."""


class TransformerFormat(NamedTuple):
    """A kind of transformer."""

    system: str
    landmark: str
    """The name of a tensor that only this kind has."""
    read: Callable[[Weights, Hints, int], Transformer | HaltonTransformer]
    """Given the tokenizer's number of codes."""


Format = TokenizerFormat | TransformerFormat

FORMATS: tuple[Format, ...] = (
    TokenizerFormat("course lab", "codebook.embedding.weight", lab.read_vqgan),
    TransformerFormat("course lab", "blocks.0.LayerNorm1.weight", lab.read_transformer),
    TokenizerFormat("taming-transformers", "encoder.down.0.block.0.conv1.weight", taming.read_taming),
    TransformerFormat("valeo.ai MaskGIT", "transformer.layers.0.0.fn.mha.in_proj_weight", valeo.read_maskgit),
    TokenizerFormat(
        "LlamaGen", "encoder.conv_blocks.0.res.0.conv1.weight", taming.read_llamagen, taming.LLAMAGEN_NAMES
    ),
    TransformerFormat("Halton-MaskGIT", "transformer.layers.0.attn.wq.weight", valeo.read_halton),
    TokenizerFormat("google-research MaskGIT", "encoder.ResBlock_0.Conv_0.kernel", google.read_tokenizer),
    TransformerFormat(
        "google-research MaskGIT",
        "TransformerLayer_0.Attention_0.self_attention.query.kernel",
        google.read_transformer,
    ),
    TokenizerFormat(
        "diffusers VQModel",
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        taming.read_diffusers,
        taming.DIFFUSERS_NAMES,
    ),
)


def find_parts(tensors: Mapping[str, Tensor]) -> list[tuple[Format, Weights]]:
    """The networks in a checkpoint, each with its own tensors.

    A network's names may stand below any prefix ("state_dict.", "module.", "vqgan."), as long as all of them do. Raises
    ConvertError: there is none that is known, or the same one more than once.
    """
    found: list[tuple[Format, Weights]] = []
    for kind in FORMATS:
        prefixes = [name.removesuffix(kind.landmark) for name in tensors if f".{name}".endswith(f".{kind.landmark}")]
        if len(prefixes) > 1:
            raise ConvertError(
                f"several sets of weights of one kind ({some(prefixes)}): save the one that you want by itself"
            )
        rules = kind.names if isinstance(kind, TokenizerFormat) else ()
        for prefix in prefixes:
            own = {name: _replace(name.removeprefix(prefix), rules) for name in tensors if name.startswith(prefix)}
            if len(set(own.values())) < len(own):
                raise ConvertError(f"two tensors have names that mean the same in {kind.system}")
            found.append((kind, Weights({new: tensors[name] for name, new in own.items()})))
    if not found:
        known = ", ".join(dict.fromkeys(kind.system for kind in FORMATS))
        content = f"its {len(tensors)} tensors start with {some(tensors)}" if tensors else "it holds no tensors"
        raise ConvertError(f"not a checkpoint of a system that is known ({known}): {content}")
    return found


def _replace(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
