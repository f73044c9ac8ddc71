"""The finished cells of all sweeps into a folder, in a file that only grows."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from maskgit.files import open_regular

LINE = b'{"key": {'
"""How every line of the ledger starts."""


class Ledger:
    """The finished cells, one line of JSON each, in a file that only grows.

    Args:
        path: made, with its folder, when the first cell is added.

    Raises:
        ValueError: the file has a line that is none of ours. A last line without its end, as a power cut or a full
            disk may leave it, counts as never written, and is removed.
        OSError: it can't be read, or mended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, float]] = {}
        data = b""
        if os.path.lexists(path):
            with open_regular(path) as file:
                data = file.read()
        *lines, last = data.split(b"\n")
        torn = bool(last) and LINE.startswith(last[: len(LINE)].rstrip(b"\0"))  # ours, or what a power cut made of it
        for at, line in enumerate([*lines, last] if last and not torn else lines, 1):
            try:
                cell = json.loads(line)
                figures = {str(name): float(figure) for name, figure in cell["figures"].items()}
                self.cells[self._key(cell["key"])] = figures
            except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {at}: not a finished cell; remove the line, or the file") from error
        if torn:  # only now is it known that the file is ours
            print(f"{path}: the last line is torn, and is removed; its cell is measured again", file=sys.stderr)
            os.truncate(path, len(data) - len(last))

    @staticmethod
    def _key(key: dict[str, Any]) -> str:
        return json.dumps(key, sort_keys=True)

    def __contains__(self, key: dict[str, Any]) -> bool:
        return self._key(key) in self.cells

    def __getitem__(self, key: dict[str, Any]) -> dict[str, float]:
        return self.cells[self._key(key)]

    def add(self, key: dict[str, Any], figures: dict[str, float]) -> None:
        """Keep a cell, for good: it is on the disk when this returns. Raises OSError if it can't be written."""
        line = (json.dumps({"key": key, "figures": figures}) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:  # unbuffered: nothing is left to be written after an error
            before, rest = file.tell(), memoryview(line)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(before)  # else half a line would run together with the next
                error.filename = os.fspath(self.path)
                raise
        self.cells[self._key(key)] = figures
