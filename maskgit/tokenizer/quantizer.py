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


def _odds(distance: Tensor) -> Tensor:
    # Of a run that has diverged, nothing may stop here: the training loop says what happened, multinomial does not.
    return distance.nan_to_num(0.0, 0.0) + 1e-12


def spread(vectors: Tensor, count: int) -> Tensor:
    """Some of the vectors [M, D], drawn one by one by squared distance to those drawn before: float [count, D].

    k-means++ (Arthur and Vassilvitskii, 2007): dense regions, such as a white background, get few.
    """
    chosen = vectors[torch.randint(len(vectors), (1,), device=vectors.device)]
    distance = (vectors - chosen).square().sum(1)
    for _ in range(count - 1):
        new = vectors[torch.multinomial(_odds(distance), 1)]
        distance = torch.minimum(distance, (vectors - new).square().sum(1))
        chosen = torch.cat([chosen, new])
    return chosen


class CodebookTracker(nn.Module):
    """Training state of a codebook: running means of what each code attracts, and revival of dead codes.

    Exponential moving averages are the update of VQ-VAE's appendix A.1. The codes start spread over the first batch. A
    code that attracts less than `dead_fraction` of its fair share is moved to a vector of the batch, drawn by its
    squared distance to the nearest code, so that codes go where they are missed.
    """

    count: Tensor
    total: Tensor
    started: Tensor

    def __init__(self, codebook: Codebook, decay: float = 0.98, dead_fraction: float = 0.05) -> None:
        super().__init__()
        self.decay, self.dead_fraction = decay, dead_fraction
        size, dim = codebook.weight.shape
        self.register_buffer("count", torch.zeros(size))
        self.register_buffer("total", torch.zeros(size, dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def start(self, codebook: Codebook, vectors: Tensor) -> None:
        """Place the codes among the first batch's vectors [M, D], once; later calls do nothing."""
        if self.started:
            return
        codebook.weight.copy_(spread(vectors.float(), len(self.count)))
        self.count.fill_(len(vectors) / len(self.count))
        self.total.copy_(codebook.weight * self.count[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def update(self, codebook: Codebook, vectors: Tensor, tokens: Tensor) -> Tensor:
        """Move the codes towards the vectors [M, D] that chose them (ids int64 [M]); returns the number revived, []."""
        vectors = vectors.float()
        size = len(self.count)
        error = (vectors - codebook(tokens)).square().sum(1)
        count = torch.zeros_like(self.count).index_add_(0, tokens, torch.ones_like(vectors[:, 0]))
        total = torch.zeros_like(self.total).index_add_(0, tokens, vectors)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        dead = self.count < self.dead_fraction * len(vectors) / size
        # A revived code starts with a fair share, so that it has time to find its place before the next check.
        fresh = vectors[torch.multinomial(_odds(error), size, replacement=True)]
        share = torch.full_like(self.count, len(vectors) / size)
        self.count.copy_(torch.where(dead, share, self.count))
        self.total.copy_(torch.where(dead[:, None], fresh * share[:, None], self.total))
        codebook.weight.copy_(self.total / self.count[:, None])
        return dead.sum()
