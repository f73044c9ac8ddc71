"""The suites by name, and how one is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from benchmarks import (
    attention,
    autoregressive_baseline,
    decode_step,
    end_to_end,
    head_sample,
    lab_baseline,
    static_report,
    token_baseline,
    transformer,
)
from benchmarks.bench import Apart, ProcessBench
from benchmarks.harness import Maker
from benchmarks.report import Report, Row, duration, skipped
from benchmarks.setting import Setting
from benchmarks.turns import compare

Suite = Literal[
    "attention",
    "decode-step",
    "head-sample",
    "forward",
    "ceiling",
    "lab",
    "tokens",
    "autoregressive",
    "decoding",
    "inpaint",
    "training",
    "static",
]

SUITES: dict[Suite, Callable[[Setting], Iterator[Maker]]] = {
    "attention": attention.comparisons,
    "decode-step": decode_step.comparisons,
    "head-sample": head_sample.comparisons,
    "forward": transformer.forward_comparisons,
    "ceiling": transformer.ceiling_comparisons,
    "lab": lab_baseline.comparisons,
    "tokens": token_baseline.comparisons,
    "autoregressive": autoregressive_baseline.comparisons,
    "decoding": end_to_end.decoding_comparisons,
    "inpaint": end_to_end.inpaint_comparisons,
    "training": end_to_end.training_comparisons,
}
STATIC: Suite = "static"

# Time for each comparison of short calls, and the fewest rounds of any.
SECONDS, ROUNDS = 1.0, 4
QUICK_SECONDS, QUICK_ROUNDS = 0.0, 2


def measure(suite: Suite, setting: Setting, report: Report) -> None:
    """Run a suite and add its results to the report.

    Each comparison has a fresh process, so that its times don't depend on those before it: what they leave in the
    memory allocator decides how often a program has to ask the system for memory.
    """
    if suite == STATIC:
        with Apart() as process:
            report.static = process.run(static_report.measure, setting)
        print(report.static.to_markdown(), flush=True)
        return
    seconds, fewest = (QUICK_SECONDS, QUICK_ROUNDS) if report.quick else (SECONDS, ROUNDS)
    rows: list[Row] = []
    for make in SUITES[suite](setting):
        fresh = report.add(compare(make, setting.device, report.peaks, seconds, fewest, bench=ProcessBench))
        for row in fresh:
            if row.status != "skipped":
                print(f"    {row.implementation:<22} {_summary(row)}", flush=True)
        rows += fresh
    print("".join(f"  {line}\n" for line in skipped(rows)), end="", flush=True)


def _summary(row: Row) -> str:
    if row.status == "refused":
        return f"REFUSED: {row.reason}"
    floor = f"{row.of_floor:8.2f} x the floor" if row.of_floor else ""
    return f"{duration(row.p50):>9} {row.items / row.p50:9.4g} {row.item}s/s {row.speedup:7.2f} x{floor}"
