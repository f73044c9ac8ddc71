"""taming-transformers' VQGAN (Esser et al., CVPR 2021), and two systems that have it under other names.

LlamaGen's VQ (Sun et al., 2024) compares latents and codes after scaling both to unit length. Among codes of unit
length, the nearest to the scaled latent is the nearest to the latent as it is: it is enough to store the codes so.
diffusers' VQModel writes the 1x1 convolutions of its attention as linear layers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F

from maskgit.convert.hints import Hints
from maskgit.convert.vqgans import Half, build_vqgan
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
    stem_channels = weights.shape("encoder.conv_in.weight", 4)[0]
    encoder = Half("encoder", stem_channels)
    weights.layer(encoder.layer(), "encoder.conv_in")
    for level in range(weights.count("encoder.down.")):
        _level(weights, encoder, f"encoder.down.{level}", "downsample")
    _middle(weights, encoder)
    _end(weights, encoder)

    decoder = Half("decoder", weights.shape("decoder.conv_in.weight", 4)[0])
    weights.layer(decoder.layer(), "decoder.conv_in")
    _middle(weights, decoder)
    for level in decoder_levels:
        _level(weights, decoder, f"decoder.up.{level}", "upsample")
    _end(weights, decoder)

    latent_channels = weights.shape("quant_conv.weight", 4)[1]
    weights.layer("quant_conv", "quant_conv")
    weights.layer("post_quant_conv", "post_quant_conv")
    return build_vqgan(
        weights,
        hints,
        encoder,
        decoder,
        latent_channels=latent_channels,
        stem_channels=stem_channels,
        middle_attention="encoder.mid.attn_1.q.weight" in weights,
        unit_pixels=hints.unit_pixels,
    )


def _level(weights: Weights, half: Half, level: str, resample: str) -> None:
    for number in range(weights.count(f"{level}.block.")):
        width = weights.shape(f"{level}.block.{number}.conv2.weight", 4)[0]
        _block(weights, half.block(width), f"{level}.block.{number}")
        if f"{level}.attn.{number}.q.weight" in weights:
            _attention(weights, half.attention(), f"{level}.attn.{number}")
    if f"{level}.{resample}.conv.weight" in weights:
        weights.layer(f"{half.resample()}.conv", f"{level}.{resample}.conv")


def _middle(weights: Weights, half: Half) -> None:
    _block(weights, half.layer(), f"{half.name}.mid.block_1")
    if f"{half.name}.mid.attn_1.q.weight" in weights:
        _attention(weights, half.layer(), f"{half.name}.mid.attn_1")
    _block(weights, half.layer(), f"{half.name}.mid.block_2")


def _end(weights: Weights, half: Half) -> None:
    weights.layer(half.layer(), f"{half.name}.norm_out")
    half.layer()  # the activation
    weights.layer(half.layer(), f"{half.name}.conv_out")


def _block(weights: Weights, ours: str, theirs: str) -> None:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        weights.layer(f"{ours}.{part}", f"{theirs}.{part}")
    if f"{theirs}.nin_shortcut.weight" in weights:
        weights.layer(f"{ours}.shortcut", f"{theirs}.nin_shortcut")


def _attention(weights: Weights, ours: str, theirs: str) -> None:
    weights.layer(f"{ours}.norm", f"{theirs}.norm")
    for our_part, part in (("q", "q"), ("k", "k"), ("v", "v"), ("proj", "proj_out")):
        weight = weights.take(f"{theirs}.{part}.weight")
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        weights.put(f"{ours}.{our_part}.weight", weight, f"{theirs}.{part}.weight")
        weights.move(f"{ours}.{our_part}.bias", f"{theirs}.{part}.bias")
