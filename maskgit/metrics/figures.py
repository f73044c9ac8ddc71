"""Reports of figures: the commands that make them, how figures are written, which model they belong to."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from maskgit.console import Options, run_command
from maskgit.pipeline import MaskGIT

ERRORS = (ImportError, OSError, RuntimeError, ValueError)
"""What measuring raises; they all say what to do."""


def run_measuring(
    options: type[Options],
    measure: Callable[[Options, str], None],
    argv: Sequence[str] | None,
    prog: str,
    interrupted: str,
) -> int:
    """`run_command`, for work that is told its command line too, which reports note."""
    argv = sys.argv[1:] if argv is None else argv
    command = shlex.join([*prog.split(), *argv])
    return run_command(
        options, lambda chosen: measure(chosen, command), argv, prog=prog, errors=ERRORS, interrupted=interrupted
    )


def spread(numbers: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (absent for a single number)."""
    deviation = {"std": statistics.stdev(numbers)} if len(numbers) > 1 else {}
    return {"mean": statistics.fmean(numbers), **deviation, "values": numbers}


def number(figure: dict[str, Any]) -> str:
    """A mean, with its standard deviation if there is one, to about four digits."""
    decimals = 2 if figure["mean"] < 100 else 1 if figure["mean"] < 1000 else 0
    return " ± ".join(f"{figure[key]:.{decimals}f}" for key in ("mean", "std") if key in figure)


def json_bytes(report: dict[str, Any]) -> bytes:
    """A report as a file for people too: indented, letters as they are."""
    return (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()


def weights_digest(model: MaskGIT) -> str:
    """SHA-256 of all weights: which model the figures belong to."""
    digest = hashlib.sha256()
    for module in (model.tokenizer, model.transformer):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
