"""What a run's results say: ratios as a table, promises, and what has become slower than in an older run."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import conftest as plugin
from benchmarks.promises import PROMISES, duration, judge, load, rates, regressions, rows, table
from benchmarks.setting import Setting
from benchmarks.suites import GROUPS
from maskgit.console import UsageError
from maskgit.machine import describe

MACHINE = {**describe(torch.device("cpu")), "cpu": "AMD CPU avx512_bf16", "quick": False}


def benchmark(name: str, seconds: list[float], **info: Any) -> dict[str, Any]:
    """One of pytest-benchmark's: "tokens[job-ours]"."""
    group, rest = name.rstrip("]").split("[")
    job, implementation = rest.rsplit("-", 1)
    facts = {"items": 4, "item": "image", "implementation": implementation, "baseline": "theirs"}
    return {
        "name": name,
        "group": f"{group}/{job}",
        "params": {"job": f"{group}/{job}", "implementation": implementation},
        "stats": {"median": float(np.median(seconds)), "data": seconds},
        "extra_info": facts | {"host_seconds": None, "peak_bytes": None} | info,
    }


def results(*benchmarks: dict[str, Any], **machine: Any) -> dict[str, Any]:
    peaks = {"products": {"float32 torch.mm": 2e11, "float32 packed": 3e11, "bfloat16 torch.mm": 6e11}, "copies": {}}
    return {"machine_info": {**MACHINE, **machine}, "peaks": peaks, "benchmarks": list(benchmarks)}


def test_the_table_says_everything() -> None:
    ours = benchmark(
        "tokens[b8-ours_bf16]",
        [0.25, 0.2, 0.5],
        speedup=4.0,
        speedup_p20=3.5,
        speedup_p80=4.5,
        of_floor=2.5,
        of_ceiling=0.83,
    )
    theirs = benchmark("tokens[b8-theirs]", [1.0], speedup=1.0, speedup_p20=1.0, speedup_p80=1.0)
    lines = table(rows(results(ours, theirs)))
    line = next(line for line in lines if "ours_bf16" in line)
    for cell in ("250 ms", "16 images", "4.00", "3.50 to 4.50", "2.50 x", "83.0%"):
        assert f"| {cell} |" in line
    assert "memory" not in lines[0] and "host" not in lines[0]  # columns without entries
    assert "bfloat16 2.00 times as fast as float32" in rates(results()["peaks"]["products"])


def test_promises() -> None:
    good = benchmark("tokens[maskgit-256-b8-ours_bf16]", [1.0], of_ceiling=0.8)
    (promise,) = judge(results(good))
    assert promise.holds and promise.measured == 0.8
    (broken,) = judge(results(benchmark("tokens[maskgit-256-b8-ours_bf16]", [1.0], of_ceiling=0.5)))
    assert not broken.holds and "0.50, promised 0.6" in str(broken)
    # Its result was wrong: it failed, and has no figures.
    (unmeasured,) = judge(results(benchmark("tokens[maskgit-256-b8-naive_loop]", [1.0])))
    assert not unmeasured.holds and "not measured" in str(unmeasured)
    assert judge(results(good, quick=True)) == []
    assert judge(results(benchmark("decode-step[b8-ours_torch]", [1.0]))) == []  # of it nothing is promised


def test_what_is_promised_where() -> None:
    share = benchmark("tokens[maskgit-256-b8-ours_bf16]", [1.0], of_ceiling=0.8)
    never_slower = benchmark("forward[lab-b8-bf16-ours]", [1.0], speedup=0.9, of_ceiling=0.1)
    for machine in ({"cpu": "A CPU"}, {"cpu": "Intel CPU avx512_bf16"}, {"capability": "9.0"}):
        (slower,) = judge(results(share, never_slower, **machine))
        assert not slower.holds and slower.measured == 0.9
    # How much faster than naive float32 it is decides nothing, nor how fast bfloat16 is here.
    small = benchmark("tokens[maskgit-256-b8-ours_bf16]", [1.0], speedup=1.5, of_ceiling=0.8)
    assert [promise.holds for promise in judge(results(small))] == [True]


def test_memory_is_promised() -> None:
    training = benchmark("training[lab-b8-bf16_compiled]", [1.0], of_ceiling=0.7, memory_saved=0.9)
    by_figure = {promise.name.rsplit(": ")[-1]: promise.holds for promise in judge(results(training))}
    assert by_figure == {"share of the matrix products' speed": True, "memory of the baseline over ours": False}


@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_every_promise_is_about_something(promise: Any) -> None:
    setting = Setting(torch.device("cpu"), quick=False)
    comparisons = [comparison for make in GROUPS.values() for comparison in make(setting)]
    assert any(
        fnmatch(comparison.job, promise.job) and promise.implementation in comparison.implementations
        for comparison in comparisons
    )


@pytest.mark.parametrize(
    ("before", "now", "slower"),
    [
        ([1.0, 1.0, 1.0], [1.3, 1.3, 1.3], True),
        ([1.0, 1.0, 1.0], [1.05, 1.05, 1.05], False),  # less than can be told
        ([1.0, 1.0, 1.4], [1.2, 1.2, 1.2], False),  # within what the older run varied by
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], False),
    ],
)
def test_regressions(before: list[float], now: list[float], slower: bool) -> None:
    old, new = (results(benchmark("a[job-ours]", seconds)) for seconds in (before, now))
    found = regressions(old, new)
    assert len(found) == slower
    assert all("a[job-ours]" in line for line in found)
    assert regressions(results(), new) == []


def test_other_machines_are_not_compared() -> None:
    plugin.pytest_benchmark_compare_machine_info(MACHINE, results())
    for other, what in (({"device": "another"}, "device 'another'"), ({"quick": True}, "quick True")):
        with pytest.raises(pytest.UsageError, match=f"it is of {what}"):
            plugin.pytest_benchmark_compare_machine_info(MACHINE, results(**other))


def test_other_files_are_no_results(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(benchmark("a[job-ours]", [1.0]))))
    assert load(path)["machine_info"] == json.loads(json.dumps(MACHINE))
    for text in ("{}", "[]", "no JSON", '{"machine_info": {"quick": 1}, "peaks": {}, "benchmarks": [1]}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="not the results"):
            load(path)
    with pytest.raises(UsageError, match="not the results"):
        load(tmp_path / "missing.json")


def test_durations() -> None:
    assert [duration(x) for x in (12.34, 1.5, 0.0123, 4.2e-5)] == ["12.3 s", "1.5 s", "12.3 ms", "42 us"]
