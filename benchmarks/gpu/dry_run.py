"""The plan, and the time that it takes on a GPU as far as can be told beforehand.

Kernels are counted: each step is run with `benchmarks.gpu.standin` in the place of a GPU. The seconds are assumptions,
named below; a run's summary has what they really were.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.process import CACHE
from benchmarks.gpu.standin import COMPILED_FILE
from benchmarks.gpu.steps import WORKERS, Step, gpu_test_files
from benchmarks.hardware import ROOT

# Measured on a CPU, with Triton 3.6 and sm_90: CPU seconds for one attention kernel or sampler, and for the C stub that
# launches it.
COMPILE, STUB = 1.6, 0.75
# Assumed.
START = 10.0  # of a process: PyTorch, CUDA, Triton, the libraries' own start
EACH_TEST = 0.3  # besides compiling
EACH_COMPARISON = 4.0  # to make, check and time
INDUCTOR = 12.0  # seconds to compile one function with torch.compile
UNEVEN = 1.5  # how much longer than the mean the busiest of the processes takes
SMALL_MODELS = 30  # kernels that the tests in tests/maskgit compile for their models, which are not counted here
COUNTING = 240.0  # seconds for a count


def report(steps: Sequence[Step], minutes: float) -> str:
    """As text."""
    tests = count("tests")
    seen = set(tests)
    new: dict[str, int] = {}
    for name in ("comparisons", "figures"):
        kernels = count(name)
        new[name] = len(kernels - seen)
        seen |= kernels
    compilations = {"tests": len(tests) + SMALL_MODELS, **new}
    workers = min(WORKERS, 16)
    each = COMPILE + STUB
    work = {
        "environment": 0.0,
        "smoke": 8 * each,
        "tests": UNEVEN * (compilations["tests"] * each + 120 * EACH_TEST) / workers,
        "comparisons": new["comparisons"] * each + 27 * EACH_COMPARISON + 5 * INDUCTOR,
        "figures": new["figures"] * each + 7 * EACH_COMPARISON,
    }
    lines = [f"{'step':<12} {'limit':>6} {'expected':>8} {'kernels':>7}"]
    total = 0.0
    for step in steps:
        expected = min(step.seconds, START + work[step.name] if step.name in work else step.seconds)
        total += expected
        number = compilations.get(step.name, "")
        lines.append(f"{step.name:<12} {step.seconds:4.0f} s {expected:6.0f} s {number:>7}  {step.proves}")
    lines += [
        "",
        f"{total / 60:.1f} of {minutes:g} minutes are expected.",
        "Kernels to compile are counted: those of the tests in tests/kernels (and "
        f"{SMALL_MODELS} assumed for tests/maskgit); of the comparisons those that the tests have not compiled.",
        f"Each takes {COMPILE} s of a CPU and {STUB} s for its launcher, in the tests shared by {workers} processes.",
        f"A process takes {START:g} s to start, a comparison {EACH_COMPARISON:g} s, torch.compile {INDUCTOR:g} s.",
        "verify and tuning may use all of their time.",
    ]
    return "\n".join(lines)


def count(step: str) -> set[tuple[str, str]]:
    """(kernel, specialization) of all that Triton would compile in a step.

    Raises:
        RuntimeError: nothing came of it.
    """
    command = [sys.executable, "-O", "-m"]
    if step == "tests":
        files = [file for file in gpu_test_files() if file.startswith("tests/kernels")]
        plugin = ["pytest", "--assert=plain", "-p", "benchmarks.gpu.standin", "-p", "no:cacheprovider", "-q"]
        command += [*plugin, "-m", "gpu", *files]
    else:
        command += ["benchmarks.gpu.standin", step]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "compiled.json"
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        environment |= {COMPILED_FILE: str(file), "PYTHONPATH": path, "TRITON_CACHE_DIR": str(CACHE)}
        # A test's own outcome means nothing here.
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=COUNTING)
        if not file.exists():
            raise RuntimeError(f"the kernels of {step} can't be counted:\n{(done.stdout + done.stderr)[-2000:]}")
        return {(kernel, key) for kernel, key in json.loads(file.read_text())}
