"""The whole command on tiny shapes, and that the kernels' checks notice wrong results."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import attention, decode_step, head_sample
from benchmarks.__main__ import main
from benchmarks.attention import Job
from benchmarks.bench import LocalBench
from benchmarks.hardware import Peaks
from benchmarks.harness import Maker
from benchmarks.setting import Setting
from benchmarks.suites import SUITES
from benchmarks.turns import compare

ROOT = Path(__file__).resolve().parents[2]
QUICK = Setting(torch.device("cpu"), quick=True)
PEAKS = Peaks({1: 1.0}, {"float32 torch.mm": 1.0})


def refusals(make: Maker) -> dict[str, str]:
    return compare(make, QUICK.device, PEAKS, 0, 2, bench=lambda: nullcontext(LocalBench())).refused


@pytest.mark.parametrize("suite", SUITES)
def test_a_quick_run_times_every_implementation(suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--device", "cpu", "--output", str(tmp_path), "--only", suite]) == 0
    assert "no GPU figure exists" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert {row["suite"] for row in rows} == {suite}
    timed = [row for row in rows if row["status"] == "timed"]
    assert timed and all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in timed)
    by_comparison: dict[str, int] = {}
    for row in timed:
        by_comparison[row["comparison"]] = by_comparison.get(row["comparison"], 0) + 1
    assert min(by_comparison.values()) >= 2
    assert "means nothing" in (folder / "results.md").read_text().replace("mean nothing", "means nothing")


def test_several_suites_make_one_report(tmp_path: Path) -> None:
    """As a user starts it."""
    suites = ["decode-step", "head-sample"]
    command = [sys.executable, "-m", "benchmarks", "--quick", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run([*command, "--only", *suites], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert list(dict.fromkeys(row["suite"] for row in rows)) == suites
    assert all(f"\n{suite}\n" in done.stdout for suite in suites)


def test_an_older_run_can_be_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--device", "cpu", "--output", str(tmp_path), "--only", "decode-step"]
    assert main(arguments) == 0
    (results,) = tmp_path.glob("*/results.json")
    old = json.loads(results.read_text())
    for row in old["rows"]:
        for name in ("p20", "p50", "p80"):
            row[name] /= 1e6  # the older run was incredibly fast
    results.write_text(json.dumps(old))
    assert main([*arguments, "--compare", str(results)]) == 1
    assert "SLOWER  decode-step" in capsys.readouterr().err
    assert main([*arguments, "--compare", str(tmp_path / "missing.json")]) == 2
    assert main(["--device", "tpu"]) == 2


def test_help_explains() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for word in (*SUITES, "static", "--quick", "--compare", "--output", "--device", "Exit status"):
        assert word in done.stdout


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_wrong_attention_is_refused(backward: bool, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("lab", 2, 2, 33, 16, torch.float32, dropout, backward)

    def refused() -> dict[str, str]:
        return refusals(functools.partial(attention.comparison, job, QUICK))

    assert refused() == {}
    right, sdpa = attention.attention, attention._sdpa
    monkeypatch.setattr(attention, "attention", lambda q, k, v, **options: right(q, k, v * 1.0001, **options))
    assert "off by" in refused()["ours (torch)"]
    monkeypatch.setattr(attention, "attention", lambda q, k, v, **options: right(q, k, v, **options) * torch.nan)
    assert "not finite" in refused()["ours (torch)"]
    if dropout:  # drops nothing, and then too much
        monkeypatch.setattr(attention, "_sdpa", lambda *args, kernel, dropout: sdpa(*args, kernel=kernel, dropout=0.0))
        assert "nothing is dropped" in refused()["SDPA math"]
        monkeypatch.setattr(attention, "_sdpa", lambda *args, **options: 0.5 * sdpa(*args, **options))
        assert "dropout keeps" in refused()["SDPA math"]


@pytest.mark.parametrize("guided", [False, True])
def test_wrong_sampling_is_refused(guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = decode_step.Job(2, 25, 40, torch.float32, 0.6, guided)
    heads = head_sample.Job(2, 25, 40, 16, torch.float32, 0.6, guided)

    def refused() -> dict[str, str]:
        return refusals(functools.partial(decode_step.comparison, steps, QUICK)) | refusals(
            functools.partial(head_sample.comparison, heads, QUICK)
        )

    assert refused() == {}
    for module, name, implementation in (
        (decode_step, "decode_step", "ours (torch)"),
        (head_sample, "decode_step", "product, our step (torch)"),
        (head_sample, "head_sample", "ours (torch)"),
    ):
        right = getattr(module, name)
        with monkeypatch.context() as patch:  # another step of the noise
            patch.setattr(module, name, lambda *args, right=right, **options: right(*args, **options | {"step": 4}))
            assert "reference's" in refused()[implementation]


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--quick", "--device", "cpu", "--output", str(tmp_path), "--only", "decode-step"]) == 0
    assert [path.name for path in tmp_path.glob("*/*.png")] == ["decode-step.png"]
