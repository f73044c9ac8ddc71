"""What the profiler that measures memory prints: nothing."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks import hardware


def test_the_profiler_of_memory_is_silent() -> None:
    code = """
import torch
from benchmarks.bench import _peak_bytes_on_cpu
print(_peak_bytes_on_cpu(lambda: torch.ones(2**20, dtype=torch.uint8)))
"""
    env = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=hardware.ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and int(done.stdout) >= 2**20
