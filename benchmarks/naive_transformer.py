"""The transformer as it is usually written: what ours is compared with, on the same weights.

Separate projections for queries, keys and values, attention written out with its own softmax, and a tied head that
scores every row of the embedding table, the mask token and the class labels included, at every position.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.config import TransformerConfig
from maskgit.network.dropout import Dropout
from maskgit.network.transformer import RMS_NORM_EPS, Block, Transformer

# The logit of ids that are not codes. A trained model has learned never to predict them; random weights draw the mask
# token once in a thousand, over and over in a large batch.
NOT_A_CODE = -1e4


class NaiveAttention(nn.Module):
    """Four Linear layers, two matrix products, a softmax, a dropout."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        ours = block.attention
        self.heads, self.qk_norm = ours.heads, ours.qk_norm
        self.q, self.k, self.v = (_slice(ours.qkv, part) for part in range(3))
        self.proj = copy.deepcopy(ours.proj)
        self.dropout = nn.Dropout(ours.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, dim] -> [B, L, dim]."""
        batch, length, dim = x.shape
        projected = [self.q(x), self.k(x), self.v(x)]
        if self.qk_norm:
            projected[:2] = (F.rms_norm(part, [dim], eps=RMS_NORM_EPS) for part in projected[:2])
        # [B, H, L, D] each
        q, k, v = (part.view(batch, length, self.heads, dim // self.heads).transpose(1, 2) for part in projected)
        scores = torch.matmul(q, k.transpose(-2, -1)) / (dim // self.heads) ** 0.5
        weights = self.dropout(torch.softmax(scores, dim=-1))  # [B, H, L, L]
        return self.proj(torch.matmul(weights, v).transpose(1, 2).contiguous().view(batch, length, dim))


class NaiveBlock(nn.Module):
    """Attention and MLP, each a residual branch."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.pre_norm = block.pre_norm
        self.attention = NaiveAttention(block)
        self.norm1, self.norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
        self.mlp, self.dropout = copy.deepcopy(block.mlp), copy.deepcopy(block.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, dim] -> [B, L, dim]."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.norm1(x)))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attention(x)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class NaiveTransformer(nn.Module):
    """A copy of one of our (tied) transformers, its weights included."""

    def __init__(self, ours: Transformer) -> None:
        super().__init__()
        config = self.config = ours.config
        if not config.tied:
            raise ValueError("the naive transformer has a tied head, and this one is not tied")
        self.token_embedding = copy.deepcopy(ours.token_embedding)
        self.position_embedding = nn.Parameter(ours.position_embedding.detach().clone())
        self.embedding_norm, self.dropout = copy.deepcopy(ours.embedding_norm), copy.deepcopy(ours.dropout)
        self.input_mlp = copy.deepcopy(ours.input_mlp)
        self.blocks = nn.ModuleList(NaiveBlock(block) for block in ours.blocks if isinstance(block, Block))
        self.final_norm, self.head = copy.deepcopy(ours.final_norm), copy.deepcopy(ours.head)
        length, rows = len(self.position_embedding), len(self.token_embedding.weight)
        bias = torch.full((length, rows), NOT_A_CODE, device=ours.bias.device)
        bias[:, : config.codebook_size] = 0
        bias[: config.num_tokens, : config.codebook_size] = ours.bias.detach()
        self.bias = nn.Parameter(bias)
        for parent in list(self.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Dropout):  # ours, which is faster than PyTorch's on a CPU
                    setattr(parent, name, nn.Dropout(child.p))

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B, N, V + 1], that of the mask token last.

        Args:
            tokens: int64 [B, N]; V where masked.
            labels: int64 [B], for models with classes; C is no class.
        """
        codes, classes = self.config.codebook_size, self.config.num_classes
        if classes:
            if labels is None:
                labels = torch.full_like(tokens[:, 0], classes)
            tokens = torch.cat([tokens, (labels + codes + 1)[:, None]], dim=1)  # [B, L = N + 1]
        x = self.token_embedding(tokens) + self.position_embedding
        x = self.input_mlp(self.dropout(self.embedding_norm(x)))
        for block in self.blocks:
            x = block(x)
        x = self.head(self.final_norm(x))
        logits = torch.matmul(x, self.token_embedding.weight.t()) + self.bias  # [B, L, V + 1 (+ C + 1)]
        return logits[:, : self.config.num_tokens, : codes + 1]


def _slice(packed: nn.Linear, part: int) -> nn.Linear:
    dim = packed.in_features
    layer = nn.Linear(dim, dim, device=packed.weight.device)
    rows = slice(part * dim, (part + 1) * dim)
    with torch.no_grad():
        layer.weight.copy_(packed.weight[rows])
        layer.bias.copy_(packed.bias[rows])
    return layer


def forward_flops(config: TransformerConfig, batch: int) -> float:
    """Floating-point operations of our forward pass's matrix products (2 per multiply-add); nothing else is counted."""
    length = config.num_tokens + (1 if config.num_classes else 0)
    dim = config.dim
    projections = length * dim * (4 * dim + 2 * config.mlp_dim)
    attention = 2 * length**2 * dim
    inputs = 2 * length * dim**2 if config.input_mlp else 0
    head = config.num_tokens * dim * (dim + config.codebook_size)
    return 2 * batch * (config.depth * (projections + attention) + inputs + head)
