"""A short run of hostile inputs: those that failed once, and some random ones of each group."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INPUTS, SECONDS = 15, 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are watched through /proc"),
]


def test_hostile_inputs(record_property: Callable[[str, object], None], tmp_path: Path) -> None:
    """In a process of its own: forked are only processes that have no threads and hold no GPU."""
    words = ["--inputs", str(INPUTS), "--seconds", str(SECONDS)]
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))),
    }
    command = [sys.executable, "-m", "tests.hostile", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    total = re.search(r"^\| all \| ([\d,]+) \|", done.stdout, re.M)
    assert total, done.stderr
    record_property("hostile inputs", total[1])
    assert done.returncode == 0, f"\n{done.stdout}"
