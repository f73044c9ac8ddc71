"""How the kernels cut their work: the tile sizes of each architecture, and those that autotuning tries.

What was timed comes before what was reckoned. For 16-bit numbers up to a head_dim of 64 on Hopper, the fixed choices
are what an H200 taught (`tuned.json`; docs/benchmarks.md): rules that hold within 5 % in all its rows, not each row's
own winner, which is the business of `tuned`.

Elsewhere they come from what the kernels compile to (`python -m benchmarks.compiled`). First, no spilled registers.
Then what limits the main loop, the longest of the times in `architectures.bounds`: issued instructions, exponentials,
bytes from the L2 cache, tensor cores. Then warps per multiprocessor, which hide what that reckoning leaves out; and of
equals, fewer instructions. So tiles of 64 rows, whose keys and values come from the L2 cache too often, are doubled
where two blocks of 8 warps still fit on a multiprocessor. The H200 was slower with that wherever it was tried forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

HEAD_DIMS = tuple(range(16, 129, 16))
KERNELS = ("forward", "dq", "dk_dv")
MATH = ("half", "tf32", "ieee")  # float16 and bfloat16; float32 with tensor cores, and without


@dataclass(frozen=True)
class Tiling:
    """Tile sizes and compiler options of one kernel."""

    block_m: int = 64  # queries at a time
    block_n: int = 64  # keys at a time
    widest: int = 64  # columns of the head_dim at a time, at most
    padded: bool = False  # whether the head_dim is rounded up to a power of two, instead of cut into parts that are
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None  # per thread; None leaves it to the compiler

    def parts(self, head_dim: int) -> tuple[tuple[int, int], ...]:
        """The (first, end) column of each part of the head_dim: 48 is ((0, 32), (32, 48)), or ((0, 64),) if padded."""
        if self.padded:
            head_dim = 1 << (head_dim - 1).bit_length()
        parts = []
        start = 0
        while start < head_dim:
            width = min(self.widest, 1 << (head_dim - start).bit_length() - 1)
            parts.append((start, start + width))
            start += width
        return tuple(parts)


def fixed(kernel: str, capability: int, head_dim: int, math: str, dropout: bool, length: int) -> Tiling:
    """What a kernel uses where nothing is tuned.

    Args:
        kernel: one of KERNELS. math: one of MATH.
        capability: ten times the GPU's compute capability.
        head_dim: one of HEAD_DIMS.
        dropout: whether weights are dropped, whose noise takes registers.
        length: rows that programs share out: queries, or keys for "dk_dv".
    """
    if math == "ieee":
        # No tensor cores: every factor of a product is held in registers, so tiles are small. With a limit named, even
        # the highest, the compiler does not spill a few registers to fit one more block.
        return Tiling(16 if kernel == "dk_dv" and head_dim > 48 else 32, 32, widest=32, max_registers=255)
    if math == "tf32":
        # Rounded factors pass through shared memory once more: where there is little of it, nothing is prefetched.
        # Backward, some head_dims above 80 spill a few registers whatever the tiles: still ten times as fast as exact.
        stages = 1 if 80 < capability < 90 or capability >= 120 else 2
        if kernel == "forward":
            block_n = 64 if 90 <= capability < 120 and head_dim <= 64 else 32
            return Tiling(block_n=block_n, num_stages=stages, max_registers=None if head_dim <= 64 else 255)
        if kernel == "dq":
            few = None if head_dim <= 64 and not dropout else 255
            widest = 16 if stages == 1 and head_dim > 64 else 64
            return Tiling(block_n=32 if head_dim <= 64 else 16, widest=widest, num_stages=stages, max_registers=few)
        return Tiling(block_m=32 if head_dim <= 48 else 16, num_stages=stages, max_registers=255)

    # Half the bytes of 64 rows for each score, with as many warps on a multiprocessor. Not where rows would be wasted:
    # up to 16 that fill no block cost little (see `triton_tiles.few_left`).
    tall = Tiling(block_m=128, num_warps=8, max_registers=128) if length >= 128 and length % 128 <= 16 else None
    if 90 <= capability < 100:  # Hopper: tensor cores that read shared memory
        if head_dim <= 64:  # timed at 48 and 64, for 256 to 1025 tokens
            if kernel == "dq" and dropout:  # four blocks on a multiprocessor in place of two
                return Tiling(block_n=32, padded=head_dim == 48)
            return Tiling(padded=head_dim == 48, num_stages=3)
        if kernel == "dk_dv":
            block_m = 16 if dropout and head_dim > 112 else 32
            return Tiling(block_m=block_m, padded=head_dim == 112, max_registers=255)
        return tall if tall and kernel == "forward" and not dropout else Tiling()
    if 100 <= capability < 120:  # datacenter Blackwell: tensor cores with a memory of their own, where parts cost more
        if kernel == "forward":
            return Tiling(widest=128, padded=head_dim in (48, 96, 112))
        if kernel == "dq":
            return Tiling(block_n=64 if head_dim <= 96 else 32, padded=head_dim in (48, 112), max_registers=255)
        return Tiling(block_m=64 if head_dim <= 80 else 32, padded=head_dim in (48, 112), max_registers=255)
    # Ampere, Ada and consumer Blackwell: tensor cores that read registers.
    if capability == 80 and tall and head_dim <= 48 and (kernel == "forward" or kernel == "dq" and not dropout):
        return tall
    if kernel == "forward":  # what fits with dropout on 8.0 spills on 8.6, and what fits on 8.9 spills on 12.0
        most = 128 if capability == 80 or capability < 120 and not dropout else 168
        return Tiling(max_registers=most if head_dim <= 48 else None)
    largest = 80 if dropout else 96  # head_dim that leaves room for the larger tiles
    if kernel == "dq":
        return Tiling(block_n=64 if head_dim <= largest else 32)
    block_m = 64 if head_dim <= 48 else 32 if head_dim <= largest else 16
    return Tiling(block_m=block_m, max_registers=255 if dropout else None)


def candidates(kernel: str, capability: int, head_dim: int, math: str, dropout: bool, length: int) -> list[Tiling]:
    """What tuning tries, at most eight: the fixed choice first (see `fixed` for the arguments)."""
    choice = fixed(kernel, capability, head_dim, math, dropout, length)
    if math != "half":
        registers = None if choice.max_registers else 255
        return [choice, replace(choice, num_stages=3), replace(choice, max_registers=registers)]
    roomy = head_dim <= 64  # what a product leaves of the registers
    power_of_two = head_dim & (head_dim - 1) == 0
    padded = roomy and not power_of_two
    tilings = [choice, Tiling(num_stages=3, padded=padded)]  # the second is what Hopper has, where it was timed
    if (roomy or kernel == "forward") and not power_of_two:
        tilings.append(replace(choice, padded=not choice.padded))
    if kernel == "dk_dv":
        tilings.append(replace(choice, block_m=max(16, choice.block_m // 2)))
        tilings.append(replace(choice, block_n=128, num_warps=8))
        if padded:
            tilings.append(replace(choice, block_n=128, num_warps=8, padded=not choice.padded))
    else:
        tilings += [Tiling(max_registers=128 if roomy and not dropout else None), Tiling(block_m=128, num_warps=8)]
        if kernel == "dq":
            tilings.append(Tiling(block_n=32, padded=padded))
        if roomy or kernel == "forward":
            tilings += [Tiling(block_n=128), Tiling(block_m=128, block_n=128, num_warps=8)]
        if roomy and kernel == "forward" and not dropout:
            tilings.append(Tiling(block_n=128, max_registers=168))  # three blocks on a multiprocessor
    return list(dict.fromkeys(tilings))
