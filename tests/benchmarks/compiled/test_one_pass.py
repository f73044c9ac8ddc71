"""Gates on the one-pass backward kernel: what its machine code costs beside that of the two kernels it replaces."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

triton = pytest.importorskip("triton")

# Registers that versions of Triton spill besides the one whose figures the docs quote, and how many more instructions
# they make of it. It stays far below two kernels in what limits it (see the docs), so it is used with them too.
_VERSION = ".".join(triton.__version__.split(".")[:2])
SPILLED = {"3.6": 4, "3.8": 0}.get(_VERSION, 22)
INSTRUCTIONS, OFF = (
    (0.75, 0.1) if _VERSION in ("3.6", "3.8") else (0.76, 0.15)
)  # as a share of two kernels'; of the docs

MODULES = ("maskgit_kernels.attention.triton_one_pass", "maskgit_kernels.attention.triton_backward")
KERNELS = ("one pass, head_dim 48", "dq, head_dim 48, half", "dk_dv, head_dim 48, half")
ONE, DQ, DK_DV = "attention one pass", "attention dq", "attention dk_dv"

Rows = dict[str, Any]  # of the JSON report, by the build's name


@pytest.fixture(scope="module")
def hopper(run_compiled: Callable[..., subprocess.CompletedProcess[str]]) -> Rows:
    run = run_compiled("--json", "--capability", "90", "--module", *MODULES, "--kernel", *KERNELS)
    assert run.returncode in (0, 1), run.stderr
    return {row["name"]: row for row in json.loads(run.stdout)}


LENGTHS = pytest.mark.parametrize("length", ["", ", N=257"])
DROPOUT = pytest.mark.parametrize("dropout", ["", ", dropout"])


@LENGTHS
@DROPOUT
def test_no_faults_and_no_atomics(hopper: Rows, length: str, dropout: str) -> None:
    row = hopper[f"{ONE}, head_dim 48{length}, half{dropout}"]
    assert max(row["local_stores"], row["local_loads"]) <= SPILLED
    assert [fault for fault in row["faults"] if not (SPILLED and fault.startswith("spills"))] == []
    assert row["atomics"] == 0


@LENGTHS
@DROPOUT
def test_three_quarters_of_the_instructions_of_two_kernels(hopper: Rows, length: str, dropout: str) -> None:
    """In the main loops, for each score; those of the few queries of N=257 aside."""
    one = hopper[f"{ONE}, head_dim 48{length}, half{dropout}"]
    dq, dk_dv = (hopper[f"{name}, head_dim 48, half{dropout}"] for name in (DQ, DK_DV))
    assert one["per_element"] <= INSTRUCTIONS * (dq["per_element"] + dk_dv["per_element"])


@LENGTHS
@DROPOUT
def test_reads_a_third_of_the_bytes_of_two_kernels(hopper: Rows, length: str, dropout: str) -> None:
    one = hopper[f"{ONE}, head_dim 48{length}, half{dropout}"]
    dq, dk_dv = (hopper[f"{name}, head_dim 48, half{dropout}"] for name in (DQ, DK_DV))
    assert one["bytes_per_element"] <= 0.3 * (dq["bytes_per_element"] + dk_dv["bytes_per_element"])


def test_what_the_figures_of_the_docs_are(hopper: Rows) -> None:
    """Nearly: docs/kernels.md and `triton_one_pass.takes` quote them."""
    for dropout, expected in (("", 12.4), (", dropout", 18.7)):
        assert hopper[f"{ONE}, head_dim 48, half{dropout}"]["per_element"] == pytest.approx(expected, rel=OFF)


@LENGTHS
def test_few_queries_go_on_with_gradients_behind_a_barrier(hopper: Rows, length: str) -> None:
    """N=257 alone reads what was written before: dk and dv, to which the 257th query adds its share."""
    assert hopper[f"{ONE}, head_dim 48{length}, half"]["handed_over"] == (
        ["dk_ptr, read", "dv_ptr, read"] if length else []
    )
