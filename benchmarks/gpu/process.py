"""Runs a step: a process group of its own, which ends with its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hardware import ROOT

GRACE = 5.0  # seconds, the last of a limit, in which a process that is asked to stop can write down what it has


CACHE = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """Its exit status; None: its time was up."""
    seconds: float
    output: str
    """What it printed, both streams together."""
    compiled: int
    """Kernels that came into Triton's cache meanwhile."""


def run(command: list[str], seconds: float, log: Path, environment: Mapping[str, str], cache: Path = CACHE) -> Ended:
    """Run `python COMMAND` from the root of the repository, for so many seconds at most.

    Args:
        log: what it prints is appended to this file.
        environment: variables to set on top of this process's.
        cache: folder where Triton keeps its kernels, set because TorchInductor would move it: steps share them.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(cache), **environment}
    before, started = _kernels(cache), time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n===== {' '.join(command)}\n".encode())
        file.flush()
        offset = file.tell()
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
            code = _wait(process, seconds)
        finally:
            with suppress(ProcessLookupError):  # whatever it has started and left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output = log.read_bytes()[offset:].decode(errors="replace")
    return Ended(code, time.monotonic() - started, output, _kernels(cache) - before)


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
