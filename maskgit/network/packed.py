"""Networks as they run fastest on a CPU: weights laid out once for oneDNN, no gradients.

PyTorch's own layers convert their weight and lay it out again at every call (bfloat16), or use a slower product
(float32 linear layers).
"""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


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
    """A copy for inference on a CPU that shares all but the weights of linear layers and convolutions.

    Args:
        network: on the CPU, in float32.
        dtype: of linear layers and convolutions, float32 or bfloat16.

    Raises:
        RuntimeError: PyTorch was built without oneDNN (see `can_pack`).
    """
    if not can_pack():
        raise RuntimeError("this build of PyTorch has no oneDNN operators")
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    packed = copy.deepcopy(network, shared).eval()
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
