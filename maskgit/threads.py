"""How PyTorch's threads wait for each other: briefly in this package's commands, so that a machine can be shared."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

SPINS = 1000
"""How often a thread looks at what it waits for before it goes to sleep."""

_SAID = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

_ROOT = Path(__file__).resolve().parent.parent
_SCRIPTS = [_ROOT / "inpaint.py", _ROOT / "train.py"]
_INSTALLED = ("maskgit-inpaint", "maskgit-train")


def wait_briefly_in_commands() -> None:
    """Let OpenMP's threads sleep soon while they wait: in this package's commands, on a busy machine.

    A thread that has done its part of an operation waits for the others. GNU's OpenMP, which PyTorch for Linux comes
    with, first spins for long: where another program has the core of a thread that is waited for, spinning
    keeps just that thread from running. It reads its settings when it is loaded, so this has to come before PyTorch.
    Where nothing else runs at that moment, spinning is faster, and stays. So do programs that import the package.
    """
    if is_own_command(sys.argv, sys.orig_argv) and not any(name in os.environ for name in _SAID) and others_run():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def others_run(loads: Path = Path("/proc/loadavg")) -> bool:
    """Whether another thread of the machine runs, or waits for a core, just now; False where Linux doesn't say."""
    try:
        running = loads.read_text().split()[3].partition("/")[0]
        return int(running) > 1  # of which this is one
    except (OSError, ValueError, IndexError):
        return False


def is_own_command(argv: Sequence[str], started: Sequence[str]) -> bool:
    """Whether a process was started as one of this package's commands, rather than as a program that imports it.

    Args:
        argv: `sys.argv`, of which the first is "-m" as long as Python looks for the module to run.
        started: `sys.orig_argv`, all words that Python was started with.
    """
    if not argv:  # Python inside another program
        return False
    if argv[0] == "-m":
        return any(re.match(r"(-m)?maskgit\.", word) for word in started)
    return Path(argv[0]).stem in _INSTALLED or Path(argv[0]).resolve() in _SCRIPTS
