"""What starts attention's kernels finds the fastest tiling. For what it remembers see test_launching.py."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
from triton.runtime.errors import OutOfResources

from maskgit_kernels.attention import launch
from maskgit_kernels.attention.tiling import Tiling


def test_the_fastest_tiling_that_fits_is_found(monkeypatch):
    tilings = [Tiling(block_m=rows) for rows in (16, 32, 64, 128)]
    started = []

    def start(tiling):
        started.append(tiling)
        if tiling.block_m == 128:
            raise OutOfResources(1, 0, "shared memory")

    def fake_clock(call, return_mode):
        call()
        assert return_mode == "median"
        return {16: 3.0, 32: 1.0, 64: 2.0}[started[-1].block_m]

    monkeypatch.setattr(triton.testing, "do_bench", fake_clock)
    assert launch._fastest(tilings, start) == Tiling(block_m=32)
    assert started == tilings
