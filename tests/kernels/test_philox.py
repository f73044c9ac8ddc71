import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from maskgit_kernels.philox import (
    DROPOUT_ROUNDS,
    STREAM_CONFIDENCE,
    STREAM_DROPOUT,
    STREAM_TOKEN,
    exponential,
    exponential_noise,
    gumbel,
    philox_4x32,
    random_bytes,
    random_words,
    uniform,
)


def as_int64(value: int) -> torch.Tensor:
    """The int64 tensor with the bits of an unsigned 64-bit value."""
    return torch.tensor(value - 2**64 if value >= 2**63 else value)


# The known answers that come with the authors' Random123 library: rounds, counter, key, words.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    (10, (0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, PI, 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    (7, (0, 0, 0, 0), 0, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, (0xFFFFFFFF,) * 4, 2**64 - 1, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, PI, 0x299F31D0A4093822, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
]


@pytest.mark.parametrize("rounds, counter, key, expected", KNOWN)
def test_known_answers(rounds, counter, key, expected):
    words = philox_4x32(as_int64(key), *counter, rounds=rounds)
    assert tuple(int(word) for word in words) == expected
    assert rounds == 10 or rounds == DROPOUT_ROUNDS


def test_broadcasting_equals_one_by_one():
    seeds = torch.tensor([-1, 0, 7])[:, None, None]
    positions = torch.arange(5)[None, :, None]
    quads = torch.arange(4)
    together = philox_4x32(seeds, quads, positions, 2, 1)
    for b in range(3):
        for n in range(5):
            for q in range(4):
                alone = philox_4x32(seeds[b, 0, 0], q, n, 2, 1)
                assert [int(w) for w in alone] == [int(w.expand(3, 5, 4)[b, n, q]) for w in together]


def test_arguments_are_not_modified():
    seeds, quads = torch.tensor([-5, 2**40]), torch.tensor([3, 9])
    philox_4x32(seeds, quads, 1, 2, 3)
    assert seeds.tolist() == [-5, 2**40] and quads.tolist() == [3, 9]


@pytest.mark.parametrize("count", [1, 4, 5, 1023])
def test_rows_equal_words(count):
    seeds, positions = torch.tensor([-9, 4, 2**62]), torch.tensor([0, 3, 255])
    words = random_words(seeds, positions, 6, STREAM_TOKEN, count)
    assert words.shape == (3, count)
    assert torch.equal(exponential_noise(seeds, positions, 6, STREAM_TOKEN, count), exponential(words))


