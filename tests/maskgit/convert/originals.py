"""Other people's networks once more: random checkpoints in their layout, and what such a checkpoint computes.

Each function below is written from the system's definition, in plain tensor operations on its own state dict, and knows
nothing of our networks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass
class Tokenizer:
    """A tokenizer's checkpoint and what it computes."""

    tensors: Tensors
    tokens: Callable[[Tensor], Tensor]
    """Images [B, 3, S, S] in [-1, 1] -> [B, N]."""
    pixels: Callable[[Tensor], Tensor]
    """Tokens [B, N] -> images [B, 3, S, S]."""


@dataclass
class Transformer:
    """A transformer's checkpoint, 16 tokens over 16 codes, and what it computes."""

    tensors: Tensors
    logits: Callable[[Tensor, Tensor | None], Tensor]
    """Tokens [B, 16] with the mask token 16, and labels [B] or None for no class -> [B, 16, 16]."""
    classes: int = 0
    hints: dict = field(default_factory=dict)


class Maker:
    """Random layers under any names."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}

    def matrix(self, name: str, inputs: int, outputs: int, *kernel: int) -> None:
        fan_in = inputs * math.prod(kernel)
        self.tensors[name] = torch.randn(outputs, inputs, *kernel) / math.sqrt(fan_in)

    def vector(self, name: str, size: int, mean: float = 0.0) -> None:
        self.tensors[name] = mean + 0.2 * torch.randn(size)

    def layer(self, name: str, inputs: int, outputs: int, *kernel: int, bias: bool = True) -> None:
        self.matrix(f"{name}.weight", inputs, outputs, *kernel)
        if bias:
            self.vector(f"{name}.bias", outputs)

    def norm(self, name: str, size: int) -> None:
        self.vector(f"{name}.weight", size, 1.0)
        self.vector(f"{name}.bias", size)


# --- convolutional tokenizers -----------------------------------------------------------------------------------------


def conv(t: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = t[f"{name}.weight"]
    return F.conv2d(x, weight, t.get(f"{name}.bias"), stride, padding=weight.shape[2] // 2 if stride == 1 else 0)


def group_norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    grouped = x.unflatten(1, (32, -1))
    centred = grouped - grouped.mean((2, 3, 4), keepdim=True)
    normed = centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()
    return normed.flatten(1, 2) * t[f"{name}.weight"][:, None, None] + t[f"{name}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def residual(t: Tensors, x: Tensor, norm1: str, conv1: str, norm2: str, conv2: str, shortcut: str) -> Tensor:
    h = conv(t, conv1, swish(group_norm(t, norm1, x)))
    h = conv(t, conv2, swish(group_norm(t, norm2, h)))
    return h + (conv(t, shortcut, x) if f"{shortcut}.weight" in t else x)


def spatial_attention(t: Tensors, x: Tensor, name: str, norm: str) -> Tensor:
    normed = group_norm(t, f"{name}.{norm}", x)
    q, k, v = (conv(t, f"{name}.{part}", normed).flatten(2) for part in "qkv")  # [B, C, h * w]
    weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
    return x + conv(t, f"{name}.proj_out", (v @ weights.transpose(1, 2)).view_as(x))


def downsample(t: Tensors, name: str, x: Tensor) -> Tensor:
    return conv(t, name, F.pad(x, (0, 1, 0, 1)), stride=2)


def upsample(t: Tensors, name: str, x: Tensor) -> Tensor:
    return conv(t, name, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def nearest(latents: Tensor, codes: Tensor) -> Tensor:
    """[B, D, h, w] and [V, D] -> [B, h * w]."""
    vectors = latents.flatten(2).transpose(1, 2)  # [B, N, D]
    return torch.cdist(vectors.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)


def looked_up(tokens: Tensor, codes: Tensor) -> Tensor:
    side = math.isqrt(tokens.shape[1])
    return codes[tokens].transpose(1, 2).unflatten(2, (side, side))


def quantizer(make: Maker, name: str, channels: int, codes: int = 24, dim: int = 8) -> None:
    make.layer("quant_conv", channels, dim, 1, 1)
    make.layer("post_quant_conv", dim, channels, 1, 1)
    make.tensors[name] = torch.randn(codes, dim)


# --- course lab -------------------------------------------------------------------------------------------------------


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


# --- taming-transformers and its relatives ----------------------------------------------------------------------------


def taming(middle_attention: bool = True) -> Tokenizer:
    """Three levels, two blocks each, attention on the last."""
    make = Maker()
    widths = (32, 32, 64)

    def block(name: str, inputs: int, outputs: int) -> None:
        make.norm(f"{name}.norm1", inputs)
        make.layer(f"{name}.conv1", inputs, outputs, 3, 3)
        make.norm(f"{name}.norm2", outputs)
        make.layer(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            make.layer(f"{name}.nin_shortcut", inputs, outputs, 1, 1)

    def attention(name: str, width: int) -> None:
        make.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            make.layer(f"{name}.{part}", width, width, 1, 1)

    def middle(name: str) -> None:
        block(f"{name}.mid.block_1", 64, 64)
        if middle_attention:
            attention(f"{name}.mid.attn_1", 64)
        block(f"{name}.mid.block_2", 64, 64)

    width = 32
    make.layer("encoder.conv_in", 3, width, 3, 3)
    for level, wider in enumerate(widths):
        for number in range(2):
            block(f"encoder.down.{level}.block.{number}", width, wider)
            width = wider
            if level == 2:
                attention(f"encoder.down.{level}.attn.{number}", width)
        if level < 2:
            make.layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    middle("encoder")
    make.norm("encoder.norm_out", width)
    make.layer("encoder.conv_out", width, 16, 3, 3)

    make.layer("decoder.conv_in", 16, width, 3, 3)
    middle("decoder")
    for level in (2, 1, 0):
        for number in range(3):
            block(f"decoder.up.{level}.block.{number}", width, widths[level])
            width = widths[level]
            if level == 2:
                attention(f"decoder.up.{level}.attn.{number}", width)
        if level:
            make.layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    make.norm("decoder.norm_out", width)
    make.layer("decoder.conv_out", width, 3, 3, 3)
    quantizer(make, "quantize.embedding.weight", 16)
    make.layer("loss.discriminator.main.0", 3, 8, 4, 4)
    t = make.tensors
    codes = t["quantize.embedding.weight"]
    return Tokenizer(
        t,
        lambda images: nearest(taming_latents(t, images), codes),
        lambda tokens: taming_pixels(t, looked_up(tokens, codes)),
    )


def taming_block(t: Tensors, name: str, x: Tensor) -> Tensor:
    return residual(t, x, *(f"{name}.{part}" for part in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")))


def taming_middle(t: Tensors, name: str, x: Tensor) -> Tensor:
    x = taming_block(t, f"{name}.mid.block_1", x)
    if f"{name}.mid.attn_1.q.weight" in t:
        x = spatial_attention(t, x, f"{name}.mid.attn_1", "norm")
    return taming_block(t, f"{name}.mid.block_2", x)


def taming_latents(t: Tensors, x: Tensor) -> Tensor:
    x = conv(t, "encoder.conv_in", x)
    for level in range(3):
        for number in range(2):
            x = taming_block(t, f"encoder.down.{level}.block.{number}", x)
            if level == 2:
                x = spatial_attention(t, x, f"encoder.down.{level}.attn.{number}", "norm")
        if level < 2:
            x = downsample(t, f"encoder.down.{level}.downsample.conv", x)
    x = taming_middle(t, "encoder", x)
    return conv(t, "quant_conv", conv(t, "encoder.conv_out", swish(group_norm(t, "encoder.norm_out", x))))


def taming_pixels(t: Tensors, x: Tensor) -> Tensor:
    x = conv(t, "decoder.conv_in", conv(t, "post_quant_conv", x))
    x = taming_middle(t, "decoder", x)
    for level in (2, 1, 0):
        for number in range(3):
            x = taming_block(t, f"decoder.up.{level}.block.{number}", x)
            if level == 2:
                x = spatial_attention(t, x, f"decoder.up.{level}.attn.{number}", "norm")
        if level:
            x = upsample(t, f"decoder.up.{level}.upsample.conv", x)
    return conv(t, "decoder.conv_out", swish(group_norm(t, "decoder.norm_out", x)))


def backwards(match: re.Match[str]) -> str:
    """taming counts the decoder's levels from full resolution, the others from the latent grid."""
    return f"{match[1]}{2 - int(match[2])}"


