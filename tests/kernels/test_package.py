"""The package as a whole: what an import brings along, and that its modules can be imported by their names."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import maskgit_kernels

PACKAGE = Path(maskgit_kernels.__file__).parent
MODULES = sorted(
    ".".join(("maskgit_kernels", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
MOST_LINES = 400


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_imported_by_its_name(name: str) -> None:
    """No function of the same name stands in the way, as `import a.b.c as m` would find."""
    pytest.importorskip("triton")
    module = importlib.import_module(name)
    found: dict[str, object] = {}
    exec(f"import {name} as module", found)
    assert found["module"] is module


def test_operators_are_imported_without_triton() -> None:
    operators = "from maskgit_kernels.{0} import {0}"
    lines = [operators.format(name) for name in ("attention", "decode_step", "head_sample", "head_loss")]
    program = "; ".join(["import sys", *lines, "assert 'triton' not in sys.modules"])
    subprocess.run([sys.executable, "-c", program], check=True)


def test_files_can_be_read_from_top_to_bottom() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
