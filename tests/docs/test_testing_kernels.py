"""The test file that docs/testing-kernels.md offers: it passes as it is copied, and finds what it says it finds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "testing-kernels.md"
MISTAKEN = """
import os
import torch
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
import maskgit_kernels.{module} as operator
right = operator.{module}
def wrong(*arguments, **options):
    found = right(*arguments, **options)
    return {result}
operator.{module} = wrong
"""


def copied(folder: Path) -> Path:
    """The page's file, in a project of its own."""
    (text,) = re.findall(
        r"<!-- test_kernels\.py -->\n```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    (folder / "test_kernels.py").write_text(text)
    return folder


def run(folder: Path, what: str = ".") -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), what]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_passes_as_it_is(tmp_path: Path) -> None:
    done = run(copied(tmp_path))
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("module", "result", "failed"),
    [
        # The last row is never written.
        (
            "attention",
            "torch.cat([found[:, :, :-1], torch.empty_like(found[:, :, -1:])], 2)",
            "test_attention[16-dtype0]",
        ),
        # A part in a thousand too large, which a tolerance by feeling would let pass.
        ("attention", "found * 1.001", "test_attention[16-dtype0]"),
        ("decode_step", "(found[0], found[1].roll(1, 1))", "test_decode_step[greedy-prob]"),
    ],
)
def test_finds_mistakes(module: str, result: str, failed: str, tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "conftest.py").write_text(MISTAKEN.format(module=module, result=result))
    done = run(tmp_path, f"test_kernels.py::{failed}")
    assert done.returncode == 1 and f"FAILED test_kernels.py::{failed}" in done.stdout, done.stdout
