"""All comparisons, by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import attention, autoregressive, end_to_end, head_loss, loops, sampling, transformer
from benchmarks.harness import Comparison
from benchmarks.setting import Setting

GROUPS: dict[str, Callable[[Setting], Iterator[Comparison]]] = {
    "attention-forward": attention.forward_comparisons,
    "attention-backward": attention.backward_comparisons,
    "decode-step": sampling.step_comparisons,
    "head-sample": sampling.head_comparisons,
    "head-loss": head_loss.comparisons,
    "forward": transformer.forward_comparisons,
    "ceiling": transformer.ceiling_comparisons,
    "lab": loops.lab_comparisons,
    "tokens": loops.token_comparisons,
    "autoregressive": autoregressive.comparisons,
    "decoding": end_to_end.decoding_comparisons,
    "inpaint": end_to_end.inpaint_comparisons,
    "training": end_to_end.training_comparisons,
}

FILE = "benchmarks/test_suites.py"


def node_ids(comparison: Comparison) -> dict[str, str]:
    """What pytest calls each implementation that can be timed here, as its command line takes it."""
    names = [name for name, why_not in comparison.implementations.items() if not why_not]
    return {name: f"{FILE}::{comparison.group}[{comparison.name}-{name}]" for name in names}
