"""taming-transformers' VQGAN (Esser et al., CVPR 2021), and two systems that have it under other names.

LlamaGen's VQ (Sun et al., 2024) compares latents and codes after scaling both to unit length. Among codes of unit
length, the nearest to the scaled latent is the nearest to the latent as it is: it is enough to store the codes so.
diffusers' VQModel writes the 1x1 convolutions of its attention as linear layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch.nn.functional as F

from maskgit.convert.hints import Hints
from maskgit.convert.vqgans import Half, build_vqgan, read_half
from maskgit.convert.weights import Weights
from maskgit.tokenizer import VQGAN

LLAMAGEN_NAMES = (
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.res\.(\d+)\.", r".block.\1."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
"""Patterns in LlamaGen's names and what taming-transformers has in their place."""

DIFFUSERS_NAMES = (
    (r"^encoder\.down_blocks\.", "encoder.down."),
    (r"^decoder\.up_blocks\.", "decoder.up."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.attentions\.(\d+)\.", r".attn.\1."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_)?(q|k|v)(?:uery|ey|alue)?\.(weight|bias)$", r".\1.\2"),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
"""Patterns in the names of diffusers, of all its releases, and what taming-transformers has in their place."""


PARTS = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2", "norm", "q", "k", "v")},
    "shortcut": "nin_shortcut",
    "proj": "proj_out",
}
"""Our parts of residual blocks and attention, and what they are called here."""


def read_taming(weights: Weights, hints: Hints) -> VQGAN:
    """The VQGAN of a taming-transformers checkpoint; the training losses in it are left behind."""
    weights.skip(r"loss\..*")
    weights.move("codebook.weight", "quantize.embedding.weight")
    return _read(weights, hints, reversed(range(weights.count("decoder.up."))))


def read_llamagen(weights: Weights, hints: Hints) -> VQGAN:
    """The VQGAN of a LlamaGen checkpoint, its names replaced."""
    weights.skip(r"quantize\.codebook_used")  # a record of training
    codes = weights.take("quantize.embedding.weight", None, None)
    weights.put("codebook.weight", F.normalize(codes), "quantize.embedding.weight")
    return _read(weights, hints, range(weights.count("decoder.up.")))


def read_diffusers(weights: Weights, hints: Hints) -> VQGAN:
    """The VQGAN of a diffusers VQModel, its names replaced."""
    weights.move("codebook.weight", "quantize.embedding.weight")
    return _read(weights, hints, range(weights.count("decoder.up.")))


def _read(weights: Weights, hints: Hints, decoder_levels: Iterable[int]) -> VQGAN:
    """`decoder_levels`: their numbers in the order in which they run."""
    weights.layers({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    levels = [f"encoder.down.{level}" for level in range(weights.count("encoder.down."))]
    encoder = _half(weights, "encoder", levels)
    decoder = _half(weights, "decoder", [f"decoder.up.{level}" for level in decoder_levels])
    attention = "encoder.mid.attn_1.q.weight" in weights
    return build_vqgan(weights, hints, encoder, decoder, middle_attention=attention, unit_pixels=hints.unit_pixels)


def _half(weights: Weights, name: str, levels: Iterable[str]) -> Half:
    middle = [f"{name}.mid.{layer}" for layer in ("block_1", "attn_1", "block_2")]
    if f"{middle[1]}.q.weight" not in weights:
        del middle[1]
    stages = [layer for level in levels for layer in _layers(weights, level)]
    inner = stages + middle if name == "encoder" else middle + stages
    layers = [f"{name}.conv_in", *inner, f"{name}.norm_out", f"{name}.conv_out"]
    return read_half(weights, name, layers, middle, PARTS)


def _layers(weights: Weights, level: str) -> Iterator[str]:
    """Those of one level."""
    for number in range(weights.count(f"{level}.block.")):
        yield f"{level}.block.{number}"
        if f"{level}.attn.{number}.q.weight" in weights:
            yield f"{level}.attn.{number}"
    for resampling in (f"{level}.downsample", f"{level}.upsample"):
        if f"{resampling}.conv.weight" in weights:
            yield resampling
