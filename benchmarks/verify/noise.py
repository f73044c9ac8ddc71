"""Checks of the noise: Philox words bit for bit, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from benchmarks.verify.measure import Measurement, poisoned
from maskgit_kernels import philox
from maskgit_kernels.backend import interpreting
from maskgit_kernels.philox_triton import exponential, gumbel, philox_4x32, seed_halves


@triton.jit
def _words(seed, c0, c1, out, step, ROUNDS: tl.constexpr, SIZE: tl.constexpr):
    """out [4, SIZE, SIZE]: words of the counters (c0[j], c1[i], step, 1)."""
    i = tl.arange(0, SIZE)
    key0, key1 = seed_halves(tl.load(seed))
    words = philox_4x32(key0, key1, tl.load(c0 + i)[None, :], tl.load(c1 + i)[:, None], step, 1, ROUNDS=ROUNDS)
    for w in tl.static_range(4):
        tl.store(out + w * SIZE * SIZE + i[:, None] * SIZE + i[None, :], words[w].to(tl.int64))


@triton.jit
def _noise(words, exponentials, gumbels, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    word = tl.load(words + i).to(tl.uint32)
    tl.store(exponentials + i, exponential(word))
    tl.store(gumbels + i, gumbel(word))


def check_words(rounds: int, device: torch.device) -> Iterator[Measurement]:
    """The share of words that differ, for extreme and for ordinary seeds and counters."""
    c0 = torch.tensor([0, 1, 255, 4095, 2**31 - 1, 2**31, 2**32 - 1, 77], device=device)
    c1 = torch.tensor([0, 3, 1024, 65537, 2**31, 2**32 - 2, 5, 900], device=device)
    seeds = (0, 5, -1, -(2**40) - 7, 2**62 + 1, -(2**63))
    steps = (3, 2**31 + 3, 2**32 - 1)
    wrong = 0
    for number in seeds:
        seed = torch.tensor([number], device=device)
        for step in steps:
            with poisoned():
                out = torch.empty(4, 8, 8, dtype=torch.int64, device=device)
                _words[(1,)](seed, c0, c1, out, step, ROUNDS=rounds, SIZE=8)
            expected = philox.philox_4x32(seed[:, None], c0, c1[:, None], step, 1, rounds)
            wrong += int((out != torch.stack(torch.broadcast_tensors(*expected))).sum())
    share = wrong / (len(seeds) * len(steps) * 4 * 64)
    yield Measurement("philox", f"words, {rounds} rounds: share that differ", share, 0.0, 0.0)


def check_noise(device: torch.device) -> Iterator[Measurement]:
    """The largest relative error of exponentials, and of Gumbels relatively to 1 + their size."""
    size = 2**14
    extremes = torch.cat([torch.arange(1024), 2 ** torch.arange(32), 2**32 - 1 - torch.arange(992)])
    generator = torch.Generator().manual_seed(0)
    words = torch.cat([extremes, torch.randint(2**32, (2 * size - len(extremes),), generator=generator)]).to(device)
    with poisoned():
        exponentials, gumbels = torch.empty(2 * size, device=device), torch.empty(2 * size, device=device)
        _noise[(2,)](words, exponentials, gumbels, SIZE=size)
    e = -torch.log1p(-philox.uniform(words).double())
    g = -e.log()
    limit = 4e-7 if interpreting() else 1e-6  # what maskgit_kernels.philox_triton promises
    for name, ours, plain, exact, scale in (
        ("exponential", exponentials, philox.exponential(words), e, e),
        ("Gumbel", gumbels, philox.gumbel(words), g, 1 + g.abs()),
    ):
        error, reference_error = (((x.double() - exact).abs() / scale).max().item() for x in (ours, plain))
        yield Measurement("philox", f"{name} noise: largest relative error", error, reference_error, limit)
