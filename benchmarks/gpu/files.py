"""JSON that is whole at every moment, and without names of the machine's owner."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.hardware import ROOT
from maskgit.files import write_atomically


def write(path: Path, value: Any) -> None:
    """Write JSON; a process that is killed meanwhile leaves the older file."""
    write_atomically({path: (clean(json.dumps(value, indent=1, ensure_ascii=False)) + "\n").encode()})


def read(path: Path) -> Any:
    """What a JSON file holds; None where there is none, or what is there is no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def clean(text: str) -> str:
    """The same without the paths and the host name of this machine, wherever they are in it."""
    folders = (f"{folder}{os.sep}" for folder in (ROOT, sys.prefix, Path.home()))
    for private in sorted(folders, key=len, reverse=True):  # one may lie in another
        if len(private) > 2:
            text = text.replace(private, "")
    host = platform.node()
    return text.replace(host, "HOST") if len(host) > 3 else text
