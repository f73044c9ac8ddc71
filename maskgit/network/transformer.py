"""The bidirectional transformer that predicts masked tokens: one class, one file, every preset.

It is BERT over a token grid (Chang et al., "MaskGIT", CVPR 2022, section 3.2): learned position embeddings, no causal
mask, and a head that scores every code at every position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskgit.config import HaltonConfig, TransformerConfig
from maskgit.network.dropout import Dropout, layer_seeds
from maskgit_kernels.attention import attention, attention_packed
from maskgit_kernels.head_loss import head_loss

if TYPE_CHECKING:
    from maskgit.network.partial import Context

EDGE_NORM_EPS = 1e-12  # of the LayerNorms before the first and after the last block, in every source
INIT_STD = 0.02
RMS_NORM_EPS = 1e-5  # of queries and keys, and of all norms of HaltonTransformer


def _gelu(config: TransformerConfig) -> nn.GELU:
    return nn.GELU("tanh" if config.gelu == "tanh" else "none")


def pick(x: Tensor, rows: Tensor | None) -> Tensor:
    """[B, N, dim] -> [R, dim], the rows of these int64 numbers [R] in all the B * N; None: all, as they are."""
    return x if rows is None else x.flatten(0, 1).index_select(0, rows)


class QKNorm(torch.autograd.Function):
    """Queries and keys with unit mean square over all heads together; values as they are.

    In float32 are only the mean squares. Backward, autograd would make each of the three a gradient and copy these into
    one.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> Tensor:
        """[B, N, 3, dim] -> the same."""
        exact = torch.promote_types(packed.dtype, torch.float32)
        length = torch.linalg.vector_norm(packed[:, :, :2], dim=-1, keepdim=True, dtype=exact)
        factor = (length.square() / packed.shape[-1] + RMS_NORM_EPS).rsqrt()
        factor = F.pad(factor, (0, 0, 0, 1), value=1.0).to(packed.dtype)  # [B, N, 3, 1]
        out = packed * factor
        ctx.save_for_backward(out, factor)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        out, factor = ctx.saved_tensors
        exact = torch.promote_types(grad.dtype, torch.float32)
        along = (grad[:, :, :2] * out[:, :, :2]).mean(-1, keepdim=True, dtype=exact)
        along = F.pad(along.to(grad.dtype), (0, 0, 0, 1))  # [B, N, 3, 1]
        return torch.addcmul(grad, out, along, value=-1).mul_(factor)


