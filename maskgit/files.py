"""Files: reading only what is one, writing so that nobody ever meets half of one, and seeing what would be replaced."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SAMPLES = Path(__file__).parent / "assets" / "samples"
"""The folder of images that commands take where none are given."""
EMBEDDED = Path(__file__).parent / "assets" / "embedded"
"""The model folder that ships with the package."""

# --- reading ----------------------------------------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a link to one, to read its bytes.

    Raises OSError: it can't be opened, or is something else, such as a named pipe, where `open` would wait for a
    writer, or a device, which may never end.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file but a pipe or a device", os.fspath(path))
    return file


# --- writing ----------------------------------------------------------------------------------------------------------


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Write several files, so that each path holds at any time its old content or all of the new one.

    All of them are on the disk under temporary names before the first takes its place; then they are moved in the
    order given. Folders are made where missing. What killed processes have left in them under temporary names goes
    (but on Windows); that a writer lives is told by its lock, so it takes a file system with locks.

    Raises OSError: a file can't be written; what was not moved yet is removed.
    """
    temporary: dict[Path, Path] = {}
    with contextlib.ExitStack() as open_files:  # for as long as they are open, they are locked
        try:
            for path, data in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                _sweep(path.parent.absolute())
                file = open_files.enter_context(_create(path.parent))
                temporary[Path(file.name)] = path
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                if fcntl is None:  # Windows moves no open file
                    file.close()
            for name, path in temporary.items():
                os.replace(name, path)
        finally:
            for name in temporary:
                name.unlink(missing_ok=True)


def _create(folder: Path) -> BinaryIO:
    """A new file with a temporary name, locked."""
    while True:
        # In the folder of its target, so that the move stays on one file system; hidden, so that no reader of folders
        # picks it up.
        file = open(folder / f".tmp-{secrets.token_hex(8)}", "xb")
        if fcntl is not None:
            with contextlib.suppress(OSError):  # no locks here; then `_sweep` gets none either, and removes nothing
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):
            return file
        file.close()  # a sweep came between creating and locking


@functools.cache  # a folder may have very many files, so it is looked through once
def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers that are dead."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(r"\.tmp-[0-9a-f]{16}", entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError), open(entry, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a writer that lives holds it
                    os.unlink(entry)


# --- what would be replaced -------------------------------------------------------------------------------------------


def find_replaced(results: Iterable[Path], originals: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Which results would take the place of an original, however their paths are written.

    Two paths are of one file if they lead to it through links, as hard links, in relative forms, or in another case on
    a disk that is blind to it. Returns pairs of a result, which need not exist, and the original that it is, in the
    order of the results.
    """
    existing = [path for path in results if os.path.lexists(path)]
    if not existing:
        return []
    known = {key: path for path in originals for key in _identity(path)}
    found = ((path, next((known[key] for key in _identity(path) if key in known), None)) for path in existing)
    return [(result, original) for result, original in found if original is not None]


def _identity(path: Path) -> list[object]:
    """What a file is known by: its place, and its number on its disk, where disks have numbers."""
    keys: list[object] = [os.path.normcase(os.path.realpath(path))]
    with contextlib.suppress(OSError):  # a link that leads nowhere
        status = os.stat(path)
        if status.st_ino:
            keys.append((status.st_dev, status.st_ino))
    return keys
