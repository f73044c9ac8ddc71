"""The command for a short time with a GPU: its steps, their limits, and what is left when one fails."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import measuring
from benchmarks.gpu.files import clean, read, write
from benchmarks.gpu.measuring import Planned, measure
from benchmarks.gpu.process import run
from benchmarks.gpu.steps import MINUTES, Step, gpu_test_files, plan, pytest_command
from benchmarks.gpu.summary import Summary
from benchmarks.hardware import ROOT
from benchmarks.harness import Case, Comparison
from benchmarks.setting import Setting

QUICK = Setting(torch.device("cpu"), quick=True)


def steps(folder: Path, **codes: str) -> list[Step]:
    """Steps that are a few lines of Python; RESULT is their file."""
    return [
        Step(name, f"proves {name}", ["-c", code.replace("RESULT", repr(str(result)))], 8, result)
        for name, code in codes.items()
        for result in [folder / f"{name}.json"]
    ]


def test_a_failing_step_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = "open(RESULT, 'w').write('[1]'); print('done')"
    these = steps(
        tmp_path,
        first=works,
        fails=f"{works}; raise ValueError('what went wrong')",
        silent="pass",
        hangs=f"{works}; import time; time.sleep(100)",
        last=works,
    )
    monkeypatch.setattr(command, "plan", lambda *_, **__: these)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    assert command.main([str(tmp_path), "--quick"]) == 1
    entries = read(tmp_path / "summary.json")["steps"]
    expected = ["passed", "failed", "failed", "out of time", "passed"]  # silent: there is no result
    assert [entry["status"] for entry in entries] == expected
    assert entries[1]["last_line"] == "ValueError: what went wrong" and entries[3]["results"] == [1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.txt", "summary.json", "summary.md"]
    markdown = (tmp_path / "summary.md").read_text()
    assert "what went wrong" in markdown and "no GPU figure exists" in markdown
    monkeypatch.setattr(command, "plan", lambda *_, **__: these[:1])
    assert command.main([str(tmp_path), "--quick"]) == 0
    assert "what went wrong" not in (tmp_path / "log.txt").read_text()  # of the earlier run


def test_when_the_time_is_up_nothing_more_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (step,) = steps(tmp_path, only="open(RESULT, 'w').write('[1]')")
    monkeypatch.setattr(command, "plan", lambda *_, **__: [step])
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    assert command.main([str(tmp_path), "--quick", "--minutes", "0.05"]) == 1
    assert read(tmp_path / "summary.json")["steps"][0]["status"] == "not started" and not step.result.exists()


def test_a_step_ends_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; print('begun', flush=True); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(100)"
    )
    started = time.monotonic()
    ended = run(["-c", code], 4.0, tmp_path / "log.txt", {}, tmp_path)
    assert ended.code is None and ended.output.startswith("begun") and time.monotonic() - started < 20
    child = int((tmp_path / "pid").read_text())
    while _alive(child):  # it is dead, and may not be buried yet
        assert time.monotonic() - started < 30
        time.sleep(0.1)


def test_a_step_that_waits_for_its_workers_can_still_report(tmp_path: Path) -> None:
    report = tmp_path / "report"
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"try: child.wait()\nexcept KeyboardInterrupt: child.wait(); open({str(report)!r}, 'w').write('found')"
    )
    assert run(["-c", code], 16.0, tmp_path / "log.txt", {}, tmp_path).code is None
    assert report.read_text() == "found"


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_limits_fill_the_time_and_shrink_with_it(tmp_path: Path) -> None:
    whole = plan(tmp_path, on_gpu=True, quick=False)
    assert sum(step.seconds for step in whole) == pytest.approx(60 * MINUTES)
    half = plan(tmp_path, on_gpu=True, quick=False, minutes=MINUTES / 2)
    assert [step.seconds for step in half] == pytest.approx([step.seconds / 2 for step in whole])
    some = plan(tmp_path, on_gpu=True, quick=False, minutes=3, only=["figures", "verify"])
    assert [step.name for step in some] == ["verify", "figures"]
    assert sum(step.seconds for step in some) == pytest.approx(180)


def test_every_test_marked_gpu_is_run(tmp_path: Path) -> None:
    """The files are found by their text, which must not miss any that pytest would."""
    ours = pytest_command(tmp_path / "x.xml", collect_only=True)
    whole = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests", "--collect-only", "-q"]
    runs = [
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        for command in (whole, ours)
    ]
    names = [{line for line in done.stdout.splitlines() if "::" in line} for done in runs]
    assert names[0] == names[1] and len(names[0]) > 100
    assert len(gpu_test_files()) < 15


def test_results_name_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    write(tmp_path / "x.json", {"at": [f"{ROOT}/benchmarks/clock.py on secret-host", 3]})
    assert read(tmp_path / "x.json") == {"at": ["benchmarks/clock.py on HOST", 3]}
    assert clean(f"{sys.prefix}/lib") == "lib"
    monkeypatch.setattr(sys, "prefix", f"{ROOT}/.venv")
    assert clean(f"{ROOT}/.venv/lib") == "lib"


def test_what_pytest_reports_is_taken_in(tmp_path: Path) -> None:
    xml = tmp_path / "tests.xml"
    xml.write_text(
        '<testsuites><testsuite hostname="secret-host"><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="off by 3&#10;more">text</failure></testcase>'
        '<testcase classname="b" name="left"><skipped/></testcase></testsuite></testsuites>'
    )
    summary = Summary(tmp_path, quick=False, minutes=9)
    step = Step("tests", "", [], 1, xml, kept=True)
    summary.add(step, run(["-c", "raise SystemExit(1)"], 20, tmp_path / "log.txt", {}, tmp_path))
    (entry,) = read(tmp_path / "summary.json")["steps"]
    assert entry["results"] == {"passed": 1, "failed": 1, "skipped": 1, "failures": ["a::bad: off by 3"]}
    assert entry["status"] == "failed" and "secret-host" not in xml.read_text()
    assert "a::bad: off by 3" in summary.to_markdown()


def comparison(run: Callable[[], object]) -> Planned:
    cases = [Case(name, run, lambda: None) for name in ("theirs", "torch.compile", "ours")]
    return Planned(lambda: Comparison("suite", "job", cases, "theirs"), ("torch.compile",))


def test_a_comparison_that_crashes_costs_itself_alone(tmp_path: Path) -> None:
    def crash() -> Comparison:
        raise MemoryError("too large")

    file = tmp_path / "results.json"
    report = measure([comparison(lambda: None), Planned(crash), comparison(lambda: None)], QUICK, file, seconds=60)
    saved = read(file)
    assert (saved["planned"], saved["done"]) == (3, 3)
    assert [row["status"] for row in saved["rows"]] == ["timed", "timed", "skipped", "refused"] + [
        "timed", "timed", "skipped"
    ]  # fmt: skip
    assert any("too large" in line for line in report.failures)


def test_what_time_does_not_allow_is_not_begun(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    measure([comparison(lambda: None)] * 3, QUICK, file, seconds=-1)
    assert not file.exists()
    measure([comparison(lambda: None)] * 3, QUICK, file, seconds=60)
    measure([comparison(lambda: None)] * 4, QUICK, file, seconds=60, first=3)  # goes on
    assert len(read(file)["rows"]) == 4 * 3 and read(file)["done"] == 4


def test_another_process_goes_on_where_the_gpu_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = dataclasses.replace(QUICK)
    monkeypatch.setattr(Setting, "on_gpu", property(lambda _: True))
    monkeypatch.setattr(measuring, "_usable", lambda: False)

    def restart(first: int) -> None:
        raise SystemExit(first)

    with pytest.raises(SystemExit) as stopped:
        measure([comparison(lambda: None)] * 3, setting, tmp_path / "x.json", 60, restart=restart)
    assert stopped.value.code == 1 and read(tmp_path / "x.json")["done"] == 1


def test_the_day_begins_without_tyro(tmp_path: Path) -> None:
    """A GPU machine without a network has PyTorch and Triton, and little else."""
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError('no tyro here')")
    code = (
        "from benchmarks.gpu import __main__, environment, smoke, comparisons, figures\n"
        "import sys; assert 'tyro' not in sys.modules"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
