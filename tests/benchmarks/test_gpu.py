"""The command for a short time with a GPU: its steps, their limits, and what is left when one fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.files import clean, read, write
from benchmarks.gpu.plugin import PARTS, SLOW, choose
from benchmarks.gpu.process import run
from benchmarks.gpu.steps import MINUTES, SECONDS, Step, gpu_test_files, plan, pytest_command
from benchmarks.gpu.summary import Summary
from benchmarks.hardware import ROOT
from benchmarks.setting import Setting
from benchmarks.suites import GROUPS


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
    ended = run(Step("", "", ["-c", code], 4.0), 4.0, tmp_path / "log.txt", tmp_path)
    assert ended.code is None and ended.output.startswith("begun") and time.monotonic() - started < 20
    child = int((tmp_path / "pid").read_text())
    while _alive(child):  # it is dead, and may not be buried yet
        assert time.monotonic() - started < 30
        time.sleep(0.1)


@pytest.fixture
def in_the_background() -> Iterator[None]:
    """SIGINT as a shell leaves it to what a script starts with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


def test_a_step_that_waits_for_its_workers_can_still_report(in_the_background: None, tmp_path: Path) -> None:
    report = tmp_path / "report"
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"try: child.wait()\nexcept KeyboardInterrupt: child.wait(); open({str(report)!r}, 'w').write('found')"
    )
    assert run(Step("", "", ["-c", code], 16.0), 16.0, tmp_path / "log.txt", tmp_path).code is None
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


TESTS = """
import pytest

def test_good(): pass
def test_bad(): raise ValueError("off by 3\\nmore")
@pytest.mark.parametrize("x", [1])
def test_left(x): pytest.skip("not here")
"""


def test_what_pytest_reports_is_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_other.py").write_text("import no_such_package")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # in this process
    monkeypatch.setattr("benchmarks.gpu.steps.gpu_test_files", lambda: [str(tmp_path)])
    arguments = [
        part for part in pytest_command(tmp_path / "tests.json", collect_only=False) if part not in ("-m", "gpu")
    ]
    step = Step("tests", "", ["-m", *arguments, "--rootdir", str(tmp_path)], 60, tmp_path / "tests.json")
    summary = Summary(tmp_path, quick=False, minutes=9)
    summary.add(step, run(step, 60, tmp_path / "log.txt", tmp_path))
    (entry,) = read(tmp_path / "summary.json")["steps"]
    found = {name.split("/")[-1]: outcome for name, outcome in entry["results"]["outcomes"].items()}
    assert found.pop("test_other.py").startswith("failed: ")
    assert found == {
        "test_some.py::test_good": "passed",
        "test_some.py::test_bad": "failed: ValueError: off by 3\nmore",
        "test_some.py::test_left[1]": "skipped: not here",
    }
    assert entry["status"] == "failed"
    assert "1 passed, 2 failed, 1 skipped" in summary.to_markdown()
    assert "test_bad failed: ValueError: off by 3 more" in summary.to_markdown()


CONFTEST = """
from pathlib import Path
from benchmarks.gpu import plugin

LOST = Path(__file__).with_name("lost")
plugin.PARTS["comparisons"] = ["second/*", "first/a and what is slow to compile"]
plugin.usable = lambda: not LOST.exists() or LOST.unlink()

def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true")
"""
BENCHMARKS = """
import pytest
from pathlib import Path

@pytest.mark.parametrize("implementation", ["theirs", "compiled", "ours"])
@pytest.mark.parametrize("job", ["first/a", "first/b", "second/a", "second/b"])
def timed(job, implementation, benchmark):
    benchmark.pedantic(lambda: None, rounds=2)
    benchmark.extra_info.update(implementation=implementation, baseline="theirs", item="call", items=1, speedup=1.0)
    benchmark.extra_info.update(host_seconds=None, peak_bytes=None)
    if (job, implementation) == SPECIAL:
        DO
timed.__test__ = True
"""


def benchmarks(folder: Path, job: str, implementation: str, does: str) -> Step:
    """A step of benchmarks, one of which does something special."""
    (folder / "conftest.py").write_text(CONFTEST)
    special = BENCHMARKS.replace("SPECIAL", repr((job, implementation))).replace("DO", does)
    (folder / "test_timed.py").write_text(special)
    options = ["-p", "no:cacheprovider", "--rootdir", str(folder), "-p", "benchmarks.gpu.plugin"]
    result = folder / "results.json"
    command = ["-m", "pytest", str(folder), *options, "--part", "comparisons", "--keep", str(result)]
    return Step("comparisons", "", command, 100, result, kept=True)


