"""The noise as kernels see it, held against the noise as PyTorch computes it."""

import pytest
import torch

from maskgit_kernels import philox
from maskgit_kernels.backend import interpreting

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
noise = pytest.importorskip("maskgit_kernels.philox_triton")


@triton.jit
def words_kernel(seed, c0, c1, out, step, STREAM: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr):
    """out [4, SIZE, SIZE]: words of the counters (c0[j], c1[i], step, STREAM)."""
    i = tl.arange(0, SIZE)
    key0, key1 = noise.seed_halves(tl.load(seed))
    words = noise.philox_4x32(
        key0, key1, tl.load(c0 + i)[None, :], tl.load(c1 + i)[:, None], step, STREAM, ROUNDS=ROUNDS
    )
    for w in tl.static_range(4):
        cells = w * SIZE * SIZE + i[:, None] * SIZE + i[None, :]  # [SIZE, SIZE]
        tl.store(out + cells, words[w].to(tl.int64))


@triton.jit
def noise_kernel(words, uniforms, exponentials, gumbels, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    word = tl.load(words + i).to(tl.uint32)
    tl.store(uniforms + i, noise.uniform(word))
    tl.store(exponentials + i, noise.exponential(word))
    tl.store(gumbels + i, noise.gumbel(word))


@pytest.mark.parametrize("rounds", [philox.ROUNDS, philox.DROPOUT_ROUNDS])
@pytest.mark.parametrize("seed", [0, 5, -1, -(2**40) - 7, 2**32, 2**62 + 1, -(2**63)])
def test_words_are_the_same_bit_for_bit(seed, rounds, device):
    seeds = torch.tensor([seed], device=device)
    c0 = torch.tensor([0, 1, 255, 4095, 2**31 - 1, 2**31, 2**32 - 1, 77], device=device)
    c1 = torch.randint(2**32, (8,), device=device)
    for step, stream in ((0, 0), (7, 1), (2**31 + 3, 2), (2**32 - 1, 3)):
        out = torch.empty(4, 8, 8, dtype=torch.int64, device=device)
        words_kernel[(1,)](seeds, c0, c1, out, step, STREAM=stream, ROUNDS=rounds, SIZE=8)
        expected = philox.philox_4x32(seeds[:, None], c0, c1[:, None], step, stream, rounds)
        assert torch.equal(out, torch.stack(torch.broadcast_tensors(*expected)))


def test_noise_of_every_kind_of_word(device):
    extremes = torch.cat([torch.arange(1024), 2 ** torch.arange(32), 2**32 - 1 - torch.arange(992)])
    words = torch.cat([extremes, torch.randint(2**32, (2**17,)), torch.randint(2**28, (2**15 - 2048,))]).to(device)
    uniforms, exponentials, gumbels = (torch.empty(len(words), device=device) for _ in range(3))
    size = 2**15
    noise_kernel[(len(words) // size,)](words, uniforms, exponentials, gumbels, SIZE=size)

    assert torch.equal(uniforms, philox.uniform(words))
    exact = -torch.log1p(-uniforms.double())
    precision = 4e-7 if interpreting() else 1e-6
    torch.testing.assert_close(exponentials.double(), exact, rtol=precision, atol=0)
    torch.testing.assert_close(gumbels.double(), -exact.log(), rtol=precision, atol=precision)
    assert (exponentials > 0).all() and exponentials.isfinite().all() and gumbels.isfinite().all()
    torch.testing.assert_close(exponentials, philox.exponential(words), rtol=2 * precision, atol=0)
