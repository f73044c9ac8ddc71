"""google-research's MaskGIT (Chang et al., CVPR 2022), in JAX: its tokenizer and its transformer.

flax stores kernels with the output channels last. Layers of a kind are numbered in the order in which they were called,
and sorted as strings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit.config import TransformerConfig
from maskgit.convert.hints import Hints
from maskgit.convert.reading import ConvertError
from maskgit.convert.vqgans import Half, build_vqgan
from maskgit.convert.weights import Weights
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN

NORM_EPS = 1e-12
DROPOUT = 0.1

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
    dim = codes.shape[1]
    weights.put("codebook.weight", codes, "quantizer.codebook")
    for name in ("quant_conv", "post_quant_conv"):
        weights.put(f"{name}.weight", torch.eye(dim)[:, :, None, None], "quantizer.codebook")
        weights.put(f"{name}.bias", torch.zeros(dim), "quantizer.codebook")

    stem_channels = weights.shape("encoder.Conv_0.kernel", 4)[3]
    encoder = Half("encoder", stem_channels)
    _convolution(weights, encoder.layer(), "encoder.Conv_0", bias=False)
    for number in range(blocks * (levels + 1)):
        width = weights.shape(f"encoder.ResBlock_{number}.Conv_1.kernel", 4)[3]
        _block(weights, encoder.block(width), f"encoder.ResBlock_{number}")
        if (number + 1) % blocks == 0 and number + 1 < blocks * levels:
            encoder.resample()  # a mean: no weights
    _norm(weights, encoder.layer(), "encoder.GroupNorm_0")
    encoder.layer()  # the activation
    _convolution(weights, encoder.layer(), "encoder.Conv_1")

    decoder = Half("decoder", weights.shape("decoder.Conv_0.kernel", 4)[3])
    _convolution(weights, decoder.layer(), "decoder.Conv_0")
    for number in range(blocks * (levels + 1)):
        width = weights.shape(f"decoder.ResBlock_{number}.Conv_1.kernel", 4)[3]
        _block(weights, decoder.layer() if number < 2 else decoder.block(width), f"decoder.ResBlock_{number}")
        level, last = divmod(number + 1, blocks)
        if not last and 2 <= level <= levels:
            _convolution(weights, f"{decoder.resample()}.conv", f"decoder.Conv_{level - 1}")
    _norm(weights, decoder.layer(), "decoder.GroupNorm_0")
    decoder.layer()  # the activation
    _convolution(weights, decoder.layer(), f"decoder.Conv_{levels}")
    return build_vqgan(
        weights,
        hints,
        encoder,
        decoder,
        latent_channels=dim,
        stem_channels=stem_channels,
        encoder_middle=False,
        middle_attention=False,
        downsample="mean",
        unit_pixels=True,
    )


def _block(weights: Weights, ours: str, theirs: str) -> None:
    _norm(weights, f"{ours}.norm1", f"{theirs}.GroupNorm_0")
    _convolution(weights, f"{ours}.conv1", f"{theirs}.Conv_0", bias=False)
    _norm(weights, f"{ours}.norm2", f"{theirs}.GroupNorm_1")
    kernel = weights.take(f"{theirs}.Conv_1.kernel", 3, 3, None, None)
    outputs = kernel.shape[3]
    if f"{theirs}.Conv_2.kernel" in weights:
        mixing = torch.eye(outputs) + weights.take(f"{theirs}.Conv_2.kernel", 1, 1, outputs, outputs)[0, 0]
        kernel = (kernel.double() @ mixing.double()).float()
        inputs = weights.shape(f"{theirs}.Conv_0.kernel", 4)[2]
        weights.put(f"{ours}.shortcut.weight", torch.zeros(outputs, inputs, 1, 1), f"{theirs}.Conv_2.kernel")
        weights.put(f"{ours}.shortcut.bias", torch.zeros(outputs), f"{theirs}.Conv_2.kernel")
    weights.put(f"{ours}.conv2.weight", _to_torch(kernel), f"{theirs}.Conv_1.kernel")
    weights.put(f"{ours}.conv2.bias", torch.zeros(outputs), f"{theirs}.Conv_1.kernel")


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
    table = weights.take("Embed_0.word_embeddings.embedding", None, None)
    rows, dim = table.shape
    positions = weights.take("Embed_0.position_embeddings.embedding", None, dim)
    num_tokens = len(positions) - 1
    depth = weights.count("TransformerLayer_")
    heads = weights.shape("TransformerLayer_0.Attention_0.self_attention.query.kernel", 3)[1]
    mlp_dim = weights.shape("TransformerLayer_0.Mlp_0.intermediate_output.kernel", 2)[1]
    num_classes = rows - codebook_size - 1
    if num_classes < 1:
        raise ConvertError(
            f"{rows} embeddings are too few for the tokenizer's {codebook_size} codes, a mask and classes"
        )
    if hints.heads not in (None, heads):
        raise ConvertError(f"it has {heads} heads, not {hints.heads}")
    codes, classes, mask = table.split([codebook_size, num_classes, 1])
    weights.notes.append('it was trained without a "no class" label, whose place takes the mean of its classes')
    embedding = "Embed_0.word_embeddings.embedding"
    weights.put("token_embedding.weight", torch.cat([codes, mask, classes, classes.mean(0, keepdim=True)]), embedding)
    weights.put("position_embedding", positions.roll(-1, 0), "Embed_0.position_embeddings.embedding")
    _norm(weights, "embedding_norm", "Embed_0.embeddings_ln")
    for number in range(depth):
        ours, theirs = f"blocks.{number}", f"TransformerLayer_{number}"
        _attention(weights, dim, heads, f"{ours}.attention", f"{theirs}.Attention_0.self_attention")
        _norm(weights, f"{ours}.norm1", f"{theirs}.Attention_0.attention_output_ln")
        _dense(weights, f"{ours}.mlp.0", f"{theirs}.Mlp_0.intermediate_output")
        _dense(weights, f"{ours}.mlp.2", f"{theirs}.Mlp_0.layer_output")
        _norm(weights, f"{ours}.norm2", f"{theirs}.Mlp_0.layer_output_ln")
    _dense(weights, "head.0", "MlmLayer_0.mlm_dense")
    _norm(weights, "head.2", "MlmLayer_0.mlm_ln")
    bias = weights.take("MlmLayer_0.mlm_bias.bias", rows)[:codebook_size]
    weights.put("bias", bias.repeat(num_tokens, 1), "MlmLayer_0.mlm_bias.bias")
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
                norm="post",
                norm_eps=NORM_EPS,
                num_classes=num_classes,
                gelu="tanh",
            )
        )
    )


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
