"""valeo.ai's two transformers: Besnier and Chen's reproduction of MaskGIT (2023), and Halton-MaskGIT (ICLR 2025)."""

from __future__ import annotations

import torch

from maskgit.config import HaltonConfig, TransformerConfig
from maskgit.convert.hints import USUAL_HEADS, Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.weights import Weights
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer

DROPOUT = 0.1
HALTON_HEADS = {384: 6, 512: 8, 768: 12}
"""Heads by width of Halton-MaskGIT's smaller sizes; the larger ones have the usual 16."""


def read_maskgit(weights: Weights, hints: Hints, codebook_size: int) -> Transformer:
    """The transformer of 2023: pre-norm, an MLP behind the embeddings, one table for codes and classes.

    The rows of that table are the codes, the mask token, the classes and "no class": only with the codebook's size is
    the number of classes known.
    """
    rows, dim = weights.shape("tok_emb.weight", 2)
    num_tokens = weights.shape("pos_emb", 3)[1] - 1
    num_classes = rows - codebook_size - 2
    depth = weights.count("transformer.layers.")
    mlp_dim = weights.shape("transformer.layers.0.1.fn.net.0.weight", 2)[0]
    heads = hints.heads_for(dim)
    if num_classes < 1:
        raise ConvertError(
            f"{rows} embeddings are too few for the tokenizer's {codebook_size} codes, a mask and classes"
        )
    weights.move("token_embedding.weight", "tok_emb.weight")
    weights.put("position_embedding", weights.take("pos_emb", 1, None, None)[0], "pos_emb")
    # Scores of the mask token and the classes, and those at the class token's place, are never used.
    weights.put("bias", weights.take("bias", num_tokens + 1, rows)[:num_tokens, :codebook_size], "bias")
    for ours, number in (("embedding_norm", 0), ("input_mlp.0", 2), ("input_mlp.2", 4), ("input_mlp.4", 6)):
        weights.layer(ours, f"first_layer.{number}")
    for number in range(depth):
        ours, theirs = f"blocks.{number}", f"transformer.layers.{number}"
        weights.layer(f"{ours}.norm1", f"{theirs}.0.norm")
        weights.move(f"{ours}.attention.qkv.weight", f"{theirs}.0.fn.mha.in_proj_weight")
        weights.move(f"{ours}.attention.qkv.bias", f"{theirs}.0.fn.mha.in_proj_bias")
        weights.layer(f"{ours}.attention.proj", f"{theirs}.0.fn.mha.out_proj")
        weights.layer(f"{ours}.norm2", f"{theirs}.1.norm")
        weights.layer(f"{ours}.mlp.0", f"{theirs}.1.fn.net.0")
        weights.layer(f"{ours}.mlp.2", f"{theirs}.1.fn.net.3")
    for ours, number in (("final_norm", 0), ("head.0", 2), ("head.2", 4)):
        weights.layer(ours, f"last_layer.{number}")
    _note_heads(weights, hints, heads)
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
                num_classes=num_classes,
                input_mlp=True,
            )
        )
    )


def read_halton(weights: Weights, hints: Hints, codebook_size: int) -> HaltonTransformer:
    """The transformer of 2025. Its output is tied to the embedding, yet stored a second time."""
    rows, dim = weights.shape("tok_emb.weight", 2)
    depth = weights.count("transformer.layers.")
    num_tokens = weights.shape("pos_emb.weight", 2)[0]
    num_classes = weights.shape("cls_emb.weight", 2)[0] - 1
    mlp_dim = weights.shape("transformer.layers.0.ff.w1.weight", 2)[0]
    heads = hints.heads_for(dim, HALTON_HEADS.get(dim, USUAL_HEADS))
    registers = weights.shape("reg_tokens.weight", 2)[0] if "reg_tokens.weight" in weights else 0
    if rows != codebook_size + 1:
        raise ConvertError(f"it has {rows - 1} codes and a mask token, but the tokenizer has {codebook_size} codes")
    if not torch.equal(weights.take("tok_emb.weight"), weights.take("head.weight")):
        raise ConvertError("head.weight isn't tok_emb.weight, which it shares in this system")
    weights.move("token_embedding.weight", "tok_emb.weight")
    weights.move("class_embedding.weight", "cls_emb.weight")
    weights.move("position_embedding", "pos_emb.weight")
    if registers:
        weights.move("registers", "reg_tokens.weight")
    else:
        weights.put("registers", torch.empty(0, dim), "reg_tokens.weight")
    for number in range(depth):
        ours, theirs = f"blocks.{number}", f"transformer.layers.{number}"
        weights.layer(f"{ours}.modulation.1", f"{theirs}.mlp.1")
        weights.move(f"{ours}.norm1.weight", f"{theirs}.ln1.weight")
        packed = torch.cat([weights.take(f"{theirs}.attn.{name}.weight", dim, dim) for name in ("wq", "wk", "wv")])
        weights.put(f"{ours}.attention.qkv.weight", packed, f"{theirs}.attn.wq.weight")
        weights.move(f"{ours}.attention.proj.weight", f"{theirs}.attn.wo.weight")
        weights.move(f"{ours}.norm2.weight", f"{theirs}.ln2.weight")
        for our_part, part in (("gate", "w1"), ("out", "w2"), ("value", "w3")):
            weights.move(f"{ours}.mlp.{our_part}.weight", f"{theirs}.ff.{part}.weight")
    weights.move("final_norm.weight", "last_norm.norm_final.weight")
    weights.move("final_norm_bias", "last_norm.norm_final.bias")
    weights.layer("final_modulation.1", "last_norm.mlp.1")
    weights.put("bias", weights.take("head.bias", rows)[:codebook_size], "head.bias")  # less the mask token
    _note_heads(weights, hints, heads)
    return weights.build(
        lambda: HaltonTransformer(
            HaltonConfig(
                codebook_size=codebook_size,
                num_tokens=num_tokens,
                dim=dim,
                depth=depth,
                heads=heads,
                mlp_dim=mlp_dim,
                dropout=DROPOUT,
                attention_dropout=DROPOUT,
                num_classes=num_classes,
                registers=registers,
            )
        )
    )


def _note_heads(weights: Weights, hints: Hints, heads: int) -> None:
    if hints.heads is None:
        weights.notes.append(f"the file doesn't tell the number of heads: {heads} assumed (--heads)")