@pytest.mark.parametrize("count", [1, 16, 21, 64])
def test_bytes_are_those_of_the_words(count):
    seeds, queries, pairs = torch.tensor([[-9]]), torch.arange(3)[None, :], torch.tensor([[5], [2**31]])
    found = random_bytes(seeds, queries, pairs, STREAM_DROPOUT, count)  # [2, 3, count]
    assert found.shape == (2, 3, count) and found.dtype == torch.uint8
    for pair in range(2):
        for query in range(3):
            for key in range(count):
                words = philox_4x32(seeds[0, 0], key // 16, query, pairs[pair, 0], STREAM_DROPOUT, DROPOUT_ROUNDS)
                word = int(words[key % 16 // 4])
                assert int(found[pair, query, key]) == word >> 8 * (key % 4) & 0xFF


def test_bytes_are_uniform():
    found = random_bytes(torch.tensor(7), torch.arange(256), 3, STREAM_DROPOUT, 257)
    counts = torch.bincount(found.flatten().long(), minlength=256)
    expected = found.numel() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 340  # 255 degrees of freedom: beyond it once in 4000
    pairs = found[:, :-1] - 127.5, found[:, 1:] - 127.5  # neighbors, mostly two bytes of one word
    assert abs((pairs[0] * pairs[1]).mean()) < 5 * (2.0**16 / 12) / pairs[0].numel() ** 0.5


@pytest.mark.parametrize("shapes", [((), (3,), (2, 1), ()), ((2, 1), (3,), (2, 1), (2, 1)), ((), (), (), ())], ids=str)
@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 7])
def test_words_that_depend_on_some_dimensions_only(shapes, rounds):
    """Whatever the rounds in which they are mixed, the words are those of full tensors."""
    seeds = torch.tensor([-5, 2**40 + 9])[:, None]
    counter = [torch.randint(2**32, shape) for shape in shapes]
    whole = torch.broadcast_shapes(seeds.shape, *shapes)
    expected = philox_4x32(seeds.expand(whole).clone(), *(c.expand(whole).clone() for c in counter), rounds=rounds)
    assert torch.equal(torch.stack(philox_4x32(seeds, *counter, rounds=rounds)), torch.stack(expected))


def test_every_part_of_the_counter_matters():
    seed, position = torch.tensor(1), torch.tensor(2)
    base = random_words(seed, position, 3, STREAM_TOKEN, 8)
    others = [
        random_words(seed + 1, position, 3, STREAM_TOKEN, 8),
        random_words(seed + 2**32, position, 3, STREAM_TOKEN, 8),
        random_words(seed, position + 1, 3, STREAM_TOKEN, 8),
        random_words(seed, position, 4, STREAM_TOKEN, 8),
        random_words(seed, position, 3, STREAM_CONFIDENCE, 8),
    ]
    assert all((base != other).all() for other in others)
    assert len(base.unique()) == 8


def test_noise_is_finite_at_the_extreme_words():
    words = torch.tensor([0, 1, 2**31, 2**32 - 129, 2**32 - 64, 2**32 - 1])
    u, e, g = uniform(words), exponential(words), gumbel(words)
    assert u.min() == 2.0**-33 and u.max() == 1 - 2.0**-24
    assert e.isfinite().all() and (e > 0).all() and e.max() < 16.7
    assert g.isfinite().all() and 22.8 < g[0] < 22.9


def test_noise_is_as_precise_as_float32_allows():
    """Of small values too, which decide who wins a race."""
    words = torch.cat(
        [torch.arange(2000), 2 ** torch.arange(32), torch.randint(2**32, (200000,)), 2**32 - torch.arange(1, 999)]
    )
    exact = -torch.log1p(-uniform(words).double())
    torch.testing.assert_close(exponential(words).double(), exact, rtol=2.5e-7, atol=0)
    torch.testing.assert_close(gumbel(words).double(), -exact.log(), rtol=2.5e-7, atol=2.5e-7)


def test_distribution_of_the_noise():
    words = random_words(torch.tensor(123), torch.arange(64), 0, STREAM_TOKEN, 1024)
    u, g = uniform(words).double(), gumbel(words).double()
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / u.numel()) ** 0.5
    assert abs(g.mean() - 0.5772156649) < 5 * (1.6449 / g.numel()) ** 0.5
    counts = torch.histc(u, 64, 0, 1)
    chi2 = ((counts - u.numel() / 64) ** 2 / (u.numel() / 64)).sum()
    assert chi2 < 110  # 63 degrees of freedom: beyond it once in 4000


TRITON_WORDS = """
import torch, triton, triton.language as tl
from maskgit_kernels.philox import philox_4x32

@triton.jit
def kernel(seeds, c0, c1, out, step, stream, n: tl.constexpr):
    i = tl.arange(0, n)
    zero = tl.zeros([n], tl.uint32)
    a = tl.load(c0 + i).to(tl.uint32)
    b = tl.load(c1 + i).to(tl.uint32)
    words = tl.philox(tl.load(seeds), a, b, zero + step, zero + stream)
    for w in tl.static_range(4):
        tl.store(out + w * n + i, words[w].to(tl.int64))

for seed in (0, 5, -1, -(2**40) - 7, 2**62 + 1):
    seeds, c0, c1 = torch.tensor([seed]), torch.arange(64), torch.arange(64) * 67108879 % 2**32
    out = torch.empty(4, 64, dtype=torch.int64)
    kernel[(1,)](seeds, c0, c1, out, 3, 2, 64)
    ours = torch.stack(philox_4x32(seeds, c0, c1, 3, 2))
    assert torch.equal(out & 0xFFFFFFFF, ours), seed
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_words_are_tritons(tmp_path):
    script = tmp_path / "words.py"  # Triton reads a kernel's source from its file
    script.write_text(TRITON_WORDS)
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-2000:]
