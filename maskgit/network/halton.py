"""The transformer of Halton-MaskGIT (Besnier et al., "Halton Scheduler for Masked Generative Image Transformer", 2025).

Its blocks are those of a diffusion transformer (Peebles and Xie, ICCV 2023): the class is no token of the sequence but
sets shift, scale and gate of every branch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskgit.config import HaltonConfig
from maskgit.network.dropout import Dropout, layer_seeds
from maskgit.network.transformer import INIT_STD, RMS_NORM_EPS, Attention
from maskgit_kernels.head_loss import head_loss

if TYPE_CHECKING:
    from maskgit.network.partial import Context


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """[B, N, dim] with a shift and a scale [B, dim] for each image."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Modulation(nn.Sequential):
    """Condition [B, dim] -> `count` vectors [B, dim], zero at the start of training."""

    def __init__(self, dim: int, count: int) -> None:
        linear = nn.Linear(dim, count * dim)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.SiLU(), linear)
        self.count = count

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(condition).chunk(self.count, dim=1)


class SwiGLU(nn.Module):
    """A gated MLP (Shazeer, 2020)."""

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.value = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.out = nn.Linear(config.mlp_dim, config.dim, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim]."""
        return self.out(self.dropout(F.silu(self.gate(x)) * self.value(x)))


class Block(nn.Module):
    """Attention and SwiGLU, each a residual branch behind a modulated RMSNorm, with a gate."""

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.dim, 6)
        self.norm1 = nn.RMSNorm(config.dim, RMS_NORM_EPS)
        self.attention = Attention(config, bias=False, qk_norm=True)
        self.dropout = Dropout(config.dropout)
        self.norm2 = nn.RMSNorm(config.dim, RMS_NORM_EPS)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Tensor, condition: Tensor, seed: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """[B, N, dim] and the condition [B, dim] -> [B, N, dim]. For the others see `transformer.Attention`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1[:, None] * self.dropout(self.attention(modulate(self.norm1(x), shift1, scale1), seed, context))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class HaltonTransformer(nn.Module):
    """Tokens with holes in, logits over the codes out: called as `maskgit.network.transformer.Transformer` is."""

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        """In training, keep only the input of each block and compute the rest anew in the backward pass."""
        self.token_embedding = nn.Embedding(config.codebook_size + 1, config.dim)
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.dim)
        self.position_embedding = nn.Parameter(torch.empty(config.num_tokens, config.dim))
        # FSDP2 can't divide a parameter without elements.
        self.registers: Tensor = (nn.Parameter if config.registers else nn.Buffer)(
            torch.empty(config.registers, config.dim)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = nn.RMSNorm(config.dim, RMS_NORM_EPS)
        self.final_norm_bias = nn.Parameter(torch.zeros(config.dim))
        self.final_modulation = Modulation(config.dim, 2)
        self.bias = nn.Parameter(torch.zeros(config.codebook_size))
        embeddings = self.token_embedding.weight, self.class_embedding.weight
        for table in (*embeddings, self.position_embedding, self.registers):
            nn.init.normal_(table, std=INIT_STD)

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        context: Context | None = None,
        targets: Tensor | None = None,
        counted: Tensor | None = None,
        label_smoothing: float = 0.0,
        hits_among: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, N, V] or the loss: as `maskgit.network.transformer.Transformer`, but for `rows`."""
        x, head = self.hidden(tokens, labels, context), self.output_weights()
        if targets is not None:
            assert counted is not None
            return head_loss(x, *head, targets, counted, label_smoothing=label_smoothing, hits_among=hits_among)
        return F.linear(x, *head)

    def output_weights(self) -> tuple[Tensor, Tensor]:
        """The last product: weight [V, dim] and bias [V], for `hidden`'s states."""
        return self.token_embedding.weight[: self.config.codebook_size], self.bias

    def hidden(self, tokens: Tensor, labels: Tensor | None = None, context: Context | None = None) -> Tensor:
        """What the last product turns into logits: [B, N, dim], 0 where nothing is evaluated. As for `forward`."""
        config = self.config
        if tokens.shape[1] != config.num_tokens:
            raise ValueError(f"the model takes {config.num_tokens} tokens an image, got {tokens.shape[1]}")
        if labels is None:
            labels = torch.full_like(tokens[:, 0], config.num_classes)
        condition = self.class_embedding(labels)  # [B, dim]
        x = self.token_embedding(tokens) + self.position_embedding
        x = torch.cat([x, self.registers.expand(len(x), -1, -1)], dim=1)  # [B, N + registers, dim]
        count = config.num_tokens
        if context is not None:
            x, count = context.select(x, count)  # from here on N is the number of positions that are evaluated
        seeds = layer_seeds(config.depth, config.attention_dropout if self.training else 0.0, x.device)
        for block, seed in zip(self.blocks, seeds, strict=True):
            if self.checkpoint_blocks and self.training:
                x = checkpoint(block, x, condition, seed, context, use_reentrant=False)
            else:
                x = block(x, condition, seed, context)
        x = self.final_norm(x[:, :count]) + self.final_norm_bias
        x = modulate(x, *self.final_modulation(condition))
        return x if context is None else context.spread(x)
