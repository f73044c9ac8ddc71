"""Measure the kernels, the models and the baselines; from a checkout of the repository.

    python -m benchmarks                                 # everything: most of an hour on a 2-core CPU
    python -m benchmarks --quick                         # shows that it runs: tiny shapes, about a minute
    python -m benchmarks --only decode-step lab          # some groups
    python -m benchmarks --compare outputs/benchmarks/OLD/results.json

This is the short way to `pytest benchmarks`, which has all options of pytest and pytest-benchmark. An implementation is
timed only if its result is right. Results go to OUTPUT/DEVICE-VERSION-DATE: results.json as pytest-benchmark writes it,
results.md with the ratios. docs/benchmarks.md explains the groups and the figures.

Exit status: 0; 1 if a result was wrong, a promised figure was missed or something has become slower; 2 for impossible
options.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import promises, static
from benchmarks.hardware import ROOT
from benchmarks.suites import FILE, GROUPS
from maskgit.console import BAD_USAGE, DONE, FAILED, INTERRUPTED, UsageError, run_command
from maskgit.machine import describe
from maskgit.pipeline import resolve_device

STATIC = "static"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    only: tuple[str, ...] = ()
    """Groups to run; by default all. attention-forward, attention-backward (both: attention), decode-step, head-sample,
    head-loss: the kernels. forward, ceiling: the transformer against plain eager code, and against bare matrix
    products. lab, tokens, autoregressive: against the loops of other people's programs. decoding, inpaint, training:
    what a user waits for. static: what is known without running, by counting and by compiling."""
    quick: bool = False
    """Tiny shapes and two rounds."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one."""
    output: Path = Path("outputs/benchmarks")
    """Folder in which each run gets one of its own."""
    compare: Path | None = None
    """results.json of an older run on the same machine: report what has become slower."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the groups; returns the exit status."""
    return run_command(Options, _run, arguments, prog="python -m benchmarks", description=__doc__)


def _run(options: Options) -> int:
    groups = _groups(options.only)
    old = None if options.compare is None else promises.load(options.compare)
    try:
        facts = describe(resolve_device(None if options.device == "auto" else options.device))
    except ValueError as error:
        raise UsageError(f"--device {options.device}: {error}") from error
    run = f"{facts['device']} torch {facts['torch']} {facts['date']}".lower()
    folder = options.output / re.sub(r"[^a-z0-9.]+", "-", run).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{name:>10}: {value}" for name, value in facts.items()))
    if "capability" not in facts:
        print("No GPU here: the PyTorch path is timed on the CPU, and no GPU figure exists.", flush=True)

    failures, slower = list[str](), list[str]()
    if measured := [group for group in groups if group != STATIC]:
        status = pytest.main(_arguments(options, folder, measured))
        if status in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR):
            return INTERRUPTED if status == pytest.ExitCode.INTERRUPTED else BAD_USAGE
        if status != pytest.ExitCode.OK:
            failures.append("some results are wrong: see the list of pytest above")
    if (path := folder / "results.json").exists():
        results = promises.load(path)
        title = "# A quick run: its times mean nothing" if options.quick else "# Ratios"
        lines = [title, "", promises.rates(results["peaks"]["products"]), "", *promises.table(promises.rows(results))]
        (folder / "results.md").write_text("\n".join(lines))
        slower = promises.regressions(old, results) if old else []
        for promise in promises.judge(results):
            print(f"  {'holds' if promise.holds else 'DOES NOT HOLD':>13}  {promise}")
            failures += [] if promise.holds else [str(promise)]
    if STATIC in groups:
        text, unfit = static.measure(options.quick)
        print(f"\n{text}")
        (folder / "static.md").write_text(f"{text}\n")
        failures += unfit
    print(f"\nResults: {folder}")
    for line in [*(f"FAILED  {line}" for line in failures), *(f"SLOWER  {line}" for line in slower)]:
        print(line, file=sys.stderr)
    return FAILED if failures or slower else DONE


def _groups(only: Sequence[str]) -> list[str]:
    """Those of these names, or with names that begin with one and a hyphen; all for none."""
    known, chosen = [*GROUPS, STATIC], list[str]()
    for name in only:
        found = [group for group in known if f"{group}-".startswith(f"{name}-")]
        if not found:
            raise UsageError(f"--only {name}: there are {', '.join(known)}")
        chosen += found
    return chosen or known


def _arguments(options: Options, folder: Path, groups: Sequence[str]) -> list[str]:
    """pytest's."""
    arguments = [f"{ROOT / FILE}::{group}" for group in groups]
    arguments += [
        f"--rootdir={ROOT}",
        f"--config-file={ROOT / 'pyproject.toml'}",
        "-p",
        "no:cacheprovider",
        "-v",
        "-rs",
    ]
    arguments += [f"--device={options.device}", f"--benchmark-json={folder / 'results.json'}"]
    arguments += [f"--benchmark-storage=file://{folder}", "--benchmark-columns=min,median,iqr,rounds"]
    arguments += [f"--benchmark-compare={options.compare}"] if options.compare else []
    return arguments + (["--quick"] if options.quick else [])


if __name__ == "__main__":
    sys.exit(main())
