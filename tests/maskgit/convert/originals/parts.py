"""What the originals are made of: random layers under any names, and what layers compute."""

from __future__ import annotations

import math
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
