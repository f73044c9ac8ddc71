"""Reading PTX: what threads hand to each other through global memory, on code small enough to check by hand."""

from __future__ import annotations

import pytest

from benchmarks.compiled import ptx

STORE = "st.global.b32 [ %rd2 + 0 ], { %r1 };"
LOAD = "@%p1 ld.global.b32 { %r2 }, [ %rd3 + 4 ];"
COUNT = "@%p2 atom.global.gpu.acq_rel.add.u32 %r3, [ %rd4 + 0 ], %r1;"
WAIT = "bar.sync \t0;"


def kernel(*body: str) -> str:
    """A kernel of the arguments room, counter and length, where %rd2 and %rd3 are in room and %rd4 is the counter."""
    parameters = [
        ".param .u64 .ptr .global .align 1 kernel_param_0,",
        ".param .u64 .ptr .global .align 1 kernel_param_1,",
        ".param .u32 kernel_param_2",
    ]
    addresses = [
        "ld.param.b64 \t%rd1, [kernel_param_0];",
        "ld.param.b64 \t%rd4, [kernel_param_1];",
        "ld.param.b32 \t%r1, [kernel_param_2];",
        "mad.wide.u32 \t%rd2, %r1, 4, %rd1;",
        "add.s64 \t%rd3, %rd1, 512;",
    ]
    lines = [*parameters, ")", "{", "// begin inline asm", *addresses, *body, "ret;", "}"]
    return "\n".join(line if line.startswith("$") else f"\t{line}" for line in lines)


def found(*body: str, num_warps: int = 4) -> tuple[list[str], list[str]]:
    hand_overs = ptx.hand_overs(kernel(*body), ["room", "counter", "length"], num_warps)
    return hand_overs.ordered, hand_overs.unordered


@pytest.mark.parametrize("wait", [WAIT, "barrier.sync 0;", "barrier.cta.sync.aligned 0;"])
def test_behind_a_barrier(wait: str) -> None:
    assert found(STORE, wait, LOAD, COUNT) == (["room, published", "room, read"], [])


@pytest.mark.parametrize("wait", ["", "@%p1 bar.sync 0;", "bar.sync 1, 64;", "bar.warp.sync -1;", "bar.arrive 0, 128;"])
def test_without_a_barrier_of_the_whole_block(wait: str) -> None:
    assert found(STORE, wait, LOAD, COUNT) == ([], ["room, published", "room, read"])


def test_a_barrier_of_the_only_warp() -> None:
    assert found(STORE, "bar.warp.sync -1;", LOAD, num_warps=1) == (["room, read"], [])


def test_what_comes_before_or_goes_elsewhere_is_not_handed_over() -> None:
    assert found(LOAD, STORE) == ([], [])
    assert found("st.global.b32 [ %rd4 + 0 ], { %r1 };", LOAD) == ([], [])
    assert found(STORE, "atom.global.gpu.relaxed.add.u32 %r3, [ %rd4 + 0 ], %r1;") == ([], [])
    assert found("st.shared.b32 [ %r4 + 0 ], %r1;", LOAD) == ([], [])


def test_copies_to_shared_memory_read_what_they_name_last() -> None:
    assert found(STORE, "cp.async.cg.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 0x10, %r6;") == ([], ["room, read"])


def test_every_way_to_a_load_must_have_a_barrier() -> None:
    around = ["@%p1 bra \t$L__BB0_1;", WAIT, "$L__BB0_1:   // a label", LOAD]
    assert found(STORE, *around) == (["room, read"], ["room, read"])
    assert found(STORE, WAIT, *around) == (["room, read"], [])
    assert found(STORE, "bra.uni \t$L__BB0_1;", *around[1:]) == ([], ["room, read"])


def test_the_next_turn_of_a_loop_reads_what_this_one_wrote() -> None:
    assert found("$L__BB0_1:", LOAD, STORE, "@%p1 bra \t$L__BB0_1;") == ([], ["room, read"])
    assert found("$L__BB0_1:", LOAD, STORE, WAIT, "@%p1 bra \t$L__BB0_1;") == (["room, read"], [])


def test_waiting_in_inline_assembly_runs_on() -> None:
    waiting = ["{", ".reg .pred complete;", "waitLoop:", "mbarrier.try_wait.b64 complete, [%r1], %r2;"]
    waiting += ["@!complete bra.uni waitLoop;", "}"]
    assert found(STORE, *waiting, *waiting, LOAD) == ([], ["room, read"])


def test_what_can_not_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="can't tell what is written to"):
        found("ld.global.b64 { %rd9 }, [ %rd4 + 0 ];", "st.global.b32 [ %rd9 + 0 ], { %r1 };")
    with pytest.raises(ValueError, match="can't follow the jump"):
        found("brx.idx %r1, table;")
