"""The steps: what each proves, the command that it is, and how long it may take."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.hardware import ROOT

STEPS = ("environment", "verify", "smoke", "tests", "comparisons", "tuning", "figures")
MINUTES = 10.0
"""What the limits below add up to; they come from a run on an H200 with 16 cores."""
LOG = "log.txt"
SECONDS = "SECONDS"
"""Stands in a command for the seconds that the step should fill."""
GO_ON = 75
"""The exit status of a step that asks to be started anew, to go on where it was: EX_TEMPFAIL of sysexits.h."""
SLOWER_ON_A_CPU = 3  # where kernels are interpreted
WORKERS = 12  # processes for the tests; more would only wait for the GPU


@dataclass(frozen=True)
class Step:
    """One process."""

    name: str
    proves: str
    command: list[str]
    """After `python`."""
    seconds: float
    """It may take."""
    result: Path | None = None
    """The file that it leaves; None: it only passes or fails."""
    environment: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False
    """Whether the file is of use by itself; else it goes when summary.json has taken it in."""
    needs: tuple[str, ...] = ()
    """Packages that a machine with PyTorch may lack."""

    def missing(self) -> list[str]:
        """Those of them that this machine lacks."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def plan(
    out: Path, *, on_gpu: bool, quick: bool, minutes: float = MINUTES, only: Collection[str] = STEPS
) -> list[Step]:
    """The steps of these names, the most important first, for a run of so many minutes."""
    steps = [step for step in _all_steps(out, on_gpu=on_gpu, quick=quick) if step.name in only]
    scale = 60 * minutes / sum(step.seconds for step in steps) * (1 if on_gpu else SLOWER_ON_A_CPU)
    return [replace(step, seconds=scale * step.seconds) for step in steps]


def _all_steps(out: Path, *, on_gpu: bool, quick: bool) -> list[Step]:
    small = ["--quick"] if quick else []
    # Without a GPU the kernels are checked in Triton's interpreter, never timed.
    interpreted = {} if on_gpu else {"TRITON_INTERPRET": "1"}
    run_tests, tests = on_gpu and not quick, out / "tests.json"
    verify, tuned = out / "verify.json", out / "tuned.json"

    def own(name: str, proves: str, seconds: float, *options: str) -> Step:
        result = out / f"{name}.json"
        return Step(name, proves, ["-m", f"benchmarks.gpu.{name}", str(result), *options], seconds, result)

    def benchmarks(name: str, proves: str, seconds: float) -> Step:
        result = out / f"{name}.json"
        command = ["-m", "pytest", "benchmarks", "-v", "--tb", "short", "-p", "no:cacheprovider"]
        command += ["-p", "benchmarks.gpu.plugin", "--part", name, "--keep", str(result), "--seconds", SECONDS]
        command += ["--benchmark-max-time", "0.1", "--benchmark-min-rounds", "3", *small]  # in so short a run
        return Step(name, proves, command, seconds, result, kept=True, needs=("pytest", "pytest_benchmark"))

    return [
        own("environment", "what machine this is", 10),
        Step(
            "verify",
            "every operator, forward and backward, agrees with its reference",
            ["-m", "benchmarks.verify", "--json", str(verify), *small],
            85,
            verify,
            interpreted,
        ),
        own("smoke", "a decoding loop as a CUDA graph, a picture inpainted with either kernels, batches", 45, *small),
        Step(
            "tests",
            "the tests marked gpu pass" if run_tests else "the tests marked gpu can be collected",
            pytest_command(tests, collect_only=not run_tests),
            160,
            tests if run_tests else None,
            {"OMP_NUM_THREADS": "1"},
            needs=("pytest",),
        ),
        benchmarks("comparisons", "times of the kernels and the models against their baselines", 165),
        Step(
            "tuning",
            "which tiles are fastest here" if on_gpu else "the command that times tiles starts",
            ["-m", "benchmarks.tune"] + (["--output", str(tuned), "--seconds", SECONDS] if on_gpu else ["--help"]),
            60,
            tuned if on_gpu else None,
            kept=True,
        ),
        benchmarks("figures", "images per second, and the host's time per call for one image", 75),
    ]


def gpu_test_files() -> list[str]:
    """Those with tests that need a GPU, from the root: collecting the others would take each worker a minute."""
    found = (path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text())
    return sorted(str(path.relative_to(ROOT)) for path in found)


def pytest_command(result: Path, *, collect_only: bool) -> list[str]:
    """pytest on the tests marked gpu, in parallel and with a limit for each test where the plugins are installed."""
    command = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *gpu_test_files()]
    if collect_only:
        return [*command, "--collect-only", "-q"]
    command += ["-p", "benchmarks.gpu.plugin", "--keep", str(result)]
    # A file that can't be imported, for want of a package, costs its own tests only.
    command += ["-v", "--tb", "short", "--maxfail", "40", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "90"]
    return command
