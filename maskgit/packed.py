"""The transformer as it runs fastest on a CPU: weights laid out once for oneDNN, no gradients.

PyTorch's own linear layers lay their weight out again at every call (bfloat16) or use a slower product (float32).
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


def can_pack() -> bool:
    """Whether this build of PyTorch has oneDNN's operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@torch.no_grad()
def pack(transformer: Network, dtype: torch.dtype) -> Network:
    """A copy for inference on a CPU that shares all but the linear layers' weights with the original.

    Args:
        transformer: on the CPU, in float32.
        dtype: of the linear layers, float32 or bfloat16.

    Raises:
        RuntimeError: PyTorch was built without oneDNN (see `can_pack`).
    """
    if not can_pack():
        raise RuntimeError("this build of PyTorch has no oneDNN operators")
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*transformer.parameters(), *transformer.buffers())}
    packed = copy.deepcopy(transformer, shared).eval()
    for parent in list(packed.modules()):
        children = list(parent.named_children())
        for (name, child), (next_name, after) in itertools.pairwise([*children, ("", None)]):
            if not isinstance(child, nn.Linear):
                continue
            gelu = after if isinstance(parent, nn.Sequential) and isinstance(after, nn.GELU) else None
            setattr(parent, name, PackedLinear(child, dtype, gelu))
            if gelu is not None:
                setattr(parent, next_name, nn.Identity())
    return packed
