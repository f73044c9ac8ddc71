"""The systems that checkpoints come from, and a folder with a tiny tokenizer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from maskgit.network.folder import save_tokenizer
from maskgit.tokenizer import VQGAN


@pytest.fixture(scope="session")
def originals() -> ModuleType:
    """The package beside this file, which pytest's import mode keeps off the path."""
    spec = importlib.util.spec_from_file_location("originals", Path(__file__).parent / "originals/__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["originals"] = module  # where its own modules look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tokenizer_folder(tiny_tokenizer: VQGAN, tmp_path: Path) -> Path:
    """A model folder with a tokenizer of 16 codes, 4x4 pixels a token."""
    folder = tmp_path / "tokenizer"
    save_tokenizer(folder, tiny_tokenizer)
    return folder
