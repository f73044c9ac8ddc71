"""Networks as they run fastest: copies for inference, their weights cast or laid out once and not at every call.

On a CPU (`pack`) they are in oneDNN's layout. PyTorch's own layers convert their weight and lay it out again at every
call (bfloat16), or use a slower product (float32 linear layers).

Elsewhere (`half_copy`) they are in the half precision that autocast computes in. It casts a float32 weight and its bias
wherever they are used, and in a CUDA graph it can't keep them from one decoding step to the next. So a step reads four
bytes of each weight and writes two, only to read those again: four times the bytes that the products need, and two more
launches for each layer.
"""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer

Network = TypeVar("Network", bound=nn.Module)


def _copy(network: Network) -> Network:
    """In evaluation mode, with all tensors shared."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared).eval()


# --- for oneDNN -------------------------------------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """nn.Linear without gradients, its weight in oneDNN's layout and `dtype`; a GELU behind it joins the same pass."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, gelu: nn.GELU | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.then = ("none", "") if gelu is None else ("gelu", gelu.approximate)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features] in `dtype`."""
        activation, algorithm = self.then
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, activation, [], algorithm)


class PackedConv2d(nn.Module):
    """nn.Conv2d without gradients, its weight in oneDNN's layout and `dtype`.

    Which layout is best depends on the input's shape, and the wrong one takes twice the time: the weight is laid out
    for the shape that was seen last.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.how = dtype, (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.plain = conv.weight.detach().to(dtype, memory_format=torch.contiguous_format).to_mkldnn()
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.weight, self.shape = self.plain, torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, out_channels, h', w'] in `dtype`, channels last."""
        if x.shape != self.shape:
            self.weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(self.plain, *self.how, x.shape)
            self.shape = x.shape
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.how, "none", [], "")


def can_pack() -> bool:
    """Whether this build of PyTorch has oneDNN's operators."""
    operators = ("_linear_pointwise", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


@torch.no_grad()
def pack(network: Network, dtype: torch.dtype) -> Network:
    """A copy for inference of a network in float32 on a CPU, that shares all but the weights of linear layers and
    convolutions: these are in `dtype`, float32 or bfloat16.

    Raises RuntimeError: PyTorch was built without oneDNN (see `can_pack`).
    """
    if not can_pack():
        raise RuntimeError("this build of PyTorch has no oneDNN operators")
    packed = _copy(network)
    for parent in list(packed.modules()):
        children = list(parent.named_children())
        for (name, child), (next_name, after) in itertools.pairwise([*children, ("", None)]):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, PackedConv2d(child, dtype))
            if not isinstance(child, nn.Linear):
                continue
            gelu = after if isinstance(parent, nn.Sequential) and isinstance(after, nn.GELU) else None
            setattr(parent, name, PackedLinear(child, dtype, gelu))
            if gelu is not None:
                setattr(parent, next_name, nn.Identity())
    return packed


# --- for autocast -----------------------------------------------------------------------------------------------------


class HalfHeadEmbedding(nn.Module):
    """nn.Embedding without gradients whose weight, in `dtype`, is for a tied head; it looks up in the original.

    What is looked up is the beginning of the residual stream, which no rounding should touch before it has to.
    """

    def __init__(self, embedding: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = embedding.weight.detach()
        self.weight = self.table.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [...] -> [..., dim] in the original's dtype."""
        return F.embedding(tokens, self.table)


@torch.no_grad()
def half_copy(network: Network, dtype: torch.dtype) -> Network:
    """A copy for inference under autocast to `dtype` that gives the same bits as the original does there.

    Weights of linear layers, convolutions and heads are cast to `dtype`. All else is shared: embeddings, normalization
    and codebooks, which autocast leaves in float32 as well.

    Args:
        network: a transformer or tokenizer, in float32, on any device.
        dtype: bfloat16 or float16.
    """
    copied = _copy(network)
    for module in copied.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, _cast(parameter, dtype))
    if isinstance(copied, HaltonTransformer) or (isinstance(copied, Transformer) and copied.config.tied):
        copied.token_embedding = HalfHeadEmbedding(copied.token_embedding, dtype)  # type: ignore[assignment]
    if isinstance(copied, HaltonTransformer):
        copied.bias = _cast(copied.bias, dtype)
    return copied


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