def llamagen() -> Tokenizer:
    """taming's network under other names; codes and latents are compared at unit length."""
    t = taming().tensors
    names = {}
    for name in t:
        new = re.sub(r"^(decoder\.)up\.(\d)", lambda m: backwards(re.match(r"(.*up\.)(\d)", m[0])), name)
        new = re.sub(r"coder\.(down|up)\.", "coder.conv_blocks.", new).replace(".block.", ".res.")
        for number, part in enumerate(("block_1", "attn_1", "block_2")):
            new = new.replace(f".mid.{part}.", f".mid.{number}.")
        names[name] = new
    tensors = {new: t[name] for name, new in names.items() if not name.startswith("loss.")}
    tensors["quantize.codebook_used"] = torch.zeros(100)
    codes = F.normalize(t["quantize.embedding.weight"], dim=1)
    return Tokenizer(
        tensors,
        lambda images: nearest(F.normalize(taming_latents(t, images), dim=1), codes),
        lambda tokens: taming_pixels(t, looked_up(tokens, codes)),
    )


def diffusers(attention: dict[str, str] | None = None) -> Tokenizer:
    """taming's network under other names, without attention in the middle or with linear layers there."""
    original = taming(middle_attention=attention is not None)
    tensors = {}
    for name, tensor in original.tensors.items():
        new = re.sub(r"^(decoder\.up\.)(\d)", backwards, name)
        new = new.replace("encoder.down.", "encoder.down_blocks.").replace("decoder.up.", "decoder.up_blocks.")
        new = re.sub(r"\.mid\.block_(\d)", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", new)
        new = new.replace(".mid.attn_1.", ".mid_block.attentions.0.").replace(".attn.", ".attentions.")
        new = new.replace(".block.", ".resnets.").replace("nin_shortcut", "conv_shortcut")
        new = new.replace("norm_out", "conv_norm_out")
        new = new.replace(".downsample.", ".downsamplers.0.").replace(".upsample.", ".upsamplers.0.")
        if ".attentions." in new:
            *rest, part, what = new.split(".")
            new = ".".join([*rest, (attention or {"norm": "group_norm"}).get(part, part), what])
            tensor = tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor
        if not name.startswith("loss."):
            tensors[new] = tensor
    return Tokenizer(tensors, original.tokens, original.pixels)


DIFFUSERS_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
DIFFUSERS_ATTENTION_OF_OLD = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


# --- transformers -----------------------------------------------------------------------------------------------------


def linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)


