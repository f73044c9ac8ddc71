"""The rooms of the package: who imports whom, and what an import of the package brings along."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskgit

PACKAGE = Path(maskgit.__file__).parent
DEEPEST = 8
MOST_LINES = 400
# Above which files of these rooms must not reach: every import of a room of the list goes to one further down.
FLOORS = [
    {"app", "cli"},
    {"training", "sweep"},
    {"metrics"},
    {"pictures"},
    {"pipeline", "convert"},
    {"data", "network"},
    {"tokenizer", "decoding", "canvas"},
    {"config", "console", "files", "machine", "memory", "threads"},
    {"helptext"},
]


@functools.cache
def modules() -> dict[str, Path]:
    """Each module's name and file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("maskgit", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package, wherever in the file it does."""
    return {name: _imports(path) - {name} for name, path in modules().items()}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which this test doesn't follow"
            names = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if name in modules() else node.module or "" for name in names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found & set(modules())


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def depth(node: str, below: dict[str, set[str]], path: tuple[str, ...] = ()) -> int:
    """Length of the longest chain of imports from a node down."""
    assert node not in path, f"a circle: {' -> '.join((*path[path.index(node) :], node))}"
    return 1 + max((depth(other, below, (*path, node)) for other in below[node]), default=0)


def test_imports_between_rooms_go_down() -> None:
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    for module, imported in imports().items():
        for other in imported:
            if room(module) and room(module) != room(other):  # the package itself shows what is inside
                assert floors[room(module)] < floors[room(other)], f"{module} imports {other}"


def test_rooms_are_at_most_eight_deep() -> None:
    rooms: dict[str, set[str]] = {room(module): set() for module in modules() if room(module)}
    for module, imported in imports().items():
        if room(module):
            rooms[room(module)] |= {room(other) for other in imported} - {room(module), ""}
    assert max(depth(name, rooms) for name in rooms) <= DEEPEST


def test_no_circle_of_modules() -> None:
    below = {name: {other for other in imported if other != "maskgit"} for name, imported in imports().items()}
    for name in below:
        depth(name, below)


def test_the_package_stands_without_the_repository() -> None:
    """What is installed imports nothing that isn't."""
    for name, path in modules().items():
        assert not re.search(r"^\s*(from|import) (benchmarks|tests)\b", path.read_text(), re.MULTILINE), name


def test_every_room_says_what_it_is_for() -> None:
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"


@pytest.mark.parametrize("package", ["maskgit", "benchmarks"])
def test_files_can_be_read_in_one_sitting(package: str) -> None:
    long = {
        str(path.relative_to(PACKAGE.parent)): lines
        for path in (PACKAGE.parent / package).rglob("*.py")
        if (lines := path.read_text().count("\n")) > MOST_LINES
    }
    assert not long


def test_an_import_brings_no_heavy_package_along() -> None:
    heavy = {"triton", "gradio", "matplotlib", "torchmetrics", "accelerate", "scipy", "torchvision", "tyro"}
    code = f"import maskgit, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
