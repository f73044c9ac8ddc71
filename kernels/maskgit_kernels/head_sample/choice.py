"""Which of two ways head_sample goes: the product that draws from its tiles, or the product and then `decode_step`.

The fused kernel writes no logits and skips known rows, but its tiles load hidden states and weights again and again. A
library's product loads them less often, and then its logits, of known rows too, go to memory and back. So a wide
hidden state speaks for the product, more so with guidance, which loads two; a small batch for the fused kernel.

This weighs the two by clocks of a multiprocessor, and not by which positions are masked, which only the device knows.
The rates of GPUs are published. The rest is fitted to the few timings that there are, benchmarks/results/nvidia-h200:
bfloat16, N = 256, D = 768, all masked, with tiles of 64 x 128, and the product's bias added by a launch of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

WAYS = ("fused", "product")

# Of a multiprocessor in a clock: multiply-adds of 16-bit floats on tensor cores, as in benchmarks/compiled/
# architectures.py (tf32: half as many); bytes to and from the GPU's memory, 0.87 of the bandwidths in NVIDIA's data
# sheets as the H200 reaches: A100 80 GB, A40, RTX 4090, H200, B200, RTX 5090.
_RATES = {80: (1024, 11.0), 86: (512, 4.1), 89: (512, 2.7), 90: (2048, 17.0), 100: (4096, 25.0), 120: (512, 3.8)}
_EFFICIENCY = 0.8  # of a product's multiply-adds: 775 of 989 TFLOP/s on the H200
_EXACT_MACS = 110, 85  # of float32 without tensor cores, of 128: a library's (51 TFLOP/s on the H200), and ours
_LIBRARY_TILE = 128 * 128  # logits
_CACHE = 25.0  # bytes from the L2 cache: with the time of drawing, 254 us for B = 8, V = 16384 fused
# Instructions a logit, of 128 a clock: of a tile's epilogue as compiled, those of two turns counted twice; of
# `decode_step`, from the 17.3 us for B = 8 and 46.4 us for B = 64 that it takes at V = 1024.
_EPILOGUE, _DRAWING, _INSTRUCTIONS = 42, 58, 128
# By how much the product and the step start later: of the 11.8 us that they took longer for B = 8, V = 1024, what
# remains without the bias's launch and with that which lists masked rows.
_LATER = 16_000
# Of the positions, masked: on average over 8 steps of the cosine schedule that generate an image. A hole has fewer.
_SHARE = 0.7


def fused_wins(
    rows: int,
    num_codes: int,
    width: int,
    arithmetic: str,
    guided: bool,
    tile: tuple[int, int, int],
    capability: int,
    multiprocessors: int,
) -> bool:
    """Whether the fused kernel is expected to be the faster way.

    Args:
        rows: B * N.
        num_codes, width: V and D.
        arithmetic: "half", "tf32" or "ieee", see `math_for`.
        tile: rows and codes of a program of the fused kernel, and how many of these fit on a multiprocessor.
        capability: ten times the compute capability, 80 or more.
        multiprocessors: that the GPU has.
    """
    macs, memory = _RATES[max(known for known in _RATES if known <= capability)]
    size = 2 if arithmetic == "half" else 4
    library, ours = _EXACT_MACS if arithmetic == "ieee" else [macs * _EFFICIENCY * 2 / size] * 2

    tile_rows, tile_codes, programs = tile
    loaded = width * size * ((2 if guided else 1) * tile_rows + tile_codes)
    logits = tile_rows * tile_codes
    program = max(loaded / _CACHE, logits * width / ours) + logits * _EPILOGUE / _INSTRUCTIONS
    # A tile takes its time, however few there are.
    each = rows * num_codes / multiprocessors
    fused = program * max(programs, _SHARE * each / logits)

    read_and_drawn = _SHARE * max(_DRAWING / _INSTRUCTIONS, 4 / memory)
    product = max(each, _LIBRARY_TILE) * width / library + each * (4 / memory + read_and_drawn)
    return fused <= product + _LATER


_imposed: list[str] = []


@contextlib.contextmanager
def impose(way: str) -> Iterator[None]:
    """Within it, Triton's head_sample goes one of WAYS: for tests and timings. "perturbed" is always a product."""
    _imposed.append(way)
    try:
        yield
    finally:
        _imposed.pop()


def imposed() -> str | None:
    """What `impose` asks for, if anything."""
    return _imposed[-1] if _imposed else None
