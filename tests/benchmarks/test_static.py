"""What is known without running: counts, and the reports of the compiler, which runs in a process of its own."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from benchmarks import static_report
from benchmarks.setting import Setting

QUICK = Setting(torch.device("cpu"), quick=True)


def compiler(monkeypatch: pytest.MonkeyPatch, code: int, out: str = "", err: str = "") -> None:
    """Stand in for the process."""

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "maskgit_kernels.aot", "--json"]
        environment = options["env"]
        assert isinstance(environment, dict) and "TRITON_INTERPRET" not in environment
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(static_report.subprocess, "run", run)


def test_counts_of_the_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    compiler(monkeypatch, static_report.CANNOT_COMPILE, err="usage: ...\naot: error: no compiler")
    static = static_report.measure(QUICK)
    counts = {(row["chain"], row["logits"]): row for row in static.counts}
    eager = counts["eager chain", "bfloat16"]
    # By hand, per logit: 2 + 4 to convert, 8 for the temperature, 8 for the softmax, 4 and four times 8 for the noise,
    # 12 to add it, 4 for the argmax; and a little per position.
    assert eager["launches"] == 25
    assert eager["bytes"] == pytest.approx(74, rel=0.01)
    assert counts["torch.multinomial", "bfloat16"]["launches"] < eager["launches"]
    assert counts["eager chain", "float32, guided"]["bytes"] > counts["eager chain", "float32"]["bytes"]
    assert eager["least_bytes"] == pytest.approx(2, rel=0.02)
    assert static.missing == "aot: error: no compiler" and not static.failures


def test_kernels_that_are_unfit_or_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    unfit = [{"name": "forward", "capability": 80, "faults": ["CompilationError: what"]}]
    compiler(monkeypatch, 1, out=json.dumps(unfit))
    static = static_report.measure(QUICK)
    assert static.failures == ["forward, sm_80: CompilationError: what"]
    assert "CompilationError: what" in static.to_markdown()
    compiler(monkeypatch, 1, err="Traceback ...\nAttributeError: builds")
    assert static_report.measure(QUICK).failures == ["static: AttributeError: builds"]
