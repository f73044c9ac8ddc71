"""Writing files so that nobody ever meets half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Write several files, so that each path holds at any time its old content or all of the new one.

    All of them are on the disk under temporary names before the first takes its place; then they are moved in the
    order given. Folders are made where missing.

    Raises:
        OSError: a file can't be written; what was not moved yet is removed.
    """
    temporary: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Same folder, so that the move stays on one file system; hidden, so that no reader of folders picks it up.
            name = path.with_name(f".tmp-{secrets.token_hex(8)}")
            temporary[name] = path
            with open(name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name, path in temporary.items():
            os.replace(name, path)
    finally:
        for name in temporary:
            name.unlink(missing_ok=True)
