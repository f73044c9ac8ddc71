"""Gates on the compiled kernels of head_loss: what the machine code costs, on GPUs that are not there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.compiled.architectures import ARCHITECTURES

triton = pytest.importorskip("triton")

OLDEST = triton.__version__.startswith("3.6.")  # which moves more about on sm_80, and spills a register on sm_100
_FAULTY = {f"differentiate logits, V={codes}, bf16" for codes in (1024, 16384)}

Rows = dict[str, Any]  # of the JSON report, by what the kernel's name adds to "head loss, "

QUICK = (80, 90, 100)
quick = pytest.mark.parametrize("capability", QUICK)
PRODUCTS = ("weigh tiles", "differentiate hidden", "differentiate weight")


@pytest.fixture(scope="session")
def compiled(run_compiled: Any, reports_once: Any) -> Callable[..., Rows]:
    """The reports on an architecture's builds: all, or those without exact float32 and tf32."""

    @functools.cache
    def of(capability: int, *kernels: str) -> Rows:
        module = ("--module", "maskgit_kernels.head_loss.plan", "--capability", str(capability))

        def run() -> str:
            done = run_compiled(*module, "--json", *(("--kernel", *kernels) if kernels else ()))
            assert done.returncode in (0, 1), done.stderr
            return str(done.stdout)

        rows = reports_once(f"head_loss_{capability}_{len(kernels)}", run)
        return {row["name"].removeprefix("head loss, "): row for row in rows}

    return of


@quick
def test_are_fit(compiled: Any, capability: int) -> None:
    rows = compiled(capability, "bf16")
    faulty = _FAULTY if OLDEST and capability == 100 else set()
    assert {name for name, row in rows.items() if row["faults"]} == faulty, {x: rows[x]["faults"] for x in rows}
    assert len(rows) == 11


@pytest.mark.slow
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_are_all_fit(compiled: Any, capability: int) -> None:
    rows = compiled(capability, *(("tf32", "fp32") if capability in QUICK else ()))  # the others are tested above
    assert {name: row["faults"] for name, row in rows.items() if row["faults"]} == {}
    assert len(rows) == (6 if capability in QUICK else 17)


@quick
def test_products_waste_nothing(compiled: Any, capability: int) -> None:
    """No multiply-add of padding, none without tensor cores, and two bytes for each of 128 x 128 results."""
    for name in PRODUCTS:
        row = compiled(capability, "bf16")[f"{name}, V=1024, bf16"]
        assert row["padding"] == 1 and row["macs"] > 0 and row["other_macs"] == 0
        assert row["bytes_per_element"] <= 2.25
        assert row["per_element"] <= (3.8 if OLDEST else 3.6)


@quick
@pytest.mark.parametrize("gradients, limit", [(", without gradients", 20), ("", 23)])
def test_epilogue_of_a_logit(compiled: Any, capability: int, gradients: str, limit: float) -> None:
    row = compiled(capability, "bf16")[f"weigh tiles{gradients}, V=16384, bf16"]
    assert row["epilogue_per_element"] <= (1.13 if OLDEST else 1) * limit


@quick
def test_no_logit_is_written_without_gradients(compiled: Any, capability: int) -> None:
    rows = compiled(capability, "bf16")
    without, with_them = (rows[f"weigh tiles{x}, V=16384, bf16"] for x in (", without gradients", ""))
    assert without["stored_per_element"] < 0.5
    assert 2 <= with_them["stored_per_element"] < 2.5  # a weight in bfloat16


@quick
def test_there_are_no_atomics(compiled: Any, capability: int) -> None:
    """So results are the same every time."""
    assert all(row["atomics"] == 0 for row in compiled(capability, "bf16").values())
