"""Runs a step: a process group of its own, which ends with its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.steps import GO_ON, SECONDS, Step
from benchmarks.hardware import ROOT

GRACE = 5.0  # seconds, the last of a limit, in which a process that is asked to stop can write down what it has
CACHE = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


@dataclass(frozen=True)
class Ended:
    """How a step ended."""

    code: int | None
    """Its exit status; None: its time was up."""
    seconds: float
    output: str
    """What it printed, both streams together."""
    compiled: int
    """Kernels that came into Triton's cache meanwhile."""


def run(step: Step, seconds: float, log: Path, cache: Path = CACHE) -> Ended:
    """Run a step from the root of the repository, for so many seconds at most; again while it asks for it.

    Args:
        log: what it prints is appended to this file.
        cache: folder where Triton keeps its kernels, set because TorchInductor would move it: steps share them.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(cache), **step.environment}
    before, started = _kernels(cache), time.monotonic()
    code: int | None = GO_ON
    with log.open("ab") as file:
        file.write(f"\n===== {' '.join(step.command)}\n".encode())
        file.flush()
        offset = file.tell()
        while code == GO_ON and (left := seconds - (time.monotonic() - started)) > 0:
            command = [f"{0.9 * left:.0f}" if part == SECONDS else part for part in step.command]
            with _heard_interrupts():
                process = subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env={**os.environ, **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                code = _wait(process, left)
            finally:
                with suppress(ProcessLookupError):  # whatever it has started and left
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    output = log.read_bytes()[offset:].decode(errors="replace")
    return Ended(code, time.monotonic() - started, output, _kernels(cache) - before)


@contextmanager
def _heard_interrupts() -> Iterator[None]:
    """Processes started within can be asked to stop by SIGINT, also where this one ignores it.

    Shells ignore it for what a script starts in the background, and what is ignored stays so in a new program; what has
    a handler becomes the default again. In the main thread only.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    grace = min(GRACE, seconds / 4)
    try:
        return process.wait(seconds - grace)
    except subprocess.TimeoutExpired:
        # pytest then writes what it knows; its workers too must stop, or it would wait for them.
        os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    return None


def _kernels(cache: Path) -> int:
    return sum(1 for _ in cache.glob("*/*.cubin"))
