"""Kernels as GPUs get them: what `python -m benchmarks.compiled` finds, once for all tests."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def command_line(*options: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks.compiled` where Triton compiles, with the modules beside this one."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.compiled", "--jobs", "1", *options],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], str]) -> Any:
    """The JSON that `make` returns, made only once however many processes run the tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    file = folder / f"{name}.json"
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(make())
    return json.loads(file.read_text())


@pytest.fixture(scope="session")
def run_compiled() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command_line`."""
    return command_line


@pytest.fixture(scope="session")
def reports_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], str]], Any]:
    """`once`, by a name and what makes the JSON."""
    return functools.partial(once, tmp_path_factory)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    """The reports on sample_kernels.py, by name and architecture."""

    def make() -> str:
        options = ("--module", "sample_kernels", "--capability", "80", "90", "100", "--json")
        run = command_line(*options)
        assert run.returncode == 1, run.stderr  # because some of them are faulty
        return run.stdout

    return {(row["name"], row["capability"]): row for row in once(tmp_path_factory, "compiled_samples", make)}
