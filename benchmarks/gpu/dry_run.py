"""The plan, and the time that it takes on a GPU as far as can be told beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.steps import Step


def report(steps: Sequence[Step], minutes: float) -> str:
    """As text."""
    return "\n".join(f"{step.name:<12} {step.seconds:5.0f} s  {step.proves}" for step in steps)
