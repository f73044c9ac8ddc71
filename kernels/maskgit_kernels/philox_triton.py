"""The noise of `maskgit_kernels.philox`, bit for bit, as functions to call from Triton kernels.

Words are tl.uint32. Blocks below are written for whatever shape the arguments broadcast to.
"""

from __future__ import annotations

import triton
import triton.language as tl

from maskgit_kernels.interpreter import mend

mend()


@triton.jit
def seed_halves(seed):
    """An int64 seed as the generator's key: (low, high) 32 bits, uint32."""
    return (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox_4x32(key0, key1, c0, c1, c2, c3, ROUNDS: tl.constexpr = 10):
    """Four random uint32 words for each key and counter; see `maskgit_kernels.philox.philox_4x32`.

    All six are integers of at most 32 bits, scalars or blocks that broadcast against each other; only their bits count.
    """
    k0, k1 = key0.to(tl.uint32), key1.to(tl.uint32)
    w0, w1, w2, w3 = c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        before0, before2 = w0, w2
        w0 = tl.umulhi(before2, 0xCD9E8D57) ^ w1 ^ k0
        w2 = tl.umulhi(before0, 0xD2511F53) ^ w3 ^ k1
        w1 = before2 * 0xCD9E8D57
        w3 = before0 * 0xD2511F53
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return w0, w1, w2, w3
