"""A head that says of each decided token whether it is right, for decoding to mask the others again.

Kim et al., "Fine-tuning masked diffusion for provable self-correction" (PRISM), arXiv 2510.01384. The transformer stays
as it is: the head reads what some of its blocks give, in the same pass that predicts the masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from maskgit.network.transformer import Transformer

REVISING_FILE = "revising.safetensors"


class RevisingHead(nn.Module):
    """States of the blocks `taps` in, two log-odds for each token out: that it is right, and that it is nearly so."""

    def __init__(self, dim: int, taps: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("taps", torch.tensor(taps))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in taps)
        self.mlp = nn.Sequential(nn.Linear(len(taps) * dim, dim), nn.GELU(), nn.Linear(dim, 2))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """[..., dim] of every block of the transformer -> [..., 2]."""
        normed = [norm(states[tap]) for norm, tap in zip(self.norms, self.taps.tolist(), strict=True)]
        return self.mlp(torch.cat(normed, dim=-1))


class States:
    """What each block of a transformer gave in its last pass, while in a `with` block."""

    def __init__(self, network: Transformer) -> None:
        self.network, self.last = network, [torch.empty(0)] * len(network.blocks)

    def __enter__(self) -> list[Tensor]:
        def keep(number: int) -> object:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                self.last[number] = output

            return self.network.blocks[number].register_forward_hook(hook)

        self.hooks = [keep(number) for number in range(len(self.last))]
        return self.last

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()


def save_head(head: RevisingHead, folder: Path) -> None:
    """Put the head beside a model."""
    safetensors.torch.save_file(head.state_dict(), folder / REVISING_FILE)


def load_head(folder: Path, dim: int) -> RevisingHead | None:
    """The head beside a model, if there is one."""
    if not (folder / REVISING_FILE).exists():
        return None
    tensors = safetensors.torch.load_file(folder / REVISING_FILE)
    head = RevisingHead(dim, tensors["taps"].tolist())
    head.load_state_dict(tensors)
    return head.eval()
