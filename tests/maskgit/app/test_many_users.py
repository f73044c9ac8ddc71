"""Several users at once, for a short time; `python -m tests.hostile.page` does it with 50 for two minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from maskgit.pipeline import MaskGIT

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured through /proc"),
]


def test_many_users(model: MaskGIT, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    pytest.importorskip("gradio", reason="needs the extra [app]")
    model.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "tests.hostile.page", "--users", "5", "--seconds", "5", "--model", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    filled = re.search(r"(\d+) pictures filled", done.stdout)
    assert filled
    record_property("pictures filled for 5 users at once", filled[1])
