"""What the tests of this room share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maskgit.pipeline import MaskGIT

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that tests share

from tiny_pipeline import tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def model() -> MaskGIT:
    return tiny_model()
