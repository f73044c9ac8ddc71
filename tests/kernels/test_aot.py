"""Gates on the compiled kernels: what the machine code of every shipped kernel costs, on GPUs that are not there.

Kernels are compiled in a process of its own, because under TRITON_INTERPRET, as the other tests run, nothing is.
`pytest -s` prints the tables.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from maskgit_kernels import aot
from maskgit_kernels.architectures import ARCHITECTURES, bounds, occupancy, standing_for, why_not_analysed

triton = pytest.importorskip("triton")

KNOWN = ("3.6", "3.8", "3.9")  # versions of Triton that the limits hold for; any other must keep to the newest one's
_THIS = ".".join(triton.__version__.split(".")[:2])
VERSION = _THIS if _THIS in KNOWN else KNOWN[-1]

_FOR_TWO_BLOCKS = (
    "spills up to 13 registers for 128 rows to fit twice on a multiprocessor, as they do without spills before 3.9. "
    "64 rows would not spill, and wait for twice the bytes: 24 instructions' time a score at head_dim 96 instead of 12"
)
_FOR_A_THIRD_BLOCK = "spills a register or two for a third block to fit"
# What is faulty all the same, and why, by version of Triton, architecture and build.
FAULTY = {
    ("3.6", 120, "attention dq, head_dim 48, half, dropout"): _FOR_A_THIRD_BLOCK,
    ("3.6", 120, "attention dq, head_dim 48, N=257, half, dropout"): _FOR_A_THIRD_BLOCK,
    ("3.6", 100, "attention forward, head_dim 96, N=257, half, dropout"): "spills four registers",
    ("3.8", 86, "attention dq, head_dim 48, N=257, half, dropout"): _FOR_A_THIRD_BLOCK,
    ("3.8", 89, "attention dq, head_dim 48, N=257, half, dropout"): _FOR_A_THIRD_BLOCK,
    ("3.6", 120, "head sample, categorical, V=1024, fp32"): "spills one register",
    ("3.8", 120, "head sample, categorical, V=1024, tf32"): "spills one register",
    ("3.9", 120, "head sample, categorical, V=1024, tf32"): "spills one register",
    ("3.9", 90, "attention forward, head_dim 96, half"): _FOR_TWO_BLOCKS,
    ("3.9", 90, "attention forward, head_dim 96, N=257, half"): _FOR_TWO_BLOCKS,
    ("3.9", 90, "attention forward, head_dim 128, half"): _FOR_TWO_BLOCKS,
    ("3.9", 120, "attention dq, head_dim 48, N=257, half, dropout"): _FOR_A_THIRD_BLOCK,
}

ROOT = Path(__file__).resolve().parents[2]

# Kernels of which it is known what must be found in their machine code.
SAMPLES = '''
from dataclasses import replace
from importlib import import_module

import triton
import triton.language as tl
from maskgit_kernels.aot import Build


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
    steps = import_module("maskgit_kernels.decode_step.triton").builds(80)
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
'''

# What `python -m maskgit_kernels.tune` tries.
CANDIDATES = """
from maskgit_kernels import tune
from maskgit_kernels.attention import launch, triton_backward, triton_forward

KERNELS = {
    "forward": triton_forward.attention_forward_kernel,
    "dq": triton_backward.attention_dq_kernel,
    "dk_dv": triton_backward.attention_dk_dv_kernel,
}


def builds(capability):
    return [
        launch.build(case.kernel, KERNELS[case.kernel], tiling, None, *size, f": {tiling}")
        for case in tune.CASES
        for size in [(case.head_dim, "half", case.dropout)]
        for tiling in case.candidates(capability)
    ]
