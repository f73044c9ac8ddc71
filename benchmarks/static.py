"""What is known without running it: what the eager chain and a training step launch, and how our kernels compile."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.counting import count
from benchmarks.hardware import label
from benchmarks.sampling import CHAINS, Job, make_inputs, run_step
from benchmarks.setting import Setting
from benchmarks.training_step import count_step
from maskgit.config import preset
from maskgit.console import markdown_table

# Of which a quick run compiles the kernels: one architecture, and of that the sampler only.
QUICK_OPTIONS = ["--capability", "90", "--kernel", "decode"]
STEPS = (("embedded", 128, 0.0), ("embedded", 128, 4.0), ("lab", 128, 0.0), ("maskgit-256", 64, 0.0))
STEP_HEAD = [
    *("training step, bf16", "launches", "both passes", "AdamW", "masks, clipping, Muon, average, counts"),
    *("casts in the passes", "their share of the bytes"),
]
CANNOT_COMPILE = 2  # exit status of benchmarks.compiled where there is no compiler


def measure(quick: bool) -> tuple[str, list[str]]:
    """Count the chains and training steps, and compile the kernels for architectures that need not be there.

    Returns:
        All as Markdown, and in words what no shipped kernel may have.
    """
    head = ["chain", "logits", "launches", "bytes moved per logit", "least possible"]
    counts = [
        [chain, logits, str(launches), f"{moved:.1f}", f"{least:.1f}"]
        for chain, logits, launches, moved, least in chain_counts()
    ]
    steps = markdown_table(STEP_HEAD, list(step_counts(STEPS[:1] if quick else STEPS)))
    kernels, missing, broken = _compile(quick)
    faults = [
        f"{kernel['name']}, sm_{kernel['capability']}: {fault}" for kernel in kernels for fault in kernel["faults"]
    ]
    compiled = f"The kernels were not compiled: {missing}" if missing else _kernel_table(kernels)
    failures = faults + ([f"static: {missing}"] if broken else [])
    return "\n".join([*markdown_table(head, counts), *steps, compiled]), failures


def _compile(quick: bool) -> tuple[list[dict[str, Any]], str, bool]:
    """The reports of `python -m benchmarks.compiled`, why there are none, and whether there should be some."""
    # Its own process: this one may have Triton set to interpret, or a GPU context that the compiler needn't share.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled", "--json", *(QUICK_OPTIONS if quick else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    try:
        return json.loads(done.stdout), "", False
    except json.JSONDecodeError:
        missing = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return [], missing, done.returncode != CANNOT_COMPILE


def chain_counts() -> Iterator[tuple[str, str, int, float, float]]:
    """Chain, its logits, its launches, the bytes that it moves per logit, and those that have to move."""
    for guided in (False, True):
        for dtype in (torch.bfloat16, torch.float32):
            job = Job(4, 256, 1024, dtype, 1.0, guided)
            inputs, logits = make_inputs(job, Setting(torch.device("cpu"), quick=False)), job.rows * job.codes
            for name, chain in CHAINS.items():
                counted = count(functools.partial(run_step, chain, inputs))
                which = label(dtype) + (", guided" if guided else "")
                yield name, which, counted.launches, counted.bytes / logits, job.bytes / logits


def step_counts(steps: Sequence[tuple[str, int, float]]) -> Iterator[list[str]]:
    """What training steps in bf16 launch, each of a preset, a batch and `--muon`: the columns of STEP_HEAD."""
    for name, batch, muon in steps:
        counts = count_step(preset(name).transformer, batch, muon)
        passes = counts["passes"]
        parts = [counts[part].launches for part in ("passes", "optimizer", "the rest")]
        yield [
            f"`{name}`, batch {batch}" + (f", `--muon {muon:g}`" if muon else ""),
            *map(str, [sum(parts), *parts, passes.casts]),
            f"{passes.cast_bytes / passes.bytes:.0%}",
        ]


def _kernel_table(kernels: list[dict[str, Any]]) -> str:
    from benchmarks.compiled import command

    rows: list[command.Report | command.Failure] = []
    for kernel in kernels:
        if "registers" in kernel:
            rows.append(command.Report(**{name: value for name, value in kernel.items() if name != "faults"}))
        else:
            rows.append(command.Failure(**kernel))
    return command.table(rows)
