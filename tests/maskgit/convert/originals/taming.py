"""taming-transformers' VQGAN, and its relatives: LlamaGen's and diffusers'."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from originals.parts import (
    Maker,
    Tensors,
    Tokenizer,
    conv,
    downsample,
    group_norm,
    looked_up,
    nearest,
    quantizer,
    residual,
    spatial_attention,
    swish,
    upsample,
)


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
