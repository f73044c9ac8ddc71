"""The noise: Philox4x32-10, a counter-based generator, in plain PyTorch.

A random word is a pure function of a 64-bit key and a 128-bit counter, so nothing is drawn in an order that could
depend on the batch, the device or the number of threads. Everything that decides a token uses

    key      (low, high) 32 bits of the image's own int64 seed (negative seeds are their two's complement bits)
    counter  (code // 4, position, step, stream), each 32 bits
    word     code % 4 of the four words that this key and counter give

`position` is the row-major index of the token in its image, `step` the decoding step, and `stream` keeps uses apart:

    STREAM_TOKEN       the noise that draws a token, one word per code
    STREAM_CONFIDENCE  the noise on a position's confidence: the word of "code" 0
    STREAM_DROPOUT     attention dropout, with 7 rounds: counter (key // 16, query, batch * H + head, stream); the
                       decision on a key is made by byte key % 16 of the four words' sixteen bytes (lowest of word 0
                       first)
    STREAM_REMASK      the lot by which decided tokens are masked again: the word of "code" 0
    STREAM_DRAFT       the lot by which a draft's token stays: the word of "code" 0

The words are those of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and of Triton's
`tl.philox(seed, c0, c1, c2, c3)`; `maskgit_kernels.philox_triton` has them for kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

STREAM_TOKEN = 0
STREAM_CONFIDENCE = 1
STREAM_DROPOUT = 2
STREAM_REMASK = 3
STREAM_DRAFT = 4

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
        Four int64 tensors of the broadcast shape with values in [0, 2**32).
    """
    words = _rounds(seeds, (c0, c1, c2, c3), rounds)
    shape = torch.broadcast_shapes(seeds.shape, *(word.shape for word in words))
    w0, w1, w2, w3 = (word.expand(shape) for word in words)
    return w0, w1 & _MASK, w2, w3 & _MASK


def _rounds(seeds: Tensor, counter: tuple[Tensor | int, ...], rounds: int) -> list[Tensor]:
    """The four words after some rounds, the second and the fourth with rubbish in their upper 32 bits.

    int64 products wrap modulo 2**64, so one product holds both halves. The lower one is the next word 1 or 3, and the
    upper stays there until it would get into another product.
    """
    w0, w1, w2, w3 = (_counter_word(word, seeds.device) for word in counter)
    shape = torch.broadcast_shapes(seeds.shape, w0.shape, w1.shape, w2.shape, w3.shape)
    keys = _round_keys(seeds, rounds)
    for key0, key1 in keys:  # on tensors of no more dimensions than a word depends on so far
        product_a, product_b = w0 * _MULTIPLIER_A, w2 * _MULTIPLIER_B
        w0, w1 = _mix(product_b >> 32, w1, key0), product_b
        w2, w3 = _mix(product_a >> 32, w3, key1), product_a
        if w0.shape == w2.shape == shape:
            break
    # From here on in place: on a CPU, fresh memory for every result takes longer than the arithmetic.
    w1, w3 = (word if word.shape == shape else word.expand(shape).clone() for word in (w1, w3))
    upper = torch.empty_like(w0)
    for key0, key1 in keys:
        w0.mul_(_MULTIPLIER_A)
        w2.mul_(_MULTIPLIER_B)
        w1 = _mix(w1, torch.bitwise_right_shift(w2, 32, out=upper), key0)
        w3 = _mix(w3, torch.bitwise_right_shift(w0, 32, out=upper), key1)
        w0, w1, w2, w3 = w1, w2, w3, w0
    return [w0, w1, w2, w3]


def _round_keys(seeds: Tensor, rounds: int) -> Iterator[tuple[Tensor, Tensor]]:
    steps = torch.arange(rounds, device=seeds.device).view(-1, *[1] * seeds.dim())
    lower, upper = seeds + steps * _WEYL_0, (seeds >> 32) + steps * _WEYL_1
    return zip((lower & _MASK).unbind(), (upper & _MASK).unbind(), strict=True)


def _mix(word: Tensor, *others: Tensor) -> Tensor:
    """Exclusive or of all, its lower 32 bits; in the memory of `word` if that is large enough."""
    for other in others:
        fits = torch.broadcast_shapes(word.shape, other.shape) == word.shape
        word = word.bitwise_xor_(other) if fits else word ^ other
    return word.bitwise_and_(_MASK)


def _counter_word(value: Tensor | int, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, torch.int64) & _MASK
    # Filled, not copied from the host: a copy waits for the GPU, and a CUDA graph can't hold it.
    return torch.full((), value & _MASK, dtype=torch.int64, device=device)


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


def random_bytes(seeds: Tensor, positions: Tensor, step: Tensor | int, stream: int, count: int) -> Tensor:
    """The bytes that decide attention dropout: see the module's docstring. Arguments as `random_words`.

    Returns:
        uint8 [..., count].
    """
    counters = torch.arange((count + 15) // 16, device=seeds.device)
    if isinstance(step, Tensor):
        step = step[..., None]
    w0, w1, w2, w3 = _rounds(seeds[..., None], (counters, positions[..., None], step, stream), DROPOUT_ROUNDS)
    packed = torch.empty(*w0.shape, 2, dtype=torch.int64, device=seeds.device)
    packed[..., 0] = w0.add_(w1, alpha=2**32)  # which leaves no room for the rubbish
    packed[..., 1] = w2.add_(w3, alpha=2**32)
    return packed.view(torch.uint8).flatten(-2)[..., :count]  # little-endian: the lowest byte of a word comes first


def uniform(words: Tensor) -> Tensor:
    """(word + 0.5) * 2**-32 as float32, in [2**-33, 1 - 2**-24]: never 0 nor 1, for any 32-bit word."""
    return (words.to(torch.float32) + 0.5).mul_(2.0**-32).clamp_(max=_MAX_UNIFORM)


def exponential(words: Tensor) -> Tensor:
    """Exponential(1) noise -log(1 - uniform(word)) as float32: positive and finite, from 2**-33 to 16.6."""
    return _exponential_of(uniform(words))


def _exponential_of(x: Tensor) -> Tensor:
    """-log(1 - x) for float32 in (0, 1), to about 2e-7 relatively, in the memory of x.

    What 1 - x rounds away is most of a small x, and small values decide who wins a race. It is known exactly, so it is
    put back: log1p as a logarithm and two sums, which on a CPU takes a tenth of the time.
    """
    rest = 1 - x
    x.sub_(1 - rest)  # what was rounded away
    return x.sub_(rest.log_())


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
    noise.mul_(2.0**-32).add_(2.0**-33).clamp_(max=_MAX_UNIFORM)  # uniform(words): the scaling rounds nothing
    return _exponential_of(noise).flatten(1)[:, :count]
