"""Every comparison as a benchmark of pytest: `attention-forward[lab-b8-bf16-sdpa_flash]`, one function for each group.

conftest.py has their parameters and the fixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.hardware import Peaks
from benchmarks.measuring import Measurement
from benchmarks.suites import GROUPS


def _function(group: str) -> Callable[..., None]:
    # A failed check is the test's own failure, not news of a fixture that was not used.
    @pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")
    def measured(job: Measurement, implementation: str, peaks: Peaks, benchmark: Any) -> None:
        job.run(implementation, benchmark, peaks)

    measured.__name__ = measured.__qualname__ = group
    measured.__test__ = True  # so pytest collects it under its own name
    return measured


globals().update({group: _function(group) for group in GROUPS})