class Attention(nn.Module):
    """Multi-head self-attention; the packed projection is read in place, and its gradient written in place."""

    def __init__(self, config: TransformerConfig | HaltonConfig, bias: bool = True, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout, self.qk_norm = config.heads, config.attention_dropout, qk_norm
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=bias)

    def project(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> queries, keys and values, [B, N, 3, H, D]."""
        packed = self.qkv(x).unflatten(-1, (3, -1))
        return (QKNorm.apply(packed) if self.qk_norm else packed).unflatten(-1, (self.heads, -1))

    def forward(
        self, x: Tensor, seed: Tensor | None = None, context: Context | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """[B, N, dim] -> [B, N, dim], or [R, dim] of some rows (see `pick`).

        With a seed, int64 [], weights are dropped. With a context, of the positions that it evaluates, which see all
        positions.
        """
        qkv = self.project(x)
        dropout_p = 0.0 if seed is None else self.dropout
        if context is None:
            out = attention_packed(qkv, dropout_p=dropout_p, seed=seed)  # [B, N, H, D]
        else:
            q, k, v = qkv.transpose(1, 3).unbind(2)  # [B, H, N, D] each
            k, v = context.recall(self, k, v)
            out = attention(q, k, v, dropout_p=dropout_p, seed=seed).transpose(1, 2)
        return self.proj(pick(out.flatten(2), rows))


class Block(nn.Module):
    """Attention and MLP, each a residual branch, with the LayerNorm before the branch or after the sum."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.norm1 = nn.LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, qk_norm=config.qk_norm)
        self.norm2 = nn.LayerNorm(config.dim, config.norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.mlp_dim), _gelu(config), nn.Linear(config.mlp_dim, config.dim)
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, seed: Tensor | None = None, context: Context | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """As `Attention`."""
        if self.pre_norm:
            x = pick(x, rows) + self.dropout(self.attention(self.norm1(x), seed, context, rows))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(pick(x, rows) + self.dropout(self.attention(x, seed, context, rows)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class Transformer(nn.Module):
    """Tokens with holes in, logits over the codes out.

    The embedding table holds V codes, the mask token (id V) and, for a class-conditional model, C classes and one
    "no class" label. The class token stands after the N image tokens; attention has no order, so this covers models
    that put it first.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        """In training, keep only the input of each block and compute the rest anew in the backward pass."""
        labels = config.num_classes + 1 if config.num_classes else 0
        length = config.num_tokens + (1 if labels else 0)
        self.token_embedding = nn.Embedding(config.codebook_size + 1 + labels, config.dim)
        self.position_embedding = nn.Parameter(torch.empty(length, config.dim))
        self.embedding_norm = nn.LayerNorm(config.dim, EDGE_NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.input_mlp: nn.Module = nn.Identity()
        if config.input_mlp:
            self.input_mlp = nn.Sequential(
                nn.Linear(config.dim, config.dim),
                _gelu(config),
                nn.LayerNorm(config.dim, EDGE_NORM_EPS),
                Dropout(config.dropout),
                nn.Linear(config.dim, config.dim),
            )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.dim, EDGE_NORM_EPS) if config.norm == "pre" else nn.Identity()
        self.head = nn.Sequential(
            nn.Linear(config.dim, config.dim), _gelu(config), nn.LayerNorm(config.dim, EDGE_NORM_EPS)
        )
        if config.tied:
            self.bias = nn.Parameter(torch.zeros(config.num_tokens, config.codebook_size))
        else:
            self.unembedding = nn.Linear(config.dim, config.codebook_size)
        self.apply(self._initialise)
        nn.init.trunc_normal_(self.position_embedding, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        context: Context | None = None,
        rows: Tensor | None = None,
        targets: Tensor | None = None,
        counted: Tensor | None = None,
        label_smoothing: float = 0.0,
        hits_among: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits over the codes at every position, or, given targets, their loss, for which no logits are kept.

        Args:
            tokens: int64 [B, N]; positions to predict hold the mask token V.
            labels: int64 [B] in [0, C]; C (or None) means no class. Only for models with classes.
            context: keeps keys and values, and says which positions to evaluate (see `maskgit.network.partial`).
            rows: int64 [R], each number in [0, B * N) at most once: the positions b * N + n whose logits are wanted,
                which saves the others the last block and the head. Not together with a context.
            targets: int64 [B, N], the codes that were to be predicted.
            counted, label_smoothing, hits_among: with targets, as for `head_loss`. `rows` must hold what is counted.

        Returns:
            [B, N, V]: the mask token has no column, so it can't be predicted. Where nothing is evaluated, the bias.
            With targets what `head_loss` returns: the sum of the losses, and the number of hits.

        Raises:
            ValueError: N isn't the model's, labels are given to a model without classes, or both context and rows.
        """
        x = self.hidden(tokens, labels, context, rows)
        if targets is not None:
            assert counted is not None
            head = self.output_weights()
            return head_loss(x, *head, targets, counted, label_smoothing=label_smoothing, hits_among=hits_among)
        if not self.config.tied:
            return self.unembedding(x)
        weight, bias = self.output_weights()
        return F.linear(x, weight) + bias

    def _embed(self, tokens: Tensor) -> Tensor:
        """[B, N] -> [B, N, dim]."""
        if not torch.compiler.is_compiling() or tokens.device.type != "cpu":
            return self.token_embedding(tokens)
        # As bags of one token, which TorchInductor leaves to PyTorch. An embedding's gradient it makes a loop of atomic
        # additions, in which the threads wait for each other: most tokens are masked, and so in the same row.
        bags = F.embedding_bag(tokens.flatten()[:, None], self.token_embedding.weight, mode="sum")
        return bags.view(*tokens.shape, -1)

    def output_weights(self) -> tuple[Tensor, Tensor]:
        """The last product: weight [V, dim] and bias, [V] or one for each position, [N, V], for `hidden`'s states."""
        if self.config.tied:
            return self.token_embedding.weight[: self.config.codebook_size], self.bias
        return self.unembedding.weight, self.unembedding.bias

    def hidden(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        context: Context | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """What the last product turns into logits: [B, N, dim], 0 where nothing is evaluated. As for `forward`."""
        config = self.config
        if tokens.shape[1] != config.num_tokens:
            raise ValueError(f"the model takes {config.num_tokens} tokens an image, got {tokens.shape[1]}")
        if context is not None and rows is not None:
            raise ValueError("a context says which positions to evaluate: it can't be given rows too")
        if config.num_classes:
            if labels is None:
                labels = torch.full_like(tokens[:, 0], config.num_classes)
            tokens = torch.cat([tokens, (labels + config.codebook_size + 1)[:, None]], dim=1)
        elif labels is not None:
            raise ValueError("labels were given, but the model was trained without classes (num_classes is 0)")
        x = self._embed(tokens) + self.position_embedding
        count = config.num_tokens
        if context is not None:
            x, count = context.select(x, count)  # from here on N is the number of positions that are evaluated
        x = self.input_mlp(self.dropout(self.embedding_norm(x)))  # [B, N (+ 1), dim]
        batch, length, dim = x.shape
        seeds = layer_seeds(config.depth, config.attention_dropout if self.training else 0.0, x.device)
        for number, (block, seed) in enumerate(zip(self.blocks, seeds, strict=True), 1):
            # The class token has no logits.
            last = None if rows is None or number < len(self.blocks) else rows + rows // count * (length - count)
            if self.checkpoint_blocks and self.training:
                x = checkpoint(block, x, seed, context, last, use_reentrant=False)
            else:
                x = block(x, seed, context, last)
        if rows is not None:
            x = self.head(self.final_norm(x))  # [R, dim]
            return x.new_zeros(batch * count, dim).index_copy(0, rows, x).view(batch, count, dim)
        x = self.head(self.final_norm(x[:, :count]))  # [B, N, dim]
        return x if context is None else context.spread(x)
