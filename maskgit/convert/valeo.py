"""valeo.ai's two transformers: Besnier and Chen's reproduction of MaskGIT (2023), and Halton-MaskGIT (ICLR 2025)."""

from __future__ import annotations

from typing import Any

import torch

from maskgit.config import HaltonConfig
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.transformers import (
    DROPOUT,
    USUAL_HEADS,
    build_transformer,
    count_heads,
    require_classes,
    require_codes,
)
from maskgit.convert.weights import Weights
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer

HALTON_HEADS = {384: 6, 512: 8, 768: 12}
"""Heads by width of Halton-MaskGIT's smaller sizes; the larger ones have the usual 16."""


def read_maskgit(weights: Weights, hints: Hints, codebook_size: int) -> Transformer:
    """The transformer of 2023: pre-norm, an MLP behind the embeddings, one table for codes and classes.

    The rows of that table are the codes, the mask token, the classes and "no class": only with the codebook's size is
    the number of classes known.
    """
    rows, dim = weights.shape("tok_emb.weight", 2)
    num_tokens = weights.shape("pos_emb", 3)[1] - 1
    depth = weights.count("transformer.layers.")
    heads = count_heads(weights, hints, dim)
    require_classes(rows, codebook_size, 2)
    weights.move("token_embedding.weight", "tok_emb.weight")
    weights.put("position_embedding", weights.take("pos_emb", 1, None, None)[0], "pos_emb")
    # Scores of the mask token and the classes, and those at the class token's place, are never used.
    weights.put("bias", weights.take("bias", num_tokens + 1, rows)[:num_tokens, :codebook_size], "bias")
    weights.layers(
        {"embedding_norm": "0", "input_mlp.0": "2", "input_mlp.2": "4", "input_mlp.4": "6"}, "", "first_layer."
    )
    for number in range(depth):
        ours, theirs = f"blocks.{number}.", f"transformer.layers.{number}."
        weights.layers({"norm1": "0.norm", "attention.proj": "0.fn.mha.out_proj"}, ours, theirs)
        weights.move(f"{ours}attention.qkv.weight", f"{theirs}0.fn.mha.in_proj_weight")
        weights.move(f"{ours}attention.qkv.bias", f"{theirs}0.fn.mha.in_proj_bias")
        weights.layers({"norm2": "1.norm", "mlp.0": "1.fn.net.0", "mlp.2": "1.fn.net.3"}, ours, theirs)
    weights.layers({"final_norm": "0", "head.0": "2", "head.2": "4"}, theirs="last_layer.")
    return build_transformer(weights, codebook_size, depth, heads, input_mlp=True)


def read_halton(weights: Weights, hints: Hints, codebook_size: int) -> HaltonTransformer:
    """The transformer of 2025. Its output is tied to the embedding, yet stored a second time."""
    rows, dim = weights.shape("tok_emb.weight", 2)
    require_codes(rows, codebook_size)
    if not torch.equal(weights.take("tok_emb.weight"), weights.take("head.weight")):
        raise ConvertError("head.weight isn't tok_emb.weight, which it shares in this system")
    sizes: dict[str, Any] = {
        "codebook_size": codebook_size,
        "num_tokens": weights.shape("pos_emb.weight", 2)[0],
        "dim": dim,
        "depth": weights.count("transformer.layers."),
        "heads": count_heads(weights, hints, dim, usual=HALTON_HEADS.get(dim, USUAL_HEADS)),
        "mlp_dim": weights.shape("transformer.layers.0.ff.w1.weight", 2)[0],
        "num_classes": weights.shape("cls_emb.weight", 2)[0] - 1,
        "registers": weights.shape("reg_tokens.weight", 2)[0] if "reg_tokens.weight" in weights else 0,
    }
    registers = weights.take("reg_tokens.weight") if sizes["registers"] else torch.empty(0, dim)
    weights.put("registers", registers, "reg_tokens.weight")
    weights.put("bias", weights.take("head.bias", rows)[:codebook_size], "head.bias")  # less the mask token
    weights.move("position_embedding", "pos_emb.weight")
    weights.move("final_norm_bias", "last_norm.norm_final.bias")
    tables = {"token_embedding": "tok_emb", "class_embedding": "cls_emb", "final_norm": "last_norm.norm_final"}
    weights.layers(tables, parts=("weight",))
    weights.layer("final_modulation.1", "last_norm.mlp.1")
    for number in range(sizes["depth"]):
        ours, theirs = f"blocks.{number}.", f"transformer.layers.{number}."
        weights.layer(f"{ours}modulation.1", f"{theirs}mlp.1")
        packed = torch.cat([weights.take(f"{theirs}attn.{name}.weight", dim, dim) for name in ("wq", "wk", "wv")])
        weights.put(f"{ours}attention.qkv.weight", packed, f"{theirs}attn.wq.weight")
        layers = {"norm1": "ln1", "attention.proj": "attn.wo", "norm2": "ln2"}
        swiglu = {"mlp.gate": "ff.w1", "mlp.out": "ff.w2", "mlp.value": "ff.w3"}
        weights.layers(layers | swiglu, ours, theirs, parts=("weight",))
    return weights.build(lambda: HaltonTransformer(HaltonConfig(dropout=DROPOUT, attention_dropout=DROPOUT, **sizes)))
