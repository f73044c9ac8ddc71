"""Guidance in an interval of the steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgit.decoding import DecodeConfig
from maskgit.decoding.loop import decode


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 1.0), [0, 1, 2, 3, 4, 5, 6, 7]),
        ((0.5, 1.0), [4, 5, 6, 7]),
        ((0.25, 0.5), [2, 3]),
        ((0.3, 0.5), [3]),
        ((0.0, 0.25), [0, 1]),
        ((0.5, 0.5), []),
    ],
)
def test_guidance_in_an_interval_of_the_steps(interval: tuple[float, float], guided: list[int]) -> None:
    """Guided steps take both passes and give what guidance at those steps alone gives; the others take one."""
    torch.manual_seed(0)
    conditional, unconditional = 4 * torch.randn(2, 3, 32, 5)
    passes: list[int] = []

    def once(tokens: Tensor) -> Tensor:
        passes.append(1)
        return conditional

    def twice(tokens: Tensor) -> tuple[Tensor, Tensor]:
        passes.append(2)
        return conditional, unconditional

    class ByHand(DecodeConfig):
        def guidance_at(self, step: int) -> float:
            return 3.0 if step in guided else 0.0

    config = DecodeConfig(guidance_scale=3.0, guidance_from=interval[0], guidance_to=interval[1])
    tokens, masked = torch.zeros(3, 32, dtype=torch.int64), torch.ones(3, 32, dtype=torch.bool)
    results = []
    for one in (config, ByHand(guidance_scale=3.0)):
        passes.clear()
        results.append(decode(once, tokens, masked, one, torch.arange(3), mask_token_id=5, tokens_to_guided=twice))
        assert passes == [2 if step in guided else 1 for step in range(8)]
        assert sum(passes) == one.passes
    assert torch.equal(*results)
    plain = decode(once, tokens, masked, DecodeConfig(), torch.arange(3), mask_token_id=5)
    assert torch.equal(results[0], plain) == (not guided)
