"""What `import maskgit` shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskgit

ROOT = Path(__file__).resolve().parents[2]


def test_names() -> None:
    assert (
        sorted(dir(maskgit)) == sorted(maskgit.__all__) == ["DecodeConfig", "InpaintResult", "MaskGIT", "__version__"]
    )
    assert all(hasattr(maskgit, name) for name in maskgit.__all__)


def test_the_version_has_one_source() -> None:
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == maskgit.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", maskgit.__version__)
