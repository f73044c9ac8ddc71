"""The noise: Philox4x32-10, a counter-based generator, in plain PyTorch.

A random word is a pure function of a 64-bit key and a 128-bit counter, so nothing is drawn in an order that could
depend on the batch, the device or the number of threads. Everything that decides a token uses

    key      (low, high) 32 bits of the image's own int64 seed (negative seeds are their two's complement bits)
    counter  (code // 4, position, step, stream), each 32 bits
    word     code % 4 of the four words that this key and counter give

`position` is the row-major index of the token in its image, `step` the decoding step, and `stream` keeps uses apart:

    STREAM_TOKEN       the noise that draws a token, one word per code
    STREAM_CONFIDENCE  the noise on a position's confidence: the word of "code" 0
    STREAM_DROPOUT     attention dropout, with 7 rounds: counter (key // 8, query, batch * H + head, stream); the
                       decision on a key is made by half key % 8 of the four words' eight 16-bit halves (low half of
                       word 0, high half of word 0, low half of word 1, ...)

The words are those of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and of Triton's
`tl.philox(seed, c0, c1, c2, c3)`; `maskgit_kernels.philox_triton` has them for kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_TOKEN = 0
STREAM_CONFIDENCE = 1
STREAM_DROPOUT = 2

ROUNDS = 10
DROPOUT_ROUNDS = 7  # the fewest that pass every test of the paper; what FlashAttention-2 uses
_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57  # of counter words 0 and 2
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85  # what each round adds to the key
_MASK = 0xFFFFFFFF

# Largest float32 below one: a word within 64 of 2**32 rounds to x = 1, whose exponential would be infinite.
_MAX_UNIFORM = 1.0 - 2.0**-24


def philox_4x32(
    seeds: Tensor,
    c0: Tensor | int,
    c1: Tensor | int,
    c2: Tensor | int,
    c3: Tensor | int,
    rounds: int = ROUNDS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words for each key and counter.

    Args:
        seeds: int64 tensor, the 64-bit keys.
        c0, c1, c2, c3: int64 tensors or ints, the counter's words; only their low 32 bits count.
            All five broadcast against each other.
        rounds: of the generator.

    Returns:
        Four int64 tensors of the broadcast shape (or one that broadcasts to it) with values in [0, 2**32).
    """
    key0, key1 = seeds & _MASK, (seeds >> 32) & _MASK
    w0, w1, w2, w3 = (torch.as_tensor(c, dtype=torch.int64, device=seeds.device) & _MASK for c in (c0, c1, c2, c3))
    for _ in range(rounds):
        # int64 products wrap modulo 2**64, so one product holds both halves. The low halves w1 and w3 keep their
        # upper bits as rubbish, which the mask after the next round's xor removes.
        product_a, product_b = w0 * _MULTIPLIER_A, w2 * _MULTIPLIER_B
        w0 = _xor(product_b >> 32, w1, key0)
        w2 = _xor(product_a >> 32, w3, key1)
        w1, w3 = product_b, product_a
        key0, key1 = (key0 + _WEYL_0) & _MASK, (key1 + _WEYL_1) & _MASK
    return w0, w1 & _MASK, w2, w3 & _MASK


def _xor(high: Tensor, low: Tensor, key: Tensor) -> Tensor:
    """(high ^ low ^ key) mod 2**32. The first round's operands are small and broadcast, so `high` may have to grow."""
    small = low ^ key  # [B, 1, 1] ^ [Q] in the first rounds; otherwise one full-size pass
    if high.shape == torch.broadcast_shapes(high.shape, small.shape):
        return high.bitwise_xor_(small).bitwise_and_(_MASK)
    return (high ^ small).bitwise_and_(_MASK)


def random_words(seeds: Tensor, positions: Tensor, step: Tensor | int, stream: int, count: int) -> Tensor:
    """The words of `count` codes for every (seed, position): see the module's docstring for the counter.

    Args:
        seeds: int64 [...], one key per row.
        positions: int64 [...], broadcasts against `seeds`.
        step: int or int64 tensor that broadcasts against `seeds`.
        stream: one of the STREAM constants.
        count: number of words per row.

    Returns:
        int64 [..., count] in [0, 2**32).
    """
    quads = torch.arange((count + 3) // 4, device=seeds.device)
    if isinstance(step, Tensor):
        step = step[..., None]
    words = philox_4x32(seeds[..., None], quads, positions[..., None], step, stream)
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(-2)[..., :count]


def random_halves(seeds: Tensor, positions: Tensor, step: Tensor | int, stream: int, count: int) -> Tensor:
    """The 16-bit halves that decide attention dropout: see the module's docstring. Arguments as `random_words`.

    Returns:
        int64 [..., count] in [0, 2**16).
    """
    octets = torch.arange((count + 7) // 8, device=seeds.device)
    if isinstance(step, Tensor):
        step = step[..., None]
    words = philox_4x32(seeds[..., None], octets, positions[..., None], step, stream, DROPOUT_ROUNDS)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(torch.broadcast_tensors(*halves), dim=-1).flatten(-2)[..., :count]


def uniform(words: Tensor) -> Tensor:
    """(word + 0.5) * 2**-32 as float32, in [2**-33, 1 - 2**-24]: never 0 nor 1, for any 32-bit word."""
    return (words.to(torch.float32) + 0.5).mul_(2.0**-32).clamp_(max=_MAX_UNIFORM)


def exponential(words: Tensor) -> Tensor:
    """Exponential(1) noise -log(1 - uniform(word)) as float32: positive and finite, from 2**-33 to 16.6."""
    # log1p keeps the relative precision of small values, which decide who wins a race; 1 - x would round them away.
    return uniform(words).neg_().log1p_().neg_()


def gumbel(words: Tensor) -> Tensor:
    """Standard Gumbel noise -log(exponential(word)) as float32: finite, from -2.8 to 22.9."""
    return exponential(words).log_().neg_()


def exponential_noise(seeds: Tensor, positions: Tensor, step: int, stream: int, count: int) -> Tensor:
    """`exponential(random_words(...))` for a list of rows, converted while the words are interleaved.

    Args:
        seeds, positions: int64 [R].
        step, stream, count: as in `random_words`.

    Returns:
        float32 [R, count].
    """
    quads = torch.arange((count + 3) // 4, device=seeds.device)
    noise = torch.empty(len(seeds), len(quads), 4, dtype=torch.float32, device=seeds.device)
    for index, word in enumerate(philox_4x32(seeds[:, None], quads, positions[:, None], step, stream)):
        noise[:, :, index] = word
    noise.add_(0.5).mul_(2.0**-32).clamp_(max=_MAX_UNIFORM)
    return noise.neg_().log1p_().neg_().flatten(1)[:, :count]
