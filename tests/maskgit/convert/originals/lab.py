"""The course lab's VQGAN and transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from originals.parts import (
    Maker,
    Tokenizer,
    Transformer,
    attend,
    conv,
    downsample,
    gelu,
    group_norm,
    layer_norm,
    linear,
    looked_up,
    nearest,
    quantizer,
    residual,
    spatial_attention,
    swish,
    upsample,
)


def lab_vqgan() -> Tokenizer:
    """Blocks, attention behind a block, two resamplings, a change of width in both directions."""
    encoder = ["res 32 32", "down 32", "res 32 64", "attn 64", "res 64 64", "attn 64", "down 64"]
    encoder += ["res 64 64", "attn 64", "res 64 64"]
    decoder = ["res 64 64", "attn 64", "res 64 64"]
    decoder += ["res 64 64", "up 64", "res 64 32", "up 32", "res 32 32", "res 32 32"]
    make = Maker()

    def half(name: str, layers: list[str], inputs: int, outputs: int) -> None:
        first, last = int(layers[0].split()[1]), int(layers[-1].split()[-1])
        make.layer(f"{name}.model.0", inputs, first, 3, 3)
        for number, layer in enumerate(layers, 1):
            kind, width, *wider = layer.split()
            here, a = f"{name}.model.{number}", int(width)
            if kind == "res":
                b = int(wider[0])
                make.norm(f"{here}.block.0.gn", a)
                make.layer(f"{here}.block.2", a, b, 3, 3)
                make.norm(f"{here}.block.3.gn", b)
                make.layer(f"{here}.block.5", b, b, 3, 3)
                if a != b:
                    make.layer(f"{here}.channel_up", a, b, 1, 1)
            elif kind == "attn":
                make.norm(f"{here}.norm.gn", a)
                for part in ("q", "k", "v", "proj_out"):
                    make.layer(f"{here}.{part}", a, a, 1, 1)
            else:
                make.layer(f"{here}.conv", a, a, 3, 3)
        number = len(layers) + 1
        make.norm(f"{name}.model.{number}.gn", last)
        # The encoder has an activation here, which has no weights but a number; the decoder has none.
        make.layer(f"{name}.model.{number + 1 + (name == 'encoder')}", last, outputs, 3, 3)

    half("encoder", encoder, 3, 16)
    half("decoder", decoder, 16, 3)
    quantizer(make, "codebook.embedding.weight", 16)
    t = make.tensors

    def run(name: str, layers: list[str], x: Tensor) -> Tensor:
        x = conv(t, f"{name}.model.0", x)
        for number, layer in enumerate(layers, 1):
            here = f"{name}.model.{number}"
            if layer.startswith("res"):
                parts = [f"{here}.block.{part}" for part in ("0.gn", "2", "3.gn", "5")]
                x = residual(t, x, *parts, f"{here}.channel_up")
            elif layer.startswith("attn"):
                x = spatial_attention(t, x, here, "norm.gn")
            else:
                x = (downsample if layer.startswith("down") else upsample)(t, f"{here}.conv", x)
        x = group_norm(t, f"{name}.model.{len(layers) + 1}.gn", x)
        if name == "encoder":
            return conv(t, f"{name}.model.{len(layers) + 3}", swish(x))
        return conv(t, f"{name}.model.{len(layers) + 2}", x)

    codes = t["codebook.embedding.weight"]
    return Tokenizer(
        t,
        lambda images: nearest(conv(t, "quant_conv", run("encoder", encoder, images)), codes),
        lambda tokens: run("decoder", decoder, conv(t, "post_quant_conv", looked_up(tokens, codes))),
    )


def lab_transformer(
    names: dict[str, str] | None = None, bias: bool = True, heads: int = 2, dim: int = 32
) -> Transformer:
    """The transformer, the attention's layers called as `names` says: q, k, v, out, or qkv and out."""
    names = names or {"qkv": "qkv", "out": "proj"}
    make = Maker()
    make.matrix("pos_emb", dim, 16)
    make.matrix("bias", 17, 16)
    make.matrix("tok_emb.weight", dim, 17)
    make.norm("LN", dim)
    make.layer("Token_Prediction.0", dim, dim)
    make.norm("Token_Prediction.2", dim)
    layers = []  # their attention: query, key, value and output, weight and bias
    for number in range(2):
        block = f"blocks.{number}"
        attention = Maker()
        for part in ("q", "k", "v", "out"):
            attention.layer(part, dim, dim)
            if not bias:
                attention.tensors[f"{part}.bias"].zero_()
        layers.append(attention.tensors)
        for part, name in names.items():
            for what in ("weight", "bias") if bias else ("weight",):
                pieces = [attention.tensors[f"{piece}.{what}"] for piece in (part if part == "qkv" else [part])]
                separator = "" if name.endswith("_") else "."
                if "{}" in name:
                    for head, rows in enumerate(pieces[0].chunk(heads)):
                        make.tensors[f"{block}.Attention.{name.format(head)}.{what}"] = rows.clone()
                else:
                    make.tensors[f"{block}.Attention.{name}{separator}{what}"] = torch.cat(pieces)
        make.norm(f"{block}.LayerNorm1", dim)
        make.norm(f"{block}.LayerNorm2", dim)
        make.layer(f"{block}.MLP.0", dim, 48)
        make.layer(f"{block}.MLP.2", 48, dim)
    t = make.tensors

    def logits(tokens: Tensor, labels: Tensor | None) -> Tensor:
        x = layer_norm(t, "LN", t["tok_emb.weight"][tokens] + t["pos_emb"])
        for number, attention in enumerate(layers):
            block = f"blocks.{number}"
            q, k, v = (linear(attention, part, x) for part in "qkv")
            x = layer_norm(t, f"{block}.LayerNorm1", x + linear(attention, "out", attend(q, k, v, heads)))
            hidden = linear(t, f"{block}.MLP.2", gelu(linear(t, f"{block}.MLP.0", x)))
            x = layer_norm(t, f"{block}.LayerNorm2", x + hidden)
        x = layer_norm(t, "Token_Prediction.2", gelu(linear(t, "Token_Prediction.0", x)))
        return (x @ t["tok_emb.weight"].T + t["bias"])[..., :16]

    return Transformer(t, logits, hints={"heads": heads})
