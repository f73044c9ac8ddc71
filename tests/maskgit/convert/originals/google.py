"""google-research's tokenizer and transformer, as flax has them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from originals.parts import (
    Maker,
    Tokenizer,
    Transformer,
    conv,
    gelu_by_tanh,
    group_norm,
    layer_norm,
    looked_up,
    nearest,
    swish,
    upsample,
)


class FlaxMaker(Maker):
    """Random layers as flax has them: output channels last, "kernel" and "scale"."""

    def kernel(self, name: str, inputs: int, outputs: int, *kernel: int, bias: bool = True) -> None:
        self.tensors[f"{name}.kernel"] = torch.randn(*kernel, inputs, outputs) / math.sqrt(inputs * math.prod(kernel))
        if bias:
            self.vector(f"{name}.bias", outputs)

    def norm(self, name: str, size: int) -> None:
        self.vector(f"{name}.scale", size, 1.0)
        self.vector(f"{name}.bias", size)


def google_tokenizer(blocks: int = 2) -> Tokenizer:
    """Three levels of `blocks` blocks and as many at the bottom; no attention."""
    make = FlaxMaker()
    widths = (32, 32, 64)

    def res(name: str, inputs: int, outputs: int) -> None:
        make.norm(f"{name}.GroupNorm_0", inputs)
        make.kernel(f"{name}.Conv_0", inputs, outputs, 3, 3, bias=False)
        make.norm(f"{name}.GroupNorm_1", outputs)
        make.kernel(f"{name}.Conv_1", outputs, outputs, 3, 3, bias=False)
        if inputs != outputs:
            make.kernel(f"{name}.Conv_2", outputs, outputs, 1, 1, bias=False)

    make.kernel("encoder.Conv_0", 3, 32, 3, 3, bias=False)
    ins = [32, *(width for width in widths for _ in range(blocks)), *[64] * blocks]
    for number in range(4 * blocks):
        res(f"encoder.ResBlock_{number}", ins[number], ins[number + 1])
    make.norm("encoder.GroupNorm_0", 64)
    make.kernel("encoder.Conv_1", 64, 8, 1, 1)
    make.tensors["quantizer.codebook"] = torch.randn(24, 8)
    make.kernel("decoder.Conv_0", 8, 64, 3, 3)
    outs = [64] * (blocks + 1) + [width for width in reversed(widths) for _ in range(blocks)]
    for number in range(4 * blocks):
        res(f"decoder.ResBlock_{number}", outs[number], outs[number + 1])
    make.kernel("decoder.Conv_1", 64, 64, 3, 3)
    make.kernel("decoder.Conv_2", 32, 32, 3, 3)
    make.norm("decoder.GroupNorm_0", 32)
    make.kernel("decoder.Conv_3", 32, 3, 3, 3)
    # Sorted as strings, as flax does: ResBlock_10 before ResBlock_2.
    t = {name: make.tensors[name] for name in sorted(make.tensors)}
    torch_names = {name.replace(".kernel", ".weight").replace(".scale", ".weight"): name for name in t}
    u = {new: t[name].permute(3, 2, 0, 1) if t[name].ndim == 4 else t[name] for new, name in torch_names.items()}

    def block(name: str, x: Tensor) -> Tensor:
        h = conv(u, f"{name}.Conv_0", swish(group_norm(u, f"{name}.GroupNorm_0", x)))
        h = conv(u, f"{name}.Conv_1", swish(group_norm(u, f"{name}.GroupNorm_1", h)))
        return h + (conv(u, f"{name}.Conv_2", h) if f"{name}.Conv_2.weight" in u else x)

    def latents(images: Tensor) -> Tensor:
        x = conv(u, "encoder.Conv_0", (images + 1) / 2)
        for number in range(4 * blocks):
            if number in (blocks, 2 * blocks):
                x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
            x = block(f"encoder.ResBlock_{number}", x)
        return conv(u, "encoder.Conv_1", swish(group_norm(u, "encoder.GroupNorm_0", x)))

    def pixels(x: Tensor) -> Tensor:
        x = conv(u, "decoder.Conv_0", x)
        for number in range(4 * blocks):
            if number in (2 * blocks, 3 * blocks):
                x = upsample(u, f"decoder.Conv_{number // blocks - 1}", x)
            x = block(f"decoder.ResBlock_{number}", x)
        return 2 * conv(u, "decoder.Conv_3", swish(group_norm(u, "decoder.GroupNorm_0", x))) - 1

    codes = t["quantizer.codebook"]
    return Tokenizer(
        t,
        lambda images: nearest(latents(images), codes),
        lambda tokens: pixels(looked_up(tokens, codes)),
    )


def google_transformer() -> Transformer:
    """16 codes, 3 classes, mask: 20 embeddings; the class token is the first of 17."""
    make = FlaxMaker()
    make.tensors["Embed_0.word_embeddings.embedding"] = torch.randn(20, 32)
    make.tensors["Embed_0.position_embeddings.embedding"] = torch.randn(17, 32)
    make.norm("Embed_0.embeddings_ln", 32)
    for number in range(2):
        layer = f"TransformerLayer_{number}"
        for part in ("query", "key", "value"):
            make.tensors[f"{layer}.Attention_0.self_attention.{part}.kernel"] = torch.randn(32, 4, 8) / math.sqrt(32)
            make.tensors[f"{layer}.Attention_0.self_attention.{part}.bias"] = 0.2 * torch.randn(4, 8)
        make.tensors[f"{layer}.Attention_0.self_attention.out.kernel"] = torch.randn(4, 8, 32) / math.sqrt(32)
        make.vector(f"{layer}.Attention_0.self_attention.out.bias", 32)
        make.norm(f"{layer}.Attention_0.attention_output_ln", 32)
        make.kernel(f"{layer}.Mlp_0.intermediate_output", 32, 48)
        make.kernel(f"{layer}.Mlp_0.layer_output", 48, 32)
        make.norm(f"{layer}.Mlp_0.layer_output_ln", 32)
    make.kernel("MlmLayer_0.mlm_dense", 32, 32)
    make.norm("MlmLayer_0.mlm_ln", 32)
    make.vector("MlmLayer_0.mlm_bias.bias", 20)
    t = make.tensors

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm({"n.weight": t[f"{name}.scale"], "n.bias": t[f"{name}.bias"]}, "n", x)

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ t[f"{name}.kernel"] + t[f"{name}.bias"]

    def logits(tokens: Tensor, labels: Tensor | None) -> Tensor:
        table, places = (t[f"Embed_0.{name}_embeddings.embedding"] for name in ("word", "position"))
        label = table[16:19].mean(0).expand(len(tokens), -1) if labels is None else table[16 + labels]
        words = table[torch.where(tokens == 16, -1, tokens)]
        x = norm("Embed_0.embeddings_ln", torch.cat([label[:, None], words], 1) + places)
        for number in range(2):
            layer = f"TransformerLayer_{number}"
            here = f"{layer}.Attention_0.self_attention"
            q, k, v = (
                torch.einsum("bnc,chd->bhnd", x, t[f"{here}.{part}.kernel"]) + t[f"{here}.{part}.bias"][:, None]
                for part in ("query", "key", "value")
            )
            heads = (q @ k.transpose(2, 3) / math.sqrt(8)).softmax(-1) @ v
            out = torch.einsum("bhnd,hdc->bnc", heads, t[f"{here}.out.kernel"]) + t[f"{here}.out.bias"]
            x = norm(f"{layer}.Attention_0.attention_output_ln", x + out)
            hidden = dense(f"{layer}.Mlp_0.layer_output", gelu_by_tanh(dense(f"{layer}.Mlp_0.intermediate_output", x)))
            x = norm(f"{layer}.Mlp_0.layer_output_ln", x + hidden)
        x = norm("MlmLayer_0.mlm_ln", gelu_by_tanh(dense("MlmLayer_0.mlm_dense", x)))
        return (x @ table.T + t["MlmLayer_0.mlm_bias.bias"])[:, 1:, :16]

    return Transformer(t, logits, 3)
