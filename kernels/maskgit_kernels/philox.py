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
    STREAM_REMASK      the lot by which decided tokens are masked again: the word of "code" 0

The words are those of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and of Triton's
`tl.philox(seed, c0, c1, c2, c3)`; `maskgit_kernels.philox_triton` has them for kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_TOKEN = 0
STREAM_CONFIDENCE = 1
STREAM_DROPOUT = 2
STREAM_REMASK = 3

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
    key0, key1 = seeds & _MASK, (seeds >> 32) & _MASK
    words = [_counter_word(c, seeds.device) for c in (c0, c1, c2, c3)]
    shape = torch.broadcast_shapes(seeds.shape, *(word.shape for word in words))
    # Words of a counter that vary along some dimensions only are soon mixed: a round or two are on smaller tensors.
    while rounds and all(word.shape != shape for word in words):
        product_a, product_b = words[0] * _MULTIPLIER_A, words[2] * _MULTIPLIER_B
        words = [
            (((product_b >> 32) ^ key0) & _MASK) ^ words[1],
            product_b & _MASK,
            (((product_a >> 32) ^ key1) & _MASK) ^ words[3],
            product_a & _MASK,
        ]
        key0, key1 = _next_keys(key0, key1)
        rounds -= 1
    # On a CPU, fresh memory for every result and operands that broadcast both take longer than the arithmetic.
    w0, w1, w2, w3, product_a, product_b = (
        torch.empty(shape, dtype=torch.int64, device=seeds.device) for _ in range(6)
    )
    for full, word in zip((w0, w1, w2, w3), words, strict=True):
        full.copy_(word)
    for _ in range(rounds):
        # int64 products wrap modulo 2**64, so one product holds both halves. The low halves w1 and w3 keep their
        # upper bits as rubbish, which the mask after the next round's xor removes.
        torch.mul(w0, _MULTIPLIER_A, out=product_a)
        torch.mul(w2, _MULTIPLIER_B, out=product_b)
        torch.bitwise_right_shift(product_b, 32, out=w0).bitwise_xor_(w1).bitwise_xor_(key0).bitwise_and_(_MASK)
        torch.bitwise_right_shift(product_a, 32, out=w2).bitwise_xor_(w3).bitwise_xor_(key1).bitwise_and_(_MASK)
        w1, w3, product_a, product_b = product_b, product_a, w1, w3
        key0, key1 = _next_keys(key0, key1)
    return w0, w1.bitwise_and_(_MASK), w2, w3.bitwise_and_(_MASK)


def _next_keys(key0: Tensor, key1: Tensor) -> tuple[Tensor, Tensor]:
    return (key0 + _WEYL_0) & _MASK, (key1 + _WEYL_1) & _MASK


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


def random_halves(seeds: Tensor, positions: Tensor, step: Tensor | int, stream: int, count: int) -> Tensor:
    """The 16-bit halves that decide attention dropout: see the module's docstring. Arguments as `random_words`.

    Returns:
        int64 [..., count] in [0, 2**16).
    """
    return _packed_halves(seeds, positions, step, stream, count).to(torch.int64) & 0xFFFF


def _packed_halves(seeds: Tensor, positions: Tensor, step: Tensor | int, stream: int, count: int) -> Tensor:
    """`random_halves` as the int16 of the same bits."""
    octets = torch.arange((count + 7) // 8, device=seeds.device)
    if isinstance(step, Tensor):
        step = step[..., None]
    words = philox_4x32(seeds[..., None], octets, positions[..., None], step, stream, DROPOUT_ROUNDS)
    packed = torch.empty(*words[0].shape, 4, dtype=torch.int32, device=seeds.device)
    for index, word in enumerate(words):
        packed[..., index] = word
    return packed.view(torch.int16).flatten(-2)[..., :count]  # little-endian: the low half of a word comes first


def halves_at_least(
    threshold: int,
    seeds: Tensor,
    positions: Tensor,
    step: Tensor | int,
    stream: int,
    count: int,
    dtype: torch.dtype = torch.bool,
) -> Tensor:
    """`random_halves(...) >= threshold` as 0 and 1 of `dtype`, [..., count]; the other arguments as there.

    Args:
        threshold: in [0, 2**16].
        dtype: any; see `at_least`.
    """
    halves = _packed_halves(seeds, positions, step, stream, count)
    # Flipping the first bit turns the order of unsigned numbers into that of signed ones.
    return at_least(threshold - 2**15, halves.bitwise_xor_(-(2**15)), dtype)


def at_least(threshold: int, numbers: Tensor, dtype: torch.dtype, value: float = 1.0) -> Tensor:
    """`numbers >= threshold` as 0 and `value` of `dtype`; the numbers' memory is used for it.

    Args:
        threshold: in [-(2**15), 2**15].
        numbers: int16, any shape.
        dtype: any. Those of 16 bits are made without a conversion, which from a bool would take a CPU longer than all
            the rest.
        value: rounded to `dtype`.
    """
    if threshold == 2**15:  # no int16
        return torch.zeros_like(numbers, dtype=dtype)
    if dtype.itemsize != numbers.itemsize:
        kept = (numbers >= threshold).to(dtype)
        return kept if value == 1 else kept.mul_(value)
    bits = torch.full((), value, dtype=dtype).view(torch.int16)
    return numbers.ge_(threshold).mul_(bits).view(dtype)


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