ORDER = ["second/a-theirs", "second/a-ours", "second/b-theirs", "second/b-ours"]
ORDER += ["first/a-theirs", "first/a-compiled", "first/a-ours"]


def outcomes(step: Step) -> list[str]:
    """Of what was run or left out, in the order of importance."""
    assert step.result is not None
    found = read(step.result)
    assert found["planned"] == len(ORDER)
    assert list(found["outcomes"]) == [f"test_timed.py::timed[{name}]" for name in ORDER]
    return list(found["outcomes"].values())


def test_a_benchmark_that_crashes_costs_itself_alone(tmp_path: Path) -> None:
    step = benchmarks(tmp_path, "second/a", "theirs", "raise MemoryError('too large')")
    summary = Summary(tmp_path, quick=False, minutes=9)
    summary.add(step, run(step, 100, tmp_path / "log.txt", tmp_path))
    assert outcomes(step) == ["failed: MemoryError: too large", *["passed"] * 6]
    (entry,) = read(tmp_path / "summary.json")["steps"]
    assert entry["status"] == "failed" and len(entry["results"]["benchmarks"]) == 6
    assert "timed[second/a-theirs] failed: MemoryError: too large" in summary.to_markdown()


def test_another_process_goes_on_where_the_gpu_was_lost(tmp_path: Path) -> None:
    """Behind the comparison that lost it; what it had not done counts as failed."""
    step = benchmarks(tmp_path, "second/b", "theirs", f"Path({str(tmp_path / 'lost')!r}).touch()")
    ended = run(step, 100, tmp_path / "log.txt", tmp_path)
    assert ended.code == 1 and ended.output.count("test session starts") == 2
    lost = "failed: the GPU was lost to the process"
    assert outcomes(step) == ["passed", "passed", lost, lost, "passed", "passed", "passed"]


def test_a_kernel_that_never_ends_costs_nothing_that_was_found(tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    step = benchmarks(tmp_path, "first/a", "theirs", f"Path({str(hangs)!r}).touch(); __import__('time').sleep(100)")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    with subprocess.Popen([sys.executable, *step.command], cwd=ROOT, env=environment) as process:
        while not hangs.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    names = [benchmark["name"] for benchmark in read(tmp_path / "results.json")["benchmarks"]]
    assert names == [f"timed[{name}]" for name in ORDER[:4]]


def test_what_is_measured_on_a_gpu_exists() -> None:
    setting = Setting(torch.device("cuda"), quick=False)
    jobs = [
        (comparison.job, name)
        for comparisons in GROUPS.values()
        for comparison in comparisons(setting)
        for name in comparison.implementations
    ]
    for part in PARTS.values():
        assert all(choose(jobs, [pattern]) for pattern in part)
    slow = {name for job, name in (jobs[number] for number in choose(jobs, PARTS["comparisons"])) if name in SLOW}
    assert slow == set(SLOW)


def test_the_most_important_come_first(tmp_path: Path) -> None:
    """Whatever order the benchmarks' own files ask for."""
    (step,) = plan(tmp_path, on_gpu=False, quick=True, only=["figures"])
    arguments = ["60" if argument == SECONDS else argument for argument in step.command]
    collect = [sys.executable, *arguments, "--collect-only", "-q", "-q"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(collect, cwd=ROOT, env=environment, capture_output=True, text=True)
    groups = [line.split("::")[-1].split("[")[0] for line in done.stdout.splitlines() if "::" in line]
    assert list(dict.fromkeys(groups)) == ["decoding", "inpaint", "attention-forward", "decode-step", "head-sample"]


def test_a_step_whose_packages_are_missing_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (step,) = steps(tmp_path, only="open(RESULT, 'w').write('[1]')")
    lacks = dataclasses.replace(step, name="lacks", needs=("pytest", "no_such_package"))
    monkeypatch.setattr(command, "plan", lambda *_, **__: [lacks, step])
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    assert command.main([str(tmp_path), "--quick"]) == 1
    entries = read(tmp_path / "summary.json")["steps"]
    assert [entry["status"] for entry in entries] == ["not started", "passed"]
    assert entries[0]["last_line"].startswith("no_such_package can't be imported")


def test_the_day_begins_without_tyro(tmp_path: Path) -> None:
    """A GPU machine without a network has PyTorch and Triton, and little else."""
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError('no tyro here')")
    code = (
        "from benchmarks.gpu import __main__, environment, smoke, plugin\nimport sys; assert 'tyro' not in sys.modules"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
