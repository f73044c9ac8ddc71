"""All comparisons, by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import attention
from benchmarks.harness import Comparison
from benchmarks.setting import Setting

SUITES: dict[str, Callable[[Setting], Iterator[Comparison]]] = {
    "attention-forward": attention.comparisons,
    "attention-backward": attention.comparisons,
}
"""By the group of the comparisons that each makes."""


def comparisons(group: str, setting: Setting) -> list[Comparison]:
    """Of one group."""
    return [comparison for comparison in SUITES[group](setting) if comparison.group == group]
