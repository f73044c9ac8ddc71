"""Comparisons, carried out: each implementation is verified first, then they are timed in turn.

The order A, B, A, B, ... makes a change in the machine's speed (another process, a clock that drops) hit all alike, and
a ratio is taken within each round before the median over the rounds. What fails its check is refused, never timed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch

from benchmarks.bench import Bench, Verdict
from benchmarks.clock import SHORT, Pace, pause_for
from benchmarks.hardware import Peaks
from benchmarks.harness import Comparison, Maker, Timing

FEWEST_ROUNDS, MOST_ROUNDS = 5, 50


@dataclass
class Outcome:
    """What became of a comparison."""

    comparison: Comparison
    """Without its cases."""
    timings: dict[str, Timing]
    refused: dict[str, str]
    """Implementations whose results are wrong, and how."""
    skipped: dict[str, str]
    """Implementations that do not exist here, and why."""
    floor: float | None
    """Seconds that the hardware needs at least; None where nothing was counted."""


def compare(
    make: Maker,
    device: torch.device,
    peaks: Peaks,
    seconds: float,
    fewest: int = FEWEST_ROUNDS,
    *,
    bench: Callable[[], AbstractContextManager[Bench]],
) -> Outcome:
    """Verify, then time, in `seconds` or in `fewest` rounds if those take longer.

    Args:
        make: what to compare.
        device: whose clock to use.
        peaks: of the device.
        bench: makes a place for implementations to run in.
    """
    with ExitStack() as stack:
        first = stack.enter_context(bench())
        comparison, flops = first.make(make, device)
        print(f"  {comparison.name}", flush=True)
        outcome = Outcome(comparison, {}, {}, dict(comparison.left_out), None)
        if comparison.bytes or comparison.flops:
            outcome.floor = peaks.floor(comparison.bytes, comparison.flops, comparison.dtype)

        apart = comparison.apart and device.type == "cpu"  # a GPU's memory is kept by PyTorch anyway, and scarcer
        benches: dict[str, Bench] = {}
        verdicts: dict[str, Verdict] = {}
        for names in [[name] for name in flops] if apart else [list(flops)]:
            place = first
            if benches:
                place = stack.enter_context(bench())
                place.make(make, device)
            for name, verdict in place.prepare(names).items():
                if verdict.status == "good":
                    benches[name], verdicts[name] = place, verdict
                else:
                    (outcome.refused if verdict.status == "refused" else outcome.skipped)[name] = verdict.reason

        paces, rounds = dict.fromkeys(benches, Pace(calls=1, pause=0.0, seconds=0.0)), comparison.rounds
        if rounds is None:
            pauses = dict.fromkeys(benches, 0.0)
            if device.type == "cuda":
                pauses = {name: pause_for(verdicts[name].host_seconds) for name in benches}
            # Behind a pause: a kernel whose host is slow would pass for a long one.
            once = {name: place.time(name, 1, pauses[name]) for name, place in benches.items()}
            short = min(once.values(), default=SHORT) < SHORT
            paces = {name: place.pace(once[name], pauses[name] if short else 0.0) for name, place in benches.items()}
            round_seconds = sum(pace.seconds for pace in paces.values())
            rounds = max(fewest, min(MOST_ROUNDS, round(seconds / max(round_seconds, 1e-9))))
        samples: dict[str, list[float]] = {name: [] for name in benches}
        for _ in range(rounds):
            for name, place in benches.items():
                samples[name].append(place.time(name, paces[name].calls, paces[name].pause))
    for name, own in flops.items():
        if name in benches:
            counted = comparison.flops if own is None else own
            outcome.timings[name] = Timing(
                samples[name], paces[name].calls, verdicts[name].peak_bytes, counted, verdicts[name].host_seconds
            )
    return outcome
