"""Kernels of which it is known what must be found in their machine code: for `benchmarks.compiled --module`."""

from dataclasses import replace
from importlib import import_module

import triton
import triton.language as tl

from maskgit_kernels.build import Build


@triton.jit
def product(a_ptr, b_ptr, out_ptr, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    rows, columns, inner = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, depth, K):
        a = tl.load(a_ptr + rows * depth + start + inner[None, :])  # [M, K]
        b = tl.load(b_ptr + (start + inner[:, None]) * N + columns)  # [K, N]
        total = tl.dot(a, b, total, input_precision=PRECISION)
    tl.store(out_ptr + rows * N + columns, total)


@triton.jit
def products(a_ptr, b_ptr, out_ptr, count, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """Many products in a loop, with an epilogue that costs more than the products do."""
    rows, columns, inner = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    for _ in range(count):
        total = tl.zeros([M, N], tl.float32)
        for start in range(0, depth, K):
            a = tl.load(a_ptr + rows * depth + start + inner[None, :])  # [M, K]
            b = tl.load(b_ptr + (start + inner[:, None]) * N + columns)  # [K, N]
            total = tl.dot(a, b, total)
        for _ in tl.static_range(20):
            total = tl.exp2(total)
        tl.store(out_ptr + rows * N + columns, total)
        b_ptr += depth * N
        out_ptr += M * N


@triton.jit
def total(x_ptr, out_ptr, count, BLOCK: tl.constexpr, TRAP: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        sums += tl.load(x_ptr + start + offsets).to(tl.float32)
    if TRAP:
        sums = tl.inline_asm_elementwise("trap; mov.b32 $0, $1;", "=f,f", [sums], tl.float32, is_pure=False, pack=1)
    tl.atomic_add(out_ptr, tl.sum(sums, 0))


@triton.jit
def passed_on(x_ptr, room_ptr, counter_ptr, out_ptr, BLOCK: tl.constexpr, WAIT: tl.constexpr):
    """Numbers that each thread gets from another through memory, and a count of the blocks that have left theirs."""
    offsets = tl.arange(0, BLOCK)
    tl.store(room_ptr + offsets, tl.load(x_ptr + offsets))
    if WAIT:
        tl.debug_barrier()
    total = tl.load(room_ptr + BLOCK - 1 - offsets)
    tl.store(x_ptr + offsets, total)
    if WAIT:
        tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(out_ptr + offsets, total)


def build(name, m, n, k, dtype="bf16", precision="tf32", **options):
    return Build(
        name,
        product,
        {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "out_ptr": "*fp32", "depth": "i32"},
        {"M": m, "N": n, "K": k, "PRECISION": precision},
        aligned=("depth",),
        elements=m * n,
        ideal_macs=m * n * k,
        **options,
    )


def builds(capability):
    plain = build("product 64x64x32", 64, 64, 32)
    nested = Build(
        "products in a loop",
        products,
        {"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32", "count": "i32", "depth": "i32"},
        {"M": 64, "N": 64, "K": 32},
        aligned=("depth",),
        elements=64 * 64,
        ideal_macs=64 * 64 * 32,
    )
    if capability != 80:
        return [plain, nested]
    sums = {"x_ptr": "*bf16", "out_ptr": "*fp32", "count": "i32"}
    passing = dict.fromkeys(("x_ptr", "room_ptr", "out_ptr"), "*fp32") | {"counter_ptr": "*i32"}
    # The shipped kernel where nothing else makes its threads wait: elsewhere a reduction does, through shared memory.
    steps = import_module("maskgit_kernels.decode_step.launch").builds(80)
    (step,) = (x for x in steps if x.name == "decode step, categorical, one launch, V=1024, bf16")
    tiny = {"NUM_CODES": 4, "BLOCK_R": 4, "BLOCK_Q": 1, "BLOCK_N": 4}
    return [
        plain,
        nested,
        build("tf32", 64, 64, 32, dtype="fp32"),
        build("exact float32", 64, 64, 16, dtype="fp32", precision="ieee"),
        build("too many accumulators", 128, 128, 32, num_warps=1),
        build("too many stages", 128, 128, 128, num_stages=4),
        build("too many warps", 16, 16, 16, num_warps=8),
        build("too short a sum", 64, 64, 8),
        Build("total", total, sums, {"BLOCK": 1024, "TRAP": False}, elements=1024, aligned=("count",)),
        Build("trap", total, sums, {"BLOCK": 1024, "TRAP": True}, elements=1024, aligned=("count",)),
        Build("passed on", passed_on, passing, {"BLOCK": 256, "WAIT": True}),
        Build("passed on without waiting", passed_on, passing, {"BLOCK": 256, "WAIT": False}),
        replace(step, name="a decoding step of few codes", constants=step.constants | tiny),
    ]
