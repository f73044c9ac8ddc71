"""What is known of the kernels without running them: what the eager chain launches and moves, and how ours compile."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.counting import count
from benchmarks.decode_step import CHAINS, Job, make_inputs, run_step
from benchmarks.hardware import short
from benchmarks.setting import Setting

# Of which a quick run compiles the kernels: one architecture, and of that the sampler only.
QUICK_OPTIONS = ["--capability", "90", "--kernel", "decode"]
CANNOT_COMPILE = 2  # exit status of maskgit_kernels.aot where there is no compiler


@dataclass
class Static:
    """The counts, and the reports of `python -m maskgit_kernels.aot`."""

    counts: list[dict[str, Any]] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""
    """Why there are no kernel reports; empty if there are."""
    broken: bool = False
    """Whether there should be some."""

    @property
    def failures(self) -> list[str]:
        """What no shipped kernel may have, in words."""
        faults = [
            f"{kernel['name']}, sm_{kernel['capability']}: {fault}"
            for kernel in self.kernels
            for fault in kernel["faults"]
        ]
        return faults + ([f"static: {self.missing}"] if self.broken else [])

    def to_markdown(self) -> str:
        """Both as tables."""
        lines = ["| chain | logits | launches | bytes moved per logit | least possible |", "|---|---|---|---|---|"]
        for row in self.counts:
            cells = row["chain"], row["logits"], row["launches"], f"{row['bytes']:.1f}", f"{row['least_bytes']:.1f}"
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
        if self.missing:
            lines.append(f"The kernels were not compiled: {self.missing}")
        else:
            lines.append(_kernel_table(self.kernels))
        return "\n".join(lines)


def measure(setting: Setting) -> Static:
    """Count the chains, and compile the kernels for architectures that need not be there."""
    static = Static(counts=list(_counts()))
    # Its own process: this one may have Triton set to interpret, or a GPU context that the compiler needn't share.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "maskgit_kernels.aot", "--json", *(QUICK_OPTIONS if setting.quick else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    try:
        static.kernels = json.loads(done.stdout)
    except json.JSONDecodeError:
        static.missing = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        static.broken = done.returncode != CANNOT_COMPILE
    return static


def _counts() -> Iterator[dict[str, Any]]:
    for guided in (False, True):
        for dtype in (torch.bfloat16, torch.float32):
            job = Job(4, 256, 1024, dtype, 1.0, guided)
            inputs = make_inputs(job, Setting(torch.device("cpu"), quick=False))
            for name, chain in CHAINS.items():
                counted = count(functools.partial(run_step, chain, inputs))
                logits = job.batch * job.tokens * job.codes
                yield {
                    "chain": name,
                    "logits": short(dtype) + (", guided" if guided else ""),
                    "launches": counted.launches,
                    "bytes": counted.bytes / logits,
                    "least_bytes": inputs.bytes / logits,
                }


def _kernel_table(kernels: list[dict[str, Any]]) -> str:
    from maskgit_kernels import aot

    rows: list[aot.Report | aot.Failure] = []
    for kernel in kernels:
        if "registers" in kernel:
            rows.append(aot.Report(**{name: value for name, value in kernel.items() if name != "faults"}))
        else:
            rows.append(aot.Failure(**kernel))
    return aot.table(rows)
