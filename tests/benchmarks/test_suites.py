"""All comparisons on tiny shapes, kernels whose results are wrong, and the commands as a user starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import attention, head_loss, sampling
from benchmarks.__main__ import main
from benchmarks.bench import Bench
from benchmarks.clock import Clock, Stopwatch
from benchmarks.harness import Comparison
from benchmarks.measuring import Measurement
from benchmarks.setting import Setting
from benchmarks.suites import FILE, GROUPS, node_ids

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
QUICK = Setting(CPU, quick=True)
COMMAND = ["-m", "benchmarks", "--quick", "--device", "cpu"]
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "--quick", "--device", "cpu"]
STEP, HEAD = "decode-step[b2-n16-v64-float32-masked25-", "head-sample[b2-n16-v64-d32-float32-masked25-"


def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python, in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


# --- comparisons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_a_quick_run_times_every_implementation(group: str) -> None:
    for comparison in GROUPS[group](QUICK):
        names = list(node_ids(comparison))
        measurement = Measurement(comparison, names, Clock(CPU), Stopwatch(), 0.0, 2, Bench)
        assert list(measurement.verdicts) == names
        timed = [name for name, verdict in measurement.verdicts.items() if verdict.status == "good"]
        left_out = {verdict.reason for name, verdict in measurement.verdicts.items() if name not in timed}
        assert comparison.baseline in timed and len(timed) >= 2
        assert left_out <= {"No available kernel.  Aborting execution."}
        assert all(measurement._time(name) > 0 for name in timed)


@pytest.mark.parametrize("quick", [True, False])
def test_comparisons_can_be_sent_to_processes_and_have_names_of_their_own(quick: bool) -> None:
    seen: list[str] = []
    for group, make in GROUPS.items():
        comparisons = list(make(Setting(CPU, quick)))
        assert comparisons and {comparison.group for comparison in comparisons} == {group}
        seen += [identifier for comparison in comparisons for identifier in node_ids(comparison).values()]
        assert [pickle.loads(pickle.dumps(comparison)).job for comparison in comparisons] == [
            comparison.job for comparison in comparisons
        ]
    assert len(set(seen)) == len(seen)
    assert quick or "benchmarks/test_suites.py::attention-forward[lab-b8-bf16-sdpa_flash]" in seen


def refusals(comparison: Comparison) -> dict[str, str]:
    """What fails its check, and how."""
    verdicts = Bench(comparison, Clock(CPU), list(node_ids(comparison))).verdicts
    return {name: verdict.reason for name, verdict in verdicts.items() if verdict.status == "refused"}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_wrong_attention_is_refused(backward: bool, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    job = attention.Job("lab", 2, 2, 33, 16, torch.float32, dropout, backward)

    def refused() -> dict[str, str]:
        return refusals(attention.comparison(job, QUICK))

    assert refused() == {}
    right, apart, sdpa = attention.attention_packed, attention.attention, attention._sdpa
    monkeypatch.setattr(attention, "attention_packed", lambda qkv, **options: 1.0001 * right(qkv, **options))
    assert "off by" in refused()["ours_torch"]
    monkeypatch.setattr(attention, "attention_packed", lambda qkv, **options: right(qkv, **options) * torch.nan)
    assert "not finite" in refused()["ours_torch"]
    monkeypatch.setattr(attention, "attention", lambda *args, **options: 1.0001 * apart(*args, **options))
    assert ("ours_apart_torch" in refused()) == backward
    if dropout:  # drops nothing, and then too much
        monkeypatch.setattr(attention, "_sdpa", lambda *args, kernel, dropout: sdpa(*args, kernel=kernel, dropout=0.0))
        assert "nothing is dropped" in refused()["sdpa_math"]
        monkeypatch.setattr(attention, "_sdpa", lambda *args, **options: 0.5 * sdpa(*args, **options))
        assert "dropout keeps" in refused()["sdpa_math"]


@pytest.mark.parametrize("guided", [False, True])
def test_wrong_sampling_is_refused(guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sampling.Job(2, 25, 40, torch.float32, 0.6, guided)
    comparisons = {
        "step": sampling.comparison(job, QUICK),
        "head": sampling.comparison(dataclasses.replace(job, dim=16), QUICK),
    }
    assert [refusals(comparison) for comparison in comparisons.values()] == [{}, {}]
    for which, name, implementation in (
        ("step", "decode_step", "ours_torch"),
        ("head", "decode_step", "product_ours_torch"),
        ("head", "head_sample", "ours_torch"),
    ):
        right = getattr(sampling, name)
        with monkeypatch.context() as patch:  # another step of the noise
            patch.setattr(sampling, name, lambda *args, right=right, **options: right(*args, **options | {"step": 4}))
            assert "reference's" in refusals(comparisons[which])[implementation]


@pytest.mark.parametrize("wrong", [0, 1, 2, 3, 4])  # loss, hits, gradients
@pytest.mark.parametrize("bias", ["position", "code"])
def test_wrong_losses_are_refused(bias: str, wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    job = head_loss.Job("quick", 2, 25, 40, 16, bias, torch.float32, 0.6)
    comparison = head_loss.comparison(job, QUICK)
    assert refusals(comparison) == {}
    right = head_loss.run_loss

    def run(function: head_loss.Loss, inputs: head_loss.Inputs) -> list[torch.Tensor]:
        results = right(function, inputs)
        if getattr(function, "func", None) is head_loss.head_loss:
            results[wrong] = results[wrong] + 1 if wrong == 1 else results[wrong] * 1.0001
        return results

    monkeypatch.setattr(head_loss, "run_loss", run)
    assert "is off by" in refusals(comparison)["ours_torch"]


# --- commands ---------------------------------------------------------------------------------------------------------


def test_several_groups_make_one_report(tmp_path: Path) -> None:
    """As a user starts it; and once more, compared with that."""
    groups = ["decode-step", "head-sample"]
    done = start(*COMMAND, "--output", tmp_path, "--only", *groups)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no GPU figure exists" in done.stdout
    (folder,) = tmp_path.iterdir()
    results = json.loads((folder / "results.json").read_text())
    rows = results["benchmarks"]
    assert list(dict.fromkeys(row["name"].split("[")[0] for row in rows)) == groups
    assert all(f"benchmark '{row['group']}'" in done.stdout for row in rows)  # pytest-benchmark's tables, and ours
    text = (folder / "results.md").read_text()
    assert all(f"| {row['name']} | " in text and f"| {row['name']} | " in done.stdout for row in rows)
    assert "times mean nothing" in text
    for row in rows:
        info, stats = row["extra_info"], row["stats"]
        assert 0 < stats["min"] <= stats["median"] <= stats["max"] and info["check"] == "passed"
        # Two rounds, in each of which the baseline has one: it has two beside each of the others.
        others = sum(other["group"] == row["group"] for other in rows) - 1
        assert stats["rounds"] == (2 * others if info["implementation"] == info["baseline"] else 2)
        assert info["speedup"] > 0 and row["params"]["job"] == row["group"]
    assert results["machine_info"]["quick"] is True and "node" not in results["machine_info"]

    for row in rows:  # the older run was incredibly fast
        row["stats"]["data"] = [seconds / 1e6 for seconds in row["stats"]["data"]]
        row["stats"]["median"] /= 1e6
    (folder / "results.json").write_text(json.dumps(results))
    compared = start(*COMMAND, "--output", tmp_path / "new", "--only", "decode", "--compare", folder / "results.json")
    assert compared.returncode == 1
    assert f"SLOWER  {STEP}ours_torch]" in compared.stderr and f"{STEP}ours_torch] (NOW)" in compared.stdout


def test_wrong_results_fail_and_what_is_not_here_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(
        "from benchmarks import sampling\n"
        "right = sampling.decode_step\n"
        "sampling.decode_step = lambda *args, **options: right(*args, **options | {'step': 4})\n"
        "calls, chain = [], sampling.CHAINS['multinomial']\n"
        "sampling.CHAINS['multinomial'] = lambda *args, **options: calls.append(0) or 1 / (len(calls) < 4)"
        " and chain(*args, **options)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    names = ["ours_torch", "ours_triton", "multinomial", "eager_chain"]
    asked = [*(f"{STEP}{name}]" for name in names), f"{HEAD}ours_torch]"]
    options = ["-v", "-rsf", "-p", "planted", "--benchmark-only", f"--benchmark-json={tmp_path / 'results.json'}"]
    ids = [f"benchmarks/test_suites.py::{name}" for name in asked]
    done = start(*PYTEST, *options, *ids, PYTHONPATH=path)
    assert done.returncode == 1
    outcomes = [line.split()[:2] for line in done.stdout.splitlines() if line.startswith(FILE) and "%]" in line]
    assert outcomes == [  # in the order in which they were asked for
        [identifier, outcome]
        for identifier, outcome in zip(ids, ["FAILED", "SKIPPED", "FAILED", "PASSED", "PASSED"], strict=True)
    ]
    assert "are the reference's" in done.stdout and "there is no GPU here" in done.stdout
    assert "was not used at all" not in done.stdout  # the fixture, of which pytest-benchmark would say so
    rows = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    assert [row["name"] for row in rows] == asked[3:]
    assert "ZeroDivisionError" in done.stdout and "Matrix products here" in done.stdout  # broke off while it was timed
    assert rows[1]["extra_info"]["speedup"] > 0  # the baseline was not asked for, but its rounds are there


def test_what_has_not_begun_when_the_time_is_up_is_skipped() -> None:
    done = start(*PYTEST, "-rs", "--seconds", "0", "benchmarks/test_suites.py::decode-step")
    assert done.returncode == 0
    assert "the time is up: --seconds 0" in done.stdout and "passed" not in done.stdout


def test_impossible_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--compare", str(tmp_path / "missing.json")], "not the results"),
        (["--device", "tpu"], "tpu"),
        (["--only", "deco"], "there are attention-forward"),
    ):
        assert main([*options, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (*GROUPS, "static", "--quick", "--compare", "--output", "--device", "Exit status"):
        assert word in text


def test_the_tests_of_the_readme_time_nothing() -> None:
    configuration = (ROOT / "pyproject.toml").read_text()
    assert 'testpaths = ["tests"]' in configuration
