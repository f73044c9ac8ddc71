"""What starts kernels remembers compiled ones, but no wrong ones."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskgit_kernels.launching import cdiv, next_power_of_2

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("program", ["launches_without_gpu.py", "decoding_without_gpu.py"])
def test_the_compiled_kernel_that_triton_would_start_is_started(program):
    """Compiles kernels, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / program)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_whole_numbers():
    assert [cdiv(number, 4) for number in (1, 4, 5)] == [1, 1, 2]
    assert [next_power_of_2(number) for number in (1, 2, 3, 4, 5, 1024, 1025)] == [1, 2, 4, 4, 8, 1024, 2048]
