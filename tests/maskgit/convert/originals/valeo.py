"""valeo.ai's MaskGIT and Halton-MaskGIT."""

from __future__ import annotations

import torch
from torch import Tensor

from originals.parts import Maker, Transformer, attend, gelu, layer_norm, linear, swish


def valeo_maskgit() -> Transformer:
    """16 codes, mask, 3 classes, no class: 21 embeddings; the class token is the last of 17."""
    make = Maker()
    make.matrix("tok_emb.weight", 32, 21)
    make.tensors["pos_emb"] = torch.randn(1, 17, 32)
    make.matrix("bias", 21, 17)
    for name, shape in (("first_layer", (0, 2, 4, 6)), ("last_layer", (0, 2, 4))):
        for number in shape:
            make.norm(f"{name}.{number}", 32) if number % 4 == 0 else make.layer(f"{name}.{number}", 32, 32)
    for number in range(3):
        layer = f"transformer.layers.{number}"
        make.norm(f"{layer}.0.norm", 32)
        make.matrix(f"{layer}.0.fn.mha.in_proj_weight", 32, 96)
        make.vector(f"{layer}.0.fn.mha.in_proj_bias", 96)
        make.layer(f"{layer}.0.fn.mha.out_proj", 32, 32)
        make.norm(f"{layer}.1.norm", 32)
        make.layer(f"{layer}.1.fn.net.0", 32, 48)
        make.layer(f"{layer}.1.fn.net.3", 48, 32)
    t = make.tensors

    def logits(tokens: Tensor, labels: Tensor | None) -> Tensor:
        label = torch.full((len(tokens),), 3) if labels is None else labels
        x = t["tok_emb.weight"][torch.cat([tokens, 17 + label[:, None]], 1)] + t["pos_emb"]
        x = gelu(linear(t, "first_layer.2", layer_norm(t, "first_layer.0", x)))
        x = linear(t, "first_layer.6", layer_norm(t, "first_layer.4", x))
        for number in range(3):
            layer = f"transformer.layers.{number}"
            normed = layer_norm(t, f"{layer}.0.norm", x, 1e-5)
            packed = normed @ t[f"{layer}.0.fn.mha.in_proj_weight"].T + t[f"{layer}.0.fn.mha.in_proj_bias"]
            x = x + linear(t, f"{layer}.0.fn.mha.out_proj", attend(*packed.chunk(3, -1), 4))
            hidden = gelu(linear(t, f"{layer}.1.fn.net.0", layer_norm(t, f"{layer}.1.norm", x, 1e-5)))
            x = x + linear(t, f"{layer}.1.fn.net.3", hidden)
        x = gelu(linear(t, "last_layer.2", layer_norm(t, "last_layer.0", x)))
        x = layer_norm(t, "last_layer.4", x)
        return (x @ t["tok_emb.weight"].T + t["bias"])[:, :16, :16]

    return Transformer(t, logits, 3, {"heads": 4})


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def halton(registers: int = 2) -> Transformer:
    """Shift and scale by the class, QK norm over all heads, SwiGLU."""
    make = Maker()
    make.matrix("cls_emb.weight", 32, 4)
    make.matrix("tok_emb.weight", 32, 17)
    make.matrix("pos_emb.weight", 32, 16)
    for number in range(2):
        layer = f"transformer.layers.{number}"
        make.layer(f"{layer}.mlp.1", 32, 192)
        make.vector(f"{layer}.ln1.weight", 32, 1.0)
        for part in ("wq", "wk", "wv", "wo"):
            make.layer(f"{layer}.attn.{part}", 32, 32, bias=False)
        make.vector(f"{layer}.ln2.weight", 32, 1.0)
        for part, inputs, outputs in (("w1", 32, 40), ("w2", 40, 32), ("w3", 32, 40)):
            make.layer(f"{layer}.ff.{part}", inputs, outputs, bias=False)
    make.norm("last_norm.norm_final", 32)
    make.layer("last_norm.mlp.1", 32, 64)
    make.vector("head.bias", 17)
    make.tensors["head.weight"] = make.tensors["tok_emb.weight"]
    if registers:
        make.matrix("reg_tokens.weight", 32, registers)
    t = make.tensors

    def logits(tokens: Tensor, labels: Tensor | None) -> Tensor:
        label = torch.full((len(tokens),), 3) if labels is None else labels
        condition = swish(t["cls_emb.weight"][label])[:, None]  # [B, 1, 32]
        x = t["tok_emb.weight"][tokens] + t["pos_emb.weight"]
        if registers:
            x = torch.cat([x, t["reg_tokens.weight"].repeat(len(x), 1, 1)], 1)
        for number in range(2):
            layer = f"transformer.layers.{number}"
            shift1, scale1, gate1, shift2, scale2, gate2 = linear(t, f"{layer}.mlp.1", condition).chunk(6, -1)
            normed = rms(x) * t[f"{layer}.ln1.weight"] * (1 + scale1) + shift1
            q, k, v = (linear(t, f"{layer}.attn.{part}", normed) for part in ("wq", "wk", "wv"))
            x = x + gate1 * linear(t, f"{layer}.attn.wo", attend(rms(q), rms(k), v, 2))
            normed = rms(x) * t[f"{layer}.ln2.weight"] * (1 + scale2) + shift2
            hidden = swish(linear(t, f"{layer}.ff.w1", normed)) * linear(t, f"{layer}.ff.w3", normed)
            x = x + gate2 * linear(t, f"{layer}.ff.w2", hidden)
        shift, scale = linear(t, "last_norm.mlp.1", condition).chunk(2, -1)
        x = rms(x) * t["last_norm.norm_final.weight"] + t["last_norm.norm_final.bias"]
        x = x * (1 + scale) + shift
        return linear(t, "head", x)[:, :16, :16]

    return Transformer(t, logits, 3, {"heads": 2})
