"""Networks as they run fastest under autocast: weights cast once, not at every call.

Autocast casts a float32 weight and its bias wherever they are used, and in a CUDA graph it can't keep them from one
decoding step to the next. So a step reads four bytes of each weight and writes two, only to read those again: four
times the bytes that the products need, and two more launches for each layer.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import Transformer

Network = TypeVar("Network", bound=nn.Module)


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
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared).eval()
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
