"""google-research's MaskGIT (Chang et al., CVPR 2022), in JAX: its tokenizer and its transformer.

flax stores kernels with the output channels last. Layers of a kind are numbered in the order in which they were called,
and sorted as strings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.transformers import build_transformer, count_heads, require_classes
from maskgit.convert.vqgans import Half, build_vqgan
from maskgit.convert.weights import Weights
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

NORM_EPS = 1e-12

# --- tokenizer --------------------------------------------------------------------------------------------------------


def read_tokenizer(weights: Weights, hints: Hints) -> VQGAN:
    """The tokenizer, whose layers ours can express with some weights fixed.

    - Convolutions without bias (the first one, and those in residual blocks): a bias of zeros.
    - No convolutions around the codebook: identities.
    - Where its residual block changes the width it drops its input and returns h + W h, with a 1x1 convolution W, for
      the output h of the second 3x3 convolution: that one is multiplied by I + W, and our shortcut is zero.
    - The encoder's last convolution is 1x1: the middle of a 3x3 one.
    - After the last level the encoder has as many blocks again, without attention: one more stage. So has the decoder
      before its first level: two are our middle, the rest belong to the first stage.
    """
    levels = weights.count("decoder.Conv_") - 1
    blocks, rest = divmod(weights.count("encoder.ResBlock_"), levels + 1)
    if levels < 1 or rest or weights.count("decoder.ResBlock_") != blocks * (levels + 1):
        raise ConvertError("its residual blocks aren't equally many on every level")
    codes = weights.take("quantizer.codebook", None, None)
    weights.put("codebook.weight", codes, "quantizer.codebook")
    for name in ("quant_conv", "post_quant_conv"):
        weights.put(f"{name}.weight", torch.eye(codes.shape[1])[:, :, None, None], "quantizer.codebook")
        weights.put(f"{name}.bias", torch.zeros(codes.shape[1]), "quantizer.codebook")

    encoder = Half("encoder", weights.shape("encoder.Conv_0.kernel", 4)[3])
    _convolution(weights, encoder.layer(), "encoder.Conv_0", bias=False)
    for number in range(blocks * (levels + 1)):
        _block(weights, encoder, number)
        if (number + 1) % blocks == 0 and number + 1 < blocks * levels:
            encoder.resample()  # a mean: no weights
    _end(weights, encoder, "encoder.Conv_1")

    decoder = Half("decoder", weights.shape("decoder.Conv_0.kernel", 4)[3])
    _convolution(weights, decoder.layer(), "decoder.Conv_0")
    for number in range(blocks * (levels + 1)):
        _block(weights, decoder, number, middle=number < 2)
        level, last = divmod(number + 1, blocks)
        if not last and 2 <= level <= levels:
            _convolution(weights, f"{decoder.resample()}.conv", f"decoder.Conv_{level - 1}")
    _end(weights, decoder, f"decoder.Conv_{levels}")
    style = {"encoder_middle": False, "middle_attention": False, "downsample": "mean", "unit_pixels": True}
    return build_vqgan(weights, hints, encoder, decoder, **style)


def _block(weights: Weights, half: Half, number: int, middle: bool = False) -> None:
    theirs = f"{half.name}.ResBlock_{number}"
    kernel = weights.take(f"{theirs}.Conv_1.kernel", 3, 3, None, None)
    outputs = kernel.shape[3]
    ours = half.layer() if middle else half.block(outputs)
    _norm(weights, f"{ours}.norm1", f"{theirs}.GroupNorm_0")
    _convolution(weights, f"{ours}.conv1", f"{theirs}.Conv_0", bias=False)
    _norm(weights, f"{ours}.norm2", f"{theirs}.GroupNorm_1")
    if f"{theirs}.Conv_2.kernel" in weights:
        mixing = torch.eye(outputs) + weights.take(f"{theirs}.Conv_2.kernel", 1, 1, outputs, outputs)[0, 0]
        kernel = (kernel.double() @ mixing.double()).float()
        inputs = weights.shape(f"{theirs}.Conv_0.kernel", 4)[2]
        weights.put(f"{ours}.shortcut.weight", torch.zeros(outputs, inputs, 1, 1), f"{theirs}.Conv_2.kernel")
        weights.put(f"{ours}.shortcut.bias", torch.zeros(outputs), f"{theirs}.Conv_2.kernel")
    weights.put(f"{ours}.conv2.weight", _to_torch(kernel), f"{theirs}.Conv_1.kernel")
    weights.put(f"{ours}.conv2.bias", torch.zeros(outputs), f"{theirs}.Conv_1.kernel")


def _end(weights: Weights, half: Half, last: str) -> None:
    _norm(weights, half.layer(), f"{half.name}.GroupNorm_0")
    half.layer()  # the activation
    _convolution(weights, half.layer(), last)


def _convolution(weights: Weights, ours: str, theirs: str, bias: bool = True) -> None:
    kernel = weights.take(f"{theirs}.kernel", None, None, None, None)
    if kernel.shape[:2] == (1, 1):
        kernel = F.pad(kernel, (0, 0, 0, 0, 1, 1, 1, 1))
    weights.put(f"{ours}.weight", _to_torch(kernel), f"{theirs}.kernel")
    if bias:
        weights.move(f"{ours}.bias", f"{theirs}.bias")
    else:
        weights.put(f"{ours}.bias", torch.zeros(kernel.shape[3]), f"{theirs}.kernel")


def _to_torch(kernel: Tensor) -> Tensor:
    """[height, width, inputs, outputs] -> [outputs, inputs, height, width]."""
    return kernel.permute(3, 2, 0, 1)


def _norm(weights: Weights, ours: str, theirs: str) -> None:
    weights.move(f"{ours}.weight", f"{theirs}.scale")
    weights.move(f"{ours}.bias", f"{theirs}.bias")


# --- transformer ------------------------------------------------------------------------------------------------------


def read_transformer(weights: Weights, hints: Hints, codebook_size: int) -> Transformer:
    """The transformer: BERT, post-norm, its class token first.

    The rows of its embedding are the codes, the classes and the mask token (its id -1 is the last row). It has none for
    "no class": ours gets the mean of its classes there.
    """
    embedding, places = (f"Embed_0.{name}_embeddings.embedding" for name in ("word", "position"))
    table = weights.take(embedding, None, None)
    rows, dim = table.shape
    require_classes(rows, codebook_size, 1)
    codes, classes, mask = table.split([codebook_size, rows - codebook_size - 1, 1])
    weights.notes.append('it was trained without a "no class" label, whose place takes the mean of its classes')
    weights.put("token_embedding.weight", torch.cat([codes, mask, classes, classes.mean(0, keepdim=True)]), embedding)
    positions = weights.take(places, None, dim)
    weights.put("position_embedding", positions.roll(-1, 0), places)
    bias = weights.take("MlmLayer_0.mlm_bias.bias", rows)[:codebook_size]
    weights.put("bias", bias.repeat(len(positions) - 1, 1), "MlmLayer_0.mlm_bias.bias")
    _norm(weights, "embedding_norm", "Embed_0.embeddings_ln")
    depth = weights.count("TransformerLayer_")
    told = weights.shape("TransformerLayer_0.Attention_0.self_attention.query.kernel", 3)[1]
    heads = count_heads(weights, hints, dim, told)
    for number in range(depth):
        ours, theirs = f"blocks.{number}", f"TransformerLayer_{number}"
        _attention(weights, dim, heads, f"{ours}.attention", f"{theirs}.Attention_0.self_attention")
        _norm(weights, f"{ours}.norm1", f"{theirs}.Attention_0.attention_output_ln")
        _dense(weights, f"{ours}.mlp.0", f"{theirs}.Mlp_0.intermediate_output")
        _dense(weights, f"{ours}.mlp.2", f"{theirs}.Mlp_0.layer_output")
        _norm(weights, f"{ours}.norm2", f"{theirs}.Mlp_0.layer_output_ln")
    _dense(weights, "head.0", "MlmLayer_0.mlm_dense")
    _norm(weights, "head.2", "MlmLayer_0.mlm_ln")
    return build_transformer(weights, codebook_size, depth, heads, norm="post", norm_eps=NORM_EPS, gelu="tanh")


def _attention(weights: Weights, dim: int, heads: int, ours: str, theirs: str) -> None:
    kernels, biases = [], []
    for part in ("query", "key", "value"):
        kernels.append(weights.take(f"{theirs}.{part}.kernel", dim, heads, None).flatten(1))  # [dim, H * D]
        biases.append(weights.take(f"{theirs}.{part}.bias", heads, None).flatten())
    weights.put(f"{ours}.qkv.weight", torch.cat(kernels, 1).T, f"{theirs}.query.kernel")
    weights.put(f"{ours}.qkv.bias", torch.cat(biases), f"{theirs}.query.bias")
    out = weights.take(f"{theirs}.out.kernel", heads, None, dim).flatten(0, 1)  # [H * D, dim]
    weights.put(f"{ours}.proj.weight", out.T, f"{theirs}.out.kernel")
    weights.move(f"{ours}.proj.bias", f"{theirs}.out.bias")


def _dense(weights: Weights, ours: str, theirs: str) -> None:
    weights.put(f"{ours}.weight", weights.take(f"{theirs}.kernel", None, None).T, f"{theirs}.kernel")
    weights.move(f"{ours}.bias", f"{theirs}.bias")