"""


def command_line(*options: str, python_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m maskgit_kernels.aot` where Triton compiles."""
    paths = [str(ROOT / "kernels"), *([str(python_path)] if python_path else []), os.environ.get("PYTHONPATH", "")]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "maskgit_kernels.aot", "--jobs", "1", *options],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def as_report(row: dict[str, Any]) -> aot.Report | aot.Failure:
    if "registers" not in row:
        return aot.Failure(**row)
    return aot.Report(**{name: value for name, value in row.items() if name != "faults"})


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], str]) -> Any:
    """The JSON that `make` returns, made only once however many processes run the tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    file = folder / f"{name}.json"
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(make())
    return json.loads(file.read_text())


Rows = dict[str, Any]  # of the JSON report, by the build's name


def compiled(*options: str) -> str:
    run = command_line("--json", *options)
    assert run.returncode in (0, 1), run.stderr
    return run.stdout


# What the limits below are for, and what is compiled where the slow tests are left out.
REPRESENTATIVE = (
    "head_dim 48, half",
    "forward, head_dim 96, half",
    "forward, head_dim 96, N=257, half",
    "decode step, categorical",
    "head sample, categorical, V=1024, bf16",
    "head sample, categorical, V=16384",
    "head sample, categorical, guided",
    "head sample, finish, N=256",
)


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Rows]:
    """The reports on REPRESENTATIVE for an architecture."""

    @functools.cache
    def of(capability: int) -> Rows:
        options = ("--capability", str(capability), "--kernel", *REPRESENTATIVE)
        rows = once(tmp_path_factory, f"aot_{capability}", lambda: compiled(*options))
        return {row["name"]: row for row in rows}

    return of


def only(rows: Rows, *words: str) -> Any:
    """The one report with all these words in its name."""
    found = [row for name, row in rows.items() if all(word in name for word in words)]
    assert len(found) == 1, f"{words}: {len(found)} of {list(rows)}"
    return found[0]


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    """The reports on SAMPLES, by name and architecture."""

    def make() -> str:
        folder = tmp_path_factory.mktemp("samples")
        (folder / "sample_kernels.py").write_text(SAMPLES)
        options = ("--module", "sample_kernels", "--capability", "80", "90", "100", "--json")
        run = command_line(*options, python_path=folder)
        assert run.returncode == 1, run.stderr  # because some of them are faulty
        return run.stdout

    return {(row["name"], row["capability"]): row for row in once(tmp_path_factory, "aot_samples", make)}


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
        published = [] if VERSION == "3.9" else ["room_ptr, published", "x_ptr, published"]
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


class TestCommandLine:
    @pytest.mark.parametrize(
        "text, reason",
        [("75", "7.5 is too old"), ("121", "12.1 is supported but not analysed"), ("9.0", "such as 90")],
    )
    def test_says_why_an_architecture_is_not_analysed(
        self, text: str, reason: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit:
            aot.main(["--capability", text])
        assert exit.value.code == 2
        assert reason in capsys.readouterr().err

    def test_says_so_where_triton_interprets(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(SystemExit) as exit:
            aot.main([])
        assert exit.value.code == 2
        assert "TRITON_INTERPRET is set" in capsys.readouterr().err

    def test_says_so_where_triton_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "triton", None)
        with pytest.raises(SystemExit) as exit:
            aot.main([])
        assert exit.value.code == 2
        assert "triton, which is not installed" in capsys.readouterr().err

    def test_says_so_if_no_kernel_has_the_name(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(aot, "_builds", lambda module, capability: [])
        with pytest.raises(SystemExit) as exit:
            aot.main(["--kernel", "nonesuch"])
        assert exit.value.code == 2
        assert "nonesuch" in capsys.readouterr().err

    def test_table_has_a_row_for_each_report_and_a_line_for_each_fault(self, samples: Any) -> None:
        lines = aot.table(map(as_report, samples.values())).splitlines()
        rows = [line for line in lines if line.startswith("| ")]
        failures = [row for row in samples.values() if "registers" not in row]
        assert len(rows) == 1 + len(samples) - len(failures)
        assert {line.count("|") for line in rows} == {rows[0].count("|")}
        assert len([line for line in lines if line.startswith("- ")]) == sum(
            len(row["faults"]) for row in samples.values()
        )
        assert any("too short a sum, sm_80" in line for line in lines)


# Where the slow tests are left out, those whose code differs most: 86 stands for 89.
QUICK = (80, 86, 90, 100, 120)
quick = pytest.mark.parametrize("capability", QUICK)


class TestShippedKernels:
    @quick
    def test_are_fit(self, shipped: Any, capability: int) -> None:
        self.check(shipped(capability).values())

    @pytest.mark.slow
    @pytest.mark.parametrize("capability", ARCHITECTURES)
    def test_are_all_fit(self, capability: int) -> None:
        rows = json.loads(compiled("--capability", str(capability)))
        self.check(rows)
        known = {name for version, other, name in FAULTY if (version, other) == (VERSION, capability)}
        assert known <= {row["name"] for row in rows}

    def check(self, rows: Collection[dict[str, Any]]) -> None:
        print(aot.table(map(as_report, rows)))
        operators = {"attention forward", "attention dq", "attention dk_dv", "decode step", "head sample"}
        assert {row["name"].split(",")[0] for row in rows} == operators
        faults = {row["name"]: row["faults"] for row in rows if row["faults"]}
        excused = [row["name"] for row in rows if (VERSION, row["capability"], row["name"]) in FAULTY]
        assert list(faults) == excused, faults

    @quick
    def test_threads_wait_for_what_others_store(self, shipped: Any, capability: int) -> None:
        """What is handed over is found, behind barriers. `test_are_fit` says that nothing is without one."""
        rows = shipped(capability)
        published = ["new_tokens, published", "scores, published", "scores, read"]
        assert only(rows, "decode step, categorical, one launch, V=1024")["handed_over"] == published
        assert only(rows, "head sample, categorical, V=1024, bf16")["handed_over"] == ["listed, read"]
        assert only(rows, "head sample, finish, N=256")["handed_over"] == ["scores, read"]
        others = [row for name, row in rows.items() if "one launch" not in name and not name.startswith("head sample")]
        assert {row["name"]: row["handed_over"] for row in others if row["handed_over"]} == {}

    def test_a_short_decoding_step_waits_too(self, samples: Any) -> None:
        row = samples["a decoding step of few codes", 80]
        assert row["handed_over"] == ["new_tokens, published", "scores, published", "scores, read"]
        assert row["races"] == []


@pytest.mark.slow
def test_what_tuning_tries_is_fit_for_hopper(tmp_path: Path) -> None:
    (tmp_path / "candidate_builds.py").write_text(CANDIDATES)
    run = command_line("--module", "candidate_builds", "--capability", "90", "--json", python_path=tmp_path)
    assert run.stdout, run.stderr
    assert {row["name"]: row["faults"] for row in json.loads(run.stdout) if row["faults"]} == {}


class TestAttentionForward:
    @pytest.mark.parametrize("head_dim", [48, 96])
    @pytest.mark.parametrize("capability", [80, 86, 90, 120])
    def test_head_dims_that_are_no_power_of_two_cost_no_padding(
        self, shipped: Any, capability: int, head_dim: int
    ) -> None:
        assert shipped(capability)[f"attention forward, head_dim {head_dim}, half"]["padding"] == 1

    @pytest.mark.parametrize("capability, warps", [(80, 16), (86, 16), (90, 16), (120, 12)])
    def test_cost(self, shipped: Any, capability: int, warps: int) -> None:
        row = shipped(capability)["attention forward, head_dim 48, half"]
        assert row["limits"]["issue"] <= 10.5
        assert row["blocks"] * row["num_warps"] >= warps

    @pytest.mark.parametrize("head_dim, dropout", [(48, ""), (48, ", dropout"), (96, "")])
    def test_cache_does_not_limit_it_where_it_did(self, shipped: Any, head_dim: int, dropout: str) -> None:
        row = shipped(90)[f"attention forward, head_dim {head_dim}, half{dropout}"]
        limits = row["limits"]
        assert limits["L2"] <= max(limits["issue"], limits["special"], limits["tensor"])
        assert row["blocks"] >= 2

    @quick
    @pytest.mark.parametrize("head_dim", [48, 96])
    def test_cost_of_dropout(self, shipped: Any, capability: int, head_dim: int) -> None:
        name = f"attention forward, head_dim {head_dim}, half"
        rows = shipped(capability)
        assert rows[f"{name}, dropout"]["per_element"] - rows[name]["per_element"] <= 18

    @pytest.mark.parametrize("capability", [86, 100])  # where tiles do not depend on the length
    @pytest.mark.parametrize("length, limit", [(256, 1.0), (257, 1.35), (1025, 1.10)])
    def test_ragged_lengths_cost_little(self, shipped: Any, capability: int, length: int, limit: float) -> None:
        from maskgit_kernels.attention import triton_forward

        name = "attention forward, head_dim 48, half"
        row = shipped(capability)[name]
        (build,) = (build for build in triton_forward.builds(capability) if build.name == name)
        block_m, block_n = build.constants["BLOCK_M"], build.constants["BLOCK_N"]
        passes, tail_passes = length // block_n, -(-(length % block_n) // 16)
        macs = -(-length // block_m) * (passes * row["macs"] + tail_passes * row["other_macs"])
        ideal = length**2 * build.ideal_macs / build.elements
        assert macs / ideal <= limit * row["padding"]


class TestAttentionBackward:
    @quick
    def test_no_atomics(self, shipped: Any, capability: int) -> None:
        rows = {name: row for name, row in shipped(capability).items() if name.startswith("attention")}
        assert {name: row["atomics"] for name, row in rows.items() if row["atomics"]} == {}

    @pytest.mark.parametrize(
        "capability, limits",
        [
            (80, {"3.6": 22.5, "3.8": 22, "3.9": 22}),
            (86, {"3.6": 22.5, "3.8": 22, "3.9": 22}),
            (
                90,
                {"3.6": 19.5, "3.8": 18.5, "3.9": 20.5},
            ),  # 3.6 loads queries twice for dk and dv, 3.9 moves more about
        ],
    )
    def test_cost(self, shipped: Any, capability: int, limits: dict[str, float]) -> None:
        dq, dk_dv = (shipped(capability)[f"attention {name}, head_dim 48, half"] for name in ("dq", "dk_dv"))
        assert min(dq["blocks"], dk_dv["blocks"]) >= 2
        assert dq["per_element"] + dk_dv["per_element"] <= limits[VERSION]


class TestDecodeStep:
    @quick
    @pytest.mark.parametrize("num_codes, limit", [(1024, 55), (16384, 45)])
    def test_drawing(self, shipped: Any, capability: int, num_codes: int, limit: float) -> None:
        row = only(shipped(capability), "decode step, categorical, V=", f"V={num_codes},")
        assert row["per_element"] <= limit
        assert row["registers"] <= 128
        assert row["atomics"] == 0

    @quick
    def test_each_logit_is_read_once_and_none_written(self, shipped: Any, capability: int) -> None:
        from maskgit_kernels.decode_step import triton as kernels

        rows = shipped(capability)
        for build in kernels.builds(capability):
            if build.name.startswith("decode step, categorical"):
                row = rows[build.name]
                assert row["bytes_per_element"] == (4 if "guided" in build.name else 2), build.name  # bf16
                # A token and a score from each thread, however many logits it has read; and where the same kernel
                # selects, some of the mask and the counter.
                most = 24 if "one launch" in build.name else 8 + 4
                assert row["stored_per_element"] * build.elements <= most * 32 * build.num_warps, build.name


class TestHeadSample:
    @quick
    def test_epilogue(self, shipped: Any, capability: int) -> None:
        for num_codes in (1024, 16384):
            row = only(shipped(capability), "head sample, categorical, V=", f"V={num_codes}, bf16")
            assert row["epilogue_per_element"] <= 45

    @quick
    def test_guidance_takes_no_second_product(self, shipped: Any, capability: int) -> None:
        plain, guided = (
            shipped(capability)[f"head sample, categorical, {words}V=1024, bf16"] for words in ("", "guided, ")
        )
        assert plain["macs"] > 0
        assert (guided["macs"], guided["other_macs"]) == (plain["macs"], plain["other_macs"])

    @quick
    def test_no_logit_is_written(self, shipped: Any, capability: int) -> None:
        for name, row in shipped(capability).items():
            if name.startswith("head sample, ") and "finish" not in name:
                assert row["stored_per_element"] < 1, name
