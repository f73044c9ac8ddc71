"""The counts of every preset by every schedule, against what their sources say (see `restated`)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from restated import GAMMAS, all_left

from maskgit.decoding import DECODERS, DecodeConfig, decode_plan, decoder
from maskgit.decoding.schedules import SCHEDULES


def test_all_schedules_are_there() -> None:
    assert list(SCHEDULES) == list(GAMMAS)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts(schedule: str, name: str) -> None:
    starts = [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 64, 100, 255, 256]
    for steps in (1, 2, 3, 4, 8, 12, 20, 33):
        config = dataclasses.replace(decoder(name), schedule=schedule, steps=steps)
        counts = decode_plan(config, 256).counts
        assert counts.shape == (steps, 257)
        for start in starts:
            assert counts[:, start].tolist() == all_left(name, schedule, steps, start)
        if steps > 3:
            config = dataclasses.replace(config, stop_after=3)
            shortened = decode_plan(config, 256).counts
            assert torch.equal(shortened[:2], counts[:2]) and len(shortened) == 3 and not shortened[2].any()


def test_counts_as_printed() -> None:
    """256 tokens in 8 steps by hand: 256 cos(pi/6) = 221.7, 256 cos(pi/3) = 128, ..."""
    assert all_left("maskgit", "cosine", 3, 256) == [221, 128, 0]
    assert decode_plan(DecodeConfig(steps=3), 256).counts[:, 256].tolist() == [221, 128, 0]
    config = dataclasses.replace(decoder("lab-greedy"), steps=3)
    assert decode_plan(config, 256).counts[:, 256].tolist() == [222, 111, 0]  # ceil(221.7), ceil(222 / 2)
    config = dataclasses.replace(decoder("lab-perturbed"), steps=3)
    assert decode_plan(config, 256).counts[:, 256].tolist() == [256, 221, 0]
