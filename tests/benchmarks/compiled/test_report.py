"""What is read from machine code, of kernels whose cost is known, and what is known of architectures."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.compiled.architectures import ARCHITECTURES, bounds, occupancy, standing_for, why_not_analysed

triton = pytest.importorskip("triton")

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


class TestAnalysis:
    """What is read from kernels whose cost is known."""

    @pytest.mark.parametrize(
        "capability, instructions", [(80, {"HMMA.16816": 16}), (90, {"HGMMA.64x64x16": 2}), (100, {"UTCHMMA": 2})]
    )
    def test_tensor_core_work(self, samples: Any, capability: int, instructions: dict[str, int]) -> None:
        for name in ("product 64x64x32", "products in a loop"):
            row = samples[name, capability]
            assert row["matrix_instructions"] == instructions
            assert (row["macs"], row["other_macs"]) == (64 * 64 * 32, 0)
            assert (row["padding"], row["replication"], row["faults"]) == (1, 1, [])
            assert row["bytes_per_element"] == 2 * 2 * 64 * 32 / (64 * 64)
            assert row["stored_per_element"] == 4

    def test_tf32_products_are_half_as_deep(self, samples: Any) -> None:
        row = samples["tf32", 80]
        assert row["matrix_instructions"] == {"HMMA.1688": 32}
        assert row["macs"] == 64 * 64 * 32
        assert row["padding"] == 1

    @pytest.mark.parametrize("capability", [80, 90, 100])
    def test_an_epilogue_is_told_from_the_main_loop(self, samples: Any, capability: int) -> None:
        alone, nested = samples["product 64x64x32", capability], samples["products in a loop", capability]
        assert nested["per_element"] < 1.5 * alone["per_element"]
        assert alone["epilogue_per_element"] < 20 < nested["epilogue_per_element"] < 60  # 20 exponentials

    def test_spills(self, samples: Any) -> None:
        row = samples["too many accumulators", 80]
        assert row["local_stores"] > 100 and row["local_loads"] > 100 and row["stack"] > 0
        assert [fault.split(":")[0] for fault in row["faults"]] == ["spills"]

    def test_shared_memory_beyond_the_limit(self, samples: Any) -> None:
        row = samples["too many stages", 80]
        assert row["shared"] > 163 * 1024
        assert (row["blocks"], row["blocks_limit"]) == (0, "shared memory")
        assert any("shared memory" in fault for fault in row["faults"])

    def test_replicated_tensor_core_work(self, samples: Any) -> None:
        row = samples["too many warps", 80]
        assert (row["macs"], row["replication"], row["padding"]) == (4 * 16 * 16 * 16, 4, 1)
        assert row["faults"] == ["tensor-core work done 4 times"]

    @pytest.mark.parametrize("name", ["total", "too many warps"])
    def test_unrolled_loops_count_as_they_were_written(self, samples: Any, name: str) -> None:
        row = samples[name, 80]
        assert row["unrolled"] == 4  # as LLVM likes it for loops this short
        per_pass = {"total": 1024 * 2, "too many warps": 2 * 16 * 16 * 2}[name]  # bytes
        per_element = {"total": 1024, "too many warps": 16 * 16}[name]
        assert row["bytes_per_element"] == per_pass / per_element

    def test_missing_tensor_core_work(self, samples: Any) -> None:
        row = samples["exact float32", 80]
        assert (row["macs"], row["matrix_instructions"]) == (0, {})
        assert "no tensor-core work" in row["faults"]

    def test_atomics_and_traps(self, samples: Any) -> None:
        assert (samples["total", 80]["atomics"], samples["total", 80]["traps"]) == (1, 0)
        assert samples["total", 80]["faults"] == []
        assert samples["trap", 80]["traps"] > 0
        assert any("traps" in fault for fault in samples["trap", 80]["faults"])
        assert samples["product 64x64x32", 80]["atomics"] == 0

    def test_a_kernel_that_does_not_compile_is_a_fault_not_the_end(self, samples: Any) -> None:
        assert samples["too short a sum", 80].keys() == {"name", "capability", "faults"}
        assert "Error" in samples["too short a sum", 80]["faults"][0]

    @pytest.mark.parametrize(
        "capability, num_warps, registers, shared, expected",
        [  # as NVIDIA's occupancy calculator has it
            (80, 4, 128, 18 * 1024, (4, "registers")),
            (80, 4, 129, 18 * 1024, (3, "registers")),
            (80, 8, 24, 0, (8, "threads")),
            (80, 1, 32, 0, (32, "blocks")),
            (86, 4, 64, 30 * 1024, (3, "shared memory")),
            (86, 8, 32, 0, (6, "threads")),
            (89, 1, 16, 0, (24, "blocks")),
            (90, 4, 168, 41 * 1024, (3, "registers")),
            (90, 4, 64, 227 * 1024, (1, "shared memory")),
            (90, 4, 64, 227 * 1024 + 1, (0, "shared memory")),
        ],
    )
    def test_occupancy(self, capability: int, num_warps: int, registers: int, shared: int, expected: Any) -> None:
        assert occupancy(ARCHITECTURES[capability], num_warps, registers, shared) == expected

    def test_what_limits_a_loop(self, samples: Any) -> None:
        row = samples["product 64x64x32", 90]
        # An element has 32 multiply-adds, of 2048 a clock, and 2 bytes, of 32; instructions are 128 a clock.
        assert row["limits"]["tensor"] == 2 and row["limits"]["L2"] == 8
        assert row["limits"]["issue"] == row["slots_per_element"] >= row["per_element"] > 0
        assert "special" not in row["limits"] and row["special_per_element"] == 0
        assert samples["tf32", 80]["limits"]["tensor"] == 2 * samples["product 64x64x32", 80]["limits"]["tensor"] == 8

    def test_bounds(self) -> None:
        limits = bounds(ARCHITECTURES[90], slots=9.0, special=1.0, loaded=3.0, macs=96.0)
        assert limits == {"issue": 9.0, "special": 8.0, "L2": 12.0, "tensor": 6.0}
        assert bounds(ARCHITECTURES[90], slots=9.0, special=0.0, loaded=0.0, macs=0.0) == {"issue": 9.0}

    def test_what_is_passed_on_through_memory(self, samples: Any) -> None:
        row = samples["passed on", 80]
        assert row["handed_over"] == ["room_ptr, published", "room_ptr, read", "x_ptr, published"]
        assert (row["races"], row["faults"]) == ([], [])

    def test_a_missing_barrier_is_a_fault(self, samples: Any) -> None:
        row = samples["passed on without waiting", 80]
        # Since 3.9 Triton puts a barrier before an atomic operation that releases by itself; none before a load.
        published = [] if VERSION >= (3, 9) else ["room_ptr, published", "x_ptr, published"]
        assert row["races"] == sorted(["room_ptr, read", *published])
        assert [fault.split(":")[0] for fault in row["faults"]] == [
            "no barrier between what one thread stores and another needs"
        ]

    def test_occupancy_by_tensor_memory(self) -> None:
        assert occupancy(ARCHITECTURES[100], 4, 64, 1024, tensor_memory=256) == (2, "tensor memory")
        assert occupancy(ARCHITECTURES[100], 4, 64, 1024, tensor_memory=1024) == (0, "tensor memory")


class TestArchitectures:
    @pytest.mark.parametrize(
        "capability, known",
        [(75, None), (80, 80), (86, 86), (87, 86), (89, 89), (90, 90), (100, 100), (103, 100), (110, 100), (121, 120)],
    )
    def test_which_stands_for_another(self, capability: int, known: int | None) -> None:
        assert standing_for(capability) == known

    def test_the_unknown_is_told_apart(self) -> None:
        assert [why_not_analysed(capability) for capability in ARCHITECTURES] == [None] * len(ARCHITECTURES)
        assert why_not_analysed(75) == "compute capability 7.5 is too old: the kernels need 8.0 or later"
        assert "12.1 is supported but not analysed: 12.0 (RTX 50, " in str(why_not_analysed(121))
        assert "13.0 is newer than any" in str(why_not_analysed(130))
