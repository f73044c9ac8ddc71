"""Freed memory stays with the process."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from maskgit.memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (3, 50, 7, 90):
        torch.ones(megabytes * 2**20, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> int:
    """Pages that the system hands out when the same memory is asked for again: the median of nine times.

    Not of one: anything small that is allocated in between can make one time need new pages.
    """
    settings = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    command = [sys.executable, "-c", FAULTS, *arguments]
    told = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout
    return statistics.median_low(int(line) for line in told.splitlines())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is left as it is")
def test_pages_are_asked_for_once() -> None:
    pages = 150 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults() > pages / 4  # or the test shows nothing
    assert faults("keep") < pages / 100
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000000") > pages / 4  # whoever says so has the last word
