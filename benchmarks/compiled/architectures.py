"""GPU architectures: what a multiprocessor has, how many thread blocks fit on it, and what limits a loop on it.

`ARCHITECTURES` are those that the kernels are compiled and analysed for. Others run the kernels too, by the code and
the tiles of the analysed one that is most like them (`standing_for`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Architecture:
    """What one multiprocessor has (CUDA C++ Programming Guide, "Compute Capabilities"; cuda::arch_traits of CCCL)."""

    gpus: str
    shared: int  # bytes
    threads: int
    blocks: int
    macs: int  # multiply-adds of 16-bit floats a clock on tensor cores, with sums in float32; half as many of tf32
    tensor_memory: int = 0  # columns
    registers: int = 64 * 1024

    @property
    def shared_per_block(self) -> int:
        """Bytes that a thread block may use: all but what the system takes for each block."""
        return self.shared - _SYSTEM_SHARED


_SYSTEM_SHARED = 1024

# `macs` from the dense rates in NVIDIA's whitepapers, over multiprocessors and boost clock: A100 312, A40 150, L40 181,
# H100 SXM 989, B200 2,250, RTX PRO 6000 504 TFLOP/s. GeForce cards have half of what the A40, the L40 and the
# RTX PRO have.
ARCHITECTURES = {
    80: Architecture("A100", shared=164 * 1024, threads=2048, blocks=32, macs=1024),
    86: Architecture("RTX 30, A10, A40", shared=100 * 1024, threads=1536, blocks=16, macs=512),
    89: Architecture("RTX 40, L4, L40", shared=100 * 1024, threads=1536, blocks=24, macs=512),
    90: Architecture("H100, H200", shared=228 * 1024, threads=2048, blocks=32, macs=2048),
    100: Architecture("B200", shared=228 * 1024, threads=2048, blocks=32, macs=4096, tensor_memory=512),
    120: Architecture("RTX 50, RTX PRO Blackwell", shared=100 * 1024, threads=1536, blocks=24, macs=512),
}

_OLDEST = min(ARCHITECTURES)
# Where a new kind of tensor cores begins: by the threads of a warp; of four warps; with a memory of their own; and once
# more by the threads of a warp. From the last on nothing is known.
_KINDS = (80, 90, 100, 120, 130)


def standing_for(capability: int) -> int | None:
    """The analysed architecture whose code and tiles a GPU gets: the latest that is no newer and has the same kind of
    tensor cores. None if there is none: the GPU is too old, or newer than all that is known here.

    Args:
        capability: ten times the compute capability.
    """
    kind = max((first for first in _KINDS if first <= capability), default=capability)
    return max((known for known in ARCHITECTURES if kind <= known <= capability), default=None)


def why_not_analysed(capability: int) -> str | None:
    """Why there is no report for an architecture, in words; None if there is one."""
    if capability in ARCHITECTURES:
        return None
    version, oldest = f"{capability / 10:.1f}", f"{_OLDEST / 10:.1f}"
    if capability < _OLDEST:
        return f"compute capability {version} is too old: the kernels need {oldest} or later"
    known = standing_for(capability)
    if known is None:
        return f"compute capability {version} is newer than any that is analysed, or even known to run the kernels"
    gpus = ARCHITECTURES[known].gpus
    return f"compute capability {version} is supported but not analysed: {known / 10:.1f} ({gpus}) stands for it"


def occupancy(
    limits: Architecture, num_warps: int, registers: int, shared: int, tensor_memory: int = 0
) -> tuple[int, str]:
    """Thread blocks that fit on one multiprocessor, and what keeps more of them out.

    Args:
        limits: the architecture.
        num_warps: per thread block.
        registers: per thread.
        shared: bytes per thread block.
        tensor_memory: columns per thread block.
    """
    registers_per_warp = 32 * 8 * ceil(registers / 8)
    warps = 4 * (limits.registers // 4 // registers_per_warp)  # each of four schedulers has a quarter of the registers
    fits = {
        "registers": warps // num_warps,
        "shared memory": limits.shared // (_SYSTEM_SHARED + 128 * ceil(shared / 128)),
        "threads": limits.threads // (32 * num_warps),
        "blocks": limits.blocks,
    }
    if tensor_memory:
        fits["tensor memory"] = limits.tensor_memory // tensor_memory
    limit = min(fits, key=lambda name: fits[name])
    return fits[limit], limit


# Per clock and multiprocessor, alike on all of ARCHITECTURES. Instructions: four schedulers, each of a warp's 32
# threads; special functions (MUFU: exp2, log2, 1/x): 16 (CUDA C++ Programming Guide, "Arithmetic Instructions").
# Bytes from the L2 cache, to an order of magnitude: the A100's whitepaper promises 5,120 to its 108 multiprocessors, of
# which measurements find two thirds (forums.developer.nvidia.com/t/198560), and on an H100 no more for each
# (chipsandcheese.com, "Nvidia's H100: Funny L2, and Tons of Bandwidth").
_INSTRUCTIONS = 128
_SPECIAL = 16
_L2_BYTES = 32


def bounds(limits: Architecture, slots: float, special: float, loaded: float, macs: float) -> dict[str, float]:
    """How long a loop must take by each of the things that limit it, as if nothing else did: the largest counts.

    In instructions of a thread that a multiprocessor could have issued in that time, so that "issue" is what the loop
    really has. It is a lower bound: where too few warps hide what others wait for, a loop takes longer.

    Args:
        limits: the architecture.
        slots: issue slots, for each element that the loop works on.
        special: special functions, likewise.
        loaded: bytes read from global memory and so, being shared between thread blocks, from the L2 cache.
        macs: multiply-adds on tensor cores, as many as 16-bit ones would take the same time.
    """
    times = {
        "issue": slots,
        "special": special * _INSTRUCTIONS / _SPECIAL,
        "L2": loaded * _INSTRUCTIONS / _L2_BYTES,
        "tensor": macs * _INSTRUCTIONS / limits.macs,
    }
    return {name: time for name, time in times.items() if time}
