"""The noise of `maskgit_kernels.philox`, as functions to call from Triton kernels.

The words and the uniforms are the same bit for bit. Exponentials and Gumbels are the same up to rounding: within 1e-6
of the exact value, relatively; of these 4e-7 where kernels are interpreted, for the interpreter does not have the GPU's
own approximation of the logarithm, one instruction in place of some twenty. Blocks have whatever shape the arguments
broadcast to.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from maskgit_kernels.backend import interpreting
from maskgit_kernels.interpreter import mend

mend()

_LN2 = tl.constexpr(0.6931471805599453)
_MAX_UNIFORM = tl.constexpr(1.0 - 2.0**-24)
_INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def seed_halves(seed):
    """An int64 seed as the generator's key: (low, high) 32 bits, uint32."""
    return (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox_4x32(key0, key1, c0, c1, c2, c3, ROUNDS: tl.constexpr = 10):
    """Four random uint32 words for each key and counter; see `maskgit_kernels.philox.philox_4x32`.

    All six are integers of which the low 32 bits count, scalars or blocks that broadcast against each other.
    """
    k0, k1 = tl.cast(key0, tl.uint32), tl.cast(key1, tl.uint32)
    w0, w1 = tl.cast(c0, tl.uint32), tl.cast(c1, tl.uint32)
    w2, w3 = tl.cast(c2, tl.uint32), tl.cast(c3, tl.uint32)
    for _ in tl.static_range(ROUNDS):
        # A GPU has both halves of a product from one instruction, if they are asked for as one number.
        product_a, product_b = w0.to(tl.uint64) * 0xD2511F53, w2.to(tl.uint64) * 0xCD9E8D57
        w0 = (product_b >> 32).to(tl.uint32) ^ w1 ^ k0
        w2 = (product_a >> 32).to(tl.uint32) ^ w3 ^ k1
        w1, w3 = product_b.to(tl.uint32), product_a.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return w0, w1, w2, w3


@triton.jit
def uniform(words):
    """(word + 0.5) * 2**-32 as float32, in [2**-33, 1 - 2**-24]."""
    # The scale is a power of two, so that one rounding, of the sum, gives the same as rounding before the scaling.
    return tl.minimum(words.to(tl.float32) * 2.0**-32 + 2.0**-33, _MAX_UNIFORM)


@triton.jit
def exponential(words):
    """Exponential(1) noise -log(1 - uniform(word)) as float32: positive and finite for every word."""
    x = uniform(words)
    # Small values win races, and 1 - x would round them away: below 1/4 a polynomial, fitted to (e - x) / x**2.
    series = 0.1467033326625824 + x * 0.3357096314430237
    series = 0.25711020827293396 + x * series
    series = 0.33293071389198303 + x * series
    series = 0.5000072717666626 + x * series
    return tl.where(x < 0.25, x + x * x * series, -_log(1.0 - x))


@triton.jit
def gumbel(words):
    """Standard Gumbel noise -log(exponential(word)) as float32: finite for every word."""
    return -_log(exponential(words))


@triton.jit
def _log(x):
    if _INTERPRETED:
        return tl.log2(x) * _LN2
    else:
        return libdevice.fast_log2f(x) * _LN2
