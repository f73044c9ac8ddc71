"""JSON, Markdown, promises, and the comparison with an older run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.hardware import Peaks, describe
from benchmarks.harness import Case, Comparison, Target, Timing, speedup
from benchmarks.report import Report, Row, duration, load_rows, regressions
from benchmarks.static_report import Static
from benchmarks.turns import Outcome

KEY = describe(torch.device("cpu"))


def outcome(ours: list[float], promised: float = 2.0, refused: dict[str, str] | None = None) -> Outcome:
    comparison = Comparison(
        "suite",
        "a job",
        [Case("theirs", lambda: None, lambda: None)],
        "theirs",
        item="image",
        items=4,
        flops=2e9,
        targets=[Target("twice as fast", promised, lambda timings: speedup(timings, "ours", "theirs"))],
    )
    timings = {"theirs": Timing([1.0, 1.0, 1.0], 1, flops=2e9)}
    if not refused:
        timings["ours"] = Timing(ours, 1, flops=2e9)
    return Outcome(comparison, timings, refused or {}, {"other": "not here"}, floor=0.1)


def report_of(*outcomes: Outcome, quick: bool = False) -> Report:
    report = Report(dict(KEY), quick, Peaks({1024: 1e9}, {"float32 torch.mm": 1e9}))
    for one in outcomes:
        report.add(one)
    return report


def test_a_row_says_everything(tmp_path: Path) -> None:
    report = report_of(outcome([0.25, 0.2, 0.5]))
    report.save(tmp_path)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["key"] == KEY and saved["quick"] is False
    ours = Row(**next(row for row in saved["rows"] if row["implementation"] == "ours"))
    assert (ours.p50, ours.speedup, ours.rounds, ours.items, ours.of_floor) == (0.25, 4.0, 3, 4, 2.5)
    markdown = (tmp_path / "results.md").read_text()
    assert "no GPU figure exists" in markdown
    line = next(line for line in markdown.splitlines() if "| ours |" in line)
    for cell in ("250 ms", "220 ms to 400 ms", "16 images", "4.00", "2.50", "8"):
        assert f"| {cell} |" in line
    assert "not timed in 1 of the comparisons: other: not here" in markdown
    assert "peak memory" not in markdown  # a column without entries


def test_promises() -> None:
    assert report_of(outcome([0.5, 0.5, 0.5])).failures == []
    (broken,) = report_of(outcome([0.6, 0.6, 0.6])).failures
    assert "twice as fast: 1.67, promised 2" in broken
    wrong, unmeasured = report_of(outcome([], refused={"ours": "off by 3"})).failures
    assert "off by 3" in wrong and "not measured" in unmeasured
    assert report_of(outcome([9.0, 9.0, 9.0]), quick=True).promises == []


def test_unfit_kernels_are_failures() -> None:
    report = report_of()
    report.static = Static(kernels=[{"name": "forward", "capability": 80, "faults": ["3 traps"]}])
    assert report.failures == ["forward, sm_80: 3 traps"]
    report.static = Static(missing="SyntaxError", broken=True)
    assert report.failures == ["static: SyntaxError"]
    report.static = Static(missing="there is no compiler here")
    assert report.failures == []
    assert "there is no compiler here" in report.to_markdown()


@pytest.mark.parametrize(
    ("before", "now", "slower"),
    [
        ([1.0, 1.0, 1.0], [1.3, 1.3, 1.3], True),
        ([1.0, 1.0, 1.0], [1.05, 1.05, 1.05], False),  # less than can be told
        ([1.0, 1.0, 1.4], [1.2, 1.2, 1.2], False),  # within what the older run varied by
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], False),
    ],
)
def test_regressions(tmp_path: Path, before: list[float], now: list[float], slower: bool) -> None:
    report_of(outcome(before)).save(tmp_path)
    old = load_rows(tmp_path / "results.json", KEY, quick=False)
    found = regressions(old, report_of(outcome(now)).rows)
    assert len(found) == slower
    assert all("suite / a job / ours" in line for line in found)


def test_other_machines_are_not_compared(tmp_path: Path) -> None:
    report_of(outcome([1.0, 1.0, 1.0])).save(tmp_path)
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="of device"):
        load_rows(path, {**KEY, "device": "another"}, quick=False)
    with pytest.raises(ValueError, match="a full run"):
        load_rows(path, KEY, quick=True)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not the results"):
        load_rows(path, KEY, quick=False)


def test_durations() -> None:
    assert [duration(x) for x in (12.34, 1.5, 0.0123, 4.2e-5)] == ["12.3 s", "1.5 s", "12.3 ms", "42 us"]