def layer_norm(t: Tensors, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed * t[f"{name}.weight"] + t[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_by_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[B, N, heads * D] each."""
    outputs = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        outputs.append((a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).softmax(-1) @ c)
    return torch.cat(outputs, -1)


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


# --- google-research --------------------------------------------------------------------------------------------------


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


# --- all of them ------------------------------------------------------------------------------------------------------

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "lab": lab_vqgan,
    "taming": taming,
    "llamagen": llamagen,
    "diffusers": lambda: diffusers(DIFFUSERS_ATTENTION),
    "google": google_tokenizer,
}

TRANSFORMERS: dict[str, Callable[[], Transformer]] = {
    "lab": lab_transformer,
    "valeo": valeo_maskgit,
    "halton": halton,
    "google": google_transformer,
}


def write(tensors: Tensors, path: object) -> None:
    """In the file format that the tensors' system uses."""
    if any(name.endswith(("kernel", "codebook")) for name in tensors):
        write_flax(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)  # type: ignore[arg-type]


def write_flax(tensors: Tensors, path: object) -> None:
    """What flax.serialization.to_bytes makes of {"params": ...}."""
    import msgpack

    tree: dict = {}
    for name, tensor in tensors.items():
        *folders, leaf = name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        dtype = str(tensor.dtype).removeprefix("torch.")
        data = tensor.flatten().view(torch.uint8).numpy().tobytes()
        place[leaf] = msgpack.ExtType(1, msgpack.packb((tuple(tensor.shape), dtype, data)))
    with open(path, "wb") as file:  # type: ignore[call-overload]
        file.write(msgpack.packb({"params": tree}))
