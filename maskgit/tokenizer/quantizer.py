"""Vector quantization: nearest codes, and a codebook that follows the encoder while it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """V codes of width D, looked up by squared Euclidean distance (van den Oord et al., 2017)."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        # No gradient reaches the codes: CodebookTracker moves them.
        self.weight = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size), requires_grad=False)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids int64 [M] of the codes nearest to float vectors [M, D]; computed in float32 whatever the input."""
        with torch.autocast(vectors.device.type, enabled=False):
            codes, vectors = self.weight.float(), vectors.float()
            # |v - c|^2 without |v|^2, which is the same for every code.
            return torch.addmm(codes.square().sum(1), vectors, codes.t(), alpha=-2).argmin(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Codes float [..., D] of the token ids int64 [...]."""
        return nn.functional.embedding(tokens, self.weight)


class CodebookTracker(nn.Module):
    """Training state of a codebook: running means of what each code attracts, and revival of dead codes.

    Exponential moving averages are the update of VQ-VAE's appendix A.1; a code that attracts less than
    `dead_fraction` of its fair share is moved to a random vector of the batch.
    """

    count: Tensor
    total: Tensor

    def __init__(self, codebook: Codebook, decay: float = 0.99, dead_fraction: float = 0.05) -> None:
        super().__init__()
        self.decay, self.dead_fraction = decay, dead_fraction
        size, dim = codebook.weight.shape
        self.register_buffer("count", torch.zeros(size))
        self.register_buffer("total", torch.zeros(size, dim))

    @torch.no_grad()
    def update(self, codebook: Codebook, vectors: Tensor, tokens: Tensor) -> Tensor:
        """Move the codes towards the vectors [M, D] that chose them (ids int64 [M]); how many were revived, int64 []."""
        vectors = vectors.float()
        size = len(self.count)
        count = torch.zeros_like(self.count).index_add_(0, tokens, torch.ones_like(vectors[:, 0]))
        total = torch.zeros_like(self.total).index_add_(0, tokens, vectors)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        dead = self.count < self.dead_fraction * len(vectors) / size
        # A revived code starts with a fair share, so that it has time to find its place before the next check.
        fresh = vectors[torch.randint(len(vectors), (size,), device=vectors.device)]
        share = torch.full_like(self.count, len(vectors) / size)
        self.count.copy_(torch.where(dead, share, self.count))
        self.total.copy_(torch.where(dead[:, None], fresh * share[:, None], self.total))
        codebook.weight.copy_(self.total / self.count[:, None])
        return dead.sum()
