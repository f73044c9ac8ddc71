"""The suites by name, and how one is run."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Literal

import torch

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
from benchmarks.clock import Clock
from benchmarks.harness import Comparison, compare
from benchmarks.report import Report, Row, duration, skipped
from benchmarks.setting import Setting
from maskgit_kernels import backend

Suite = Literal[
    "attention",
    "decode-step",
    "head-sample",
    "forward",
    "ceiling",
    "lab",
    "tokens",
    "autoregressive",
    "inpaint",
    "training",
    "static",
]

SUITES: dict[Suite, Callable[[Setting], Iterator[Comparison]]] = {
    "attention": attention.comparisons,
    "decode-step": decode_step.comparisons,
    "head-sample": head_sample.comparisons,
    "forward": transformer.forward_comparisons,
    "ceiling": transformer.ceiling_comparisons,
    "lab": lab_baseline.comparisons,
    "tokens": token_baseline.comparisons,
    "autoregressive": autoregressive_baseline.comparisons,
    "inpaint": end_to_end.inpaint_comparisons,
    "training": end_to_end.training_comparisons,
}
STATIC: Suite = "static"

# Time for each comparison of short calls, and the fewest rounds of any.
SECONDS, ROUNDS = 1.0, 4
QUICK_SECONDS, QUICK_ROUNDS = 0.0, 2


def measure_apart(suite: Suite, setting: Setting, report: Report) -> Report:
    """Run a suite; returns the report with its results.

    In a process of its own, so that a suite's times don't depend on those before it.

    What they leave in the memory allocator decides how often a program has to ask the system for memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, suite, setting, report).result()


def _measure(suite: Suite, setting: Setting, report: Report) -> Report:
    backend.use("auto")  # whatever MASKGIT_KERNELS says: the suites choose
    if suite == STATIC:
        report.static = static_report.measure(setting)
        print(report.static.to_markdown(), flush=True)
    else:
        torch.manual_seed(0)
        _run(SUITES[suite](setting), report, Clock(setting.device))
    return report


def _run(comparisons: Iterator[Comparison], report: Report, clock: Clock) -> None:
    seconds, fewest = (QUICK_SECONDS, QUICK_ROUNDS) if report.quick else (SECONDS, ROUNDS)
    rows: list[Row] = []
    for comparison in comparisons:
        print(f"  {comparison.name}", flush=True)
        fresh = report.add(compare(comparison, clock, report.peaks, seconds, fewest))
        for row in fresh:
            if row.status != "skipped":
                print(f"    {row.implementation:<22} {_summary(row)}", flush=True)
        rows += fresh
        gc.collect()  # the models of one comparison before those of the next
    print("".join(f"  {line}\n" for line in skipped(rows)), end="", flush=True)


def _summary(row: Row) -> str:
    if row.status == "refused":
        return f"REFUSED: {row.reason}"
    floor = f"{row.of_floor:8.2f} x the floor" if row.of_floor else ""
    return f"{duration(row.p50):>9} {row.items / row.p50:9.4g} {row.item}s/s {row.speedup:7.2f} x{floor}"
