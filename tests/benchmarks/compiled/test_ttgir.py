"""Reading Triton's intermediate code, on excerpts in its own form."""

from __future__ import annotations

import pytest

from benchmarks.compiled import ttgir

LAYOUTS = """\
#blocked = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [8, 4], warpsPerCTA = [4, 1], order = [1, 0]}>
#blocked1 = #ttg.blocked<{sizePerThread = [8], threadsPerWarp = [32], warpsPerCTA = [4], order = [0]}>
#mma = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [4, 1], instrShape = [16, 8]}>
#mma1 = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [8, 1], instrShape = [16, 32, 16]}>
"""


def dot(m: int, n: int, k: int, layout: str = "#mma", dtype: str = "bf16", indent: int = 4) -> str:
    left, right = (
        f"tensor<{shape}x{dtype}, #ttg.dot_op<{{opIdx = {index}, parent = {layout}, kWidth = 2}}>>"
        for index, shape in enumerate((f"{m}x{k}", f"{k}x{n}"))
    )
    result = f"tensor<{m}x{n}xf32, {layout}>"
    return " " * indent + f"%s = tt.dot %a, %b, %c, inputPrecision = tf32 : {left} * {right} -> {result} loc(#loc1)\n"


def loop(
    *body: str, indent: int = 4, head: str = "scf.for %i = %c0 to %n step %c64 iter_args(%x = %y) -> (f32)"
) -> str:
    return " " * indent + f"%r = {head} {{\n" + "".join(body) + " " * indent + "} loc(#loc2)\n"


def test_products_are_grouped_by_their_innermost_loop() -> None:
    reduction = (
        '      %m = "tt.reduce"(%s) <{axis = 1 : i32}> ({\n      ^bb0(%a: f32, %b: f32):\n      }) : (f32) -> f32\n'
    )
    ir = (
        LAYOUTS
        + dot(64, 16, 16)
        + loop(
            dot(64, 64, 32, indent=6), loop(dot(64, 64, 64, indent=8), indent=6), reduction, dot(64, 32, 64, indent=6)
        )
        + loop(dot(32, 32, 32, indent=6))
        + dot(64, 16, 32)
    )
    found = [[(x.m, x.n, x.k) for x in group] for group in ttgir.dots(ir)]
    assert found == [
        [(64, 16, 16), (64, 16, 32)],
        [(64, 64, 32), (64, 32, 64)],
        [(64, 64, 64)],
        [(32, 32, 32)],
    ]


def test_a_while_loop_has_two_bodies() -> None:
    condition = "      scf.condition(%more) %x : f32 loc(#loc1)\n    } do {\n"
    ir = (
        LAYOUTS
        + loop(condition, dot(64, 64, 32, indent=6), head="scf.while (%x = %y) : (f32) -> f32")
        + dot(16, 16, 16)
    )
    assert [[x.macs for x in group] for group in ttgir.dots(ir)] == [[16**3], [64 * 64 * 32]]


@pytest.mark.parametrize(
    "m, n, layout, replication",
    [(64, 64, "#mma", 1), (64, 8, "#mma", 1), (16, 64, "#mma", 4), (32, 64, "#mma", 2), (64, 32, "#mma1", 2)],
)
def test_replication_where_the_result_is_too_small_for_its_warps(m: int, n: int, layout: str, replication: int) -> None:
    ((product,),) = ttgir.dots(LAYOUTS + dot(m, n, 32, layout))
    assert product.on_tensor_cores
    assert product.macs == m * n * 32
    assert product.replication == replication


def test_products_on_plain_cores_are_told_apart() -> None:
    ((product,),) = ttgir.dots(LAYOUTS + dot(64, 64, 16, "#blocked", "f32"))
    assert not product.on_tensor_cores


def test_products_of_a_warp_group() -> None:
    ir = LAYOUTS + (
        "    %s = ttng.warp_group_dot %q, %k, %c {inputPrecision = 0 : i32, isAsync = true} : "
        "!ttg.memdesc<128x48xbf16, #shared, #smem> * !ttg.memdesc<48x32xbf16, #shared2, #smem, mutable> -> "
        "tensor<128x32xf32, #mma1> loc(#loc128)\n"
        "    %t = ttng.warp_group_dot_wait %s {pendings = 0 : i32} : tensor<128x32xf32, #mma1> loc(#loc128)\n"
    )
    ((product,),) = ttgir.dots(ir)
    assert (product.m, product.n, product.k, product.replication, product.utchmma) == (128, 32, 48, 1, 0)


@pytest.mark.parametrize(
    "m, n, k, dtype, instructions",
    [(64, 64, 32, "bf16", 2), (128, 256, 16, "f16", 1), (128, 512, 64, "bf16", 8), (256, 64, 32, "f32", 8)],
)
def test_products_on_sm_100(m: int, n: int, k: int, dtype: str, instructions: int) -> None:
    factors = f"!ttg.memdesc<{m}x{k}x{dtype}, #shared, #smem>, !ttg.memdesc<{k}x{n}x{dtype}, #shared3, #smem, mutable>"
    result = f"!ttg.memdesc<{m}x{n}xf32, #tmem2, #ttng.tensor_memory, mutable>"
    barrier = "!ttg.memdesc<1xi64, #shared2, #smem, mutable>"
    arguments = "%a, %b, %d, %false, %on, %bar[%true] {is_async}"
    ir = f"    ttng.tc_gen5_mma {arguments} : {factors}, {result}, {barrier} loc(#loc127)\n"
    ((product,),) = ttgir.dots(ir)
    assert product.on_tensor_cores
    assert (product.macs, product.utchmma, product.replication) == (m * n * k, instructions, 1)


def test_bytes_that_each_thread_loads() -> None:
    ir = (
        LAYOUTS
        + "    %a = tt.load %p : !tt.ptr<i64> loc(#loc1)\n"
        + loop(
            "      %b = tt.load %p, %mask, %other : tensor<64x32x!tt.ptr<bf16>, #blocked> loc(#loc1)\n",
            "      %c = tt.load %p : tensor<256x!tt.ptr<f32>, #blocked1> loc(#loc1)\n",  # less than 8 for each thread
            "      %d = ttg.async_copy_global_to_local %p, %s mask %m : tensor<32x64x!tt.ptr<f16>, #blocked> -> "
            "!ttg.memdesc<32x64xf16, #shared, #smem, mutable> loc(#loc1)\n",
            "      %e = tt.load %p : tensor<64x!tt.ptr<i1>, #ttg.slice<{dim = 1, parent = #blocked}>> loc(#loc1)\n",
        )
    )
    found = [[load.bytes_per_thread for load in group] for group in ttgir.loads(ir)]
    assert found == [[8], [2 * 8 * 2, 8 * 4, 2 * 8 * 2, 0]]
