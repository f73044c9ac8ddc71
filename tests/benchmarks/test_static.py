"""What is known without running: counts, and the reports of the compiler, which runs in a process of its own."""

from __future__ import annotations

import json
import subprocess

import pytest

from benchmarks import static


def compiler(monkeypatch: pytest.MonkeyPatch, code: int, out: str = "", err: str = "") -> None:
    """Stand in for the process."""

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "benchmarks.compiled", "--json"]
        environment = options["env"]
        assert isinstance(environment, dict) and "TRITON_INTERPRET" not in environment
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(static.subprocess, "run", run)


def test_counts_of_the_chains() -> None:
    counts = {(chain, logits): figures for chain, logits, *figures in static.chain_counts()}
    launches, moved, least = counts["eager_chain", "bf16"]
    # By hand, per logit: 2 + 4 to convert, 8 for the temperature, 8 for the softmax, 4 and four times 8 for the noise,
    # 12 to add it, 4 for the argmax; and a little per position.
    assert launches == 25
    assert moved == pytest.approx(74, rel=0.01)
    assert counts["multinomial", "bf16"][0] < launches
    assert counts["eager_chain", "float32, guided"][1] > counts["eager_chain", "float32"][1]
    assert least == pytest.approx(2, rel=0.02)


def test_no_compiler_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    compiler(monkeypatch, static.CANNOT_COMPILE, err="usage: ...\ncompiled: error: no compiler")
    text, failures = static.measure(quick=True)
    assert "not compiled: compiled: error: no compiler" in text and not failures


def test_kernels_that_are_unfit_or_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    unfit = [{"name": "forward", "capability": 80, "faults": ["CompilationError: what"]}]
    compiler(monkeypatch, 1, out=json.dumps(unfit))
    text, failures = static.measure(quick=True)
    assert failures == ["forward, sm_80: CompilationError: what"]
    assert "CompilationError: what" in text
    compiler(monkeypatch, 1, err="Traceback ...\nAttributeError: builds")
    assert static.measure(quick=True)[1] == ["static: AttributeError: builds"]
