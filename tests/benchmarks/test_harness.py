"""Verified first, timed in turn, and counted right."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks.bench import LocalBench, ProcessBench
from benchmarks.clock import MOST_CALLS, SAMPLE_SECONDS, Clock
from benchmarks.counting import count
from benchmarks.hardware import Peaks, describe, products
from benchmarks.harness import Case, Comparison, Timing, WrongResultError, speedup
from benchmarks.turns import compare

CPU = torch.device("cpu")
PEAKS = Peaks(copies={1000: 10.0, 4000: 5.0}, products={"float32 torch.mm": 100.0, "float32 oneDNN packed": 200.0})


def local() -> AbstractContextManager[LocalBench]:
    return nullcontext(LocalBench())


def fine() -> None:
    """A check that passes."""


def fails(error: Exception) -> Callable[[], None]:
    def verify() -> None:
        raise error

    return verify


def test_only_what_is_right_is_timed() -> None:
    calls: list[str] = []
    cases = [
        Case("a", lambda: calls.append("a"), fine),
        Case("wrong", lambda: calls.append("wrong"), fails(WrongResultError("off by 3"))),
        Case("crashes", lambda: calls.append("crashes"), fails(RuntimeError("no\nkernel"))),
        Case("foreign", lambda: calls.append("foreign"), fails(RuntimeError("no kernel here\n...")), optional=True),
        Case("b", lambda: calls.append("b"), fine),
    ]
    job = Comparison("suite", "job", cases, "a", rounds=3, left_out={"other": "not here"})
    outcome = compare(lambda: job, CPU, PEAKS, seconds=0, bench=local)
    assert calls == ["a", "b"] * 3  # in turn
    assert outcome.refused == {"wrong": "off by 3", "crashes": "no"}
    assert outcome.skipped == {"other": "not here", "foreign": "no kernel here"}
    assert {name: len(timing.seconds) for name, timing in outcome.timings.items()} == {"a": 3, "b": 3}


class Process:
    """A case of the test below: notes the process that it runs in, and what was made there."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.started = folder, name, False

    def start(self) -> None:
        self.started = True

    def __call__(self) -> None:
        assert self.started
        (self.folder / f"{self.name} {os.getpid()} {time.perf_counter_ns()}").touch()


def make_processes(folder: Path, apart: bool) -> Comparison:
    cases = [Case(name, process := Process(folder, name), process, start=process.start) for name in ("a", "b")]
    return Comparison("suite", "job", cases, "a", rounds=3, apart=apart, warm_up=1)


@pytest.mark.parametrize("apart", [False, True])
def test_a_comparison_has_fresh_processes(apart: bool, tmp_path: Path) -> None:
    make = functools.partial(make_processes, tmp_path, apart)
    outcome = compare(make, CPU, PEAKS, seconds=0, bench=ProcessBench)
    assert set(outcome.timings) == {"a", "b"} and not outcome.refused
    calls = sorted((path.name.split() for path in tmp_path.iterdir()), key=lambda call: int(call[2]))
    assert [name for name, *_ in calls][-6:] == ["a", "b"] * 3 and len(calls) == 2 * 5  # in turn; checked, warmed up
    processes = {process for _, process, _ in calls}
    assert len(processes) == (2 if apart else 1) and str(os.getpid()) not in processes


def make_one_that_dies() -> Comparison:
    cases = [Case("a", fine, fine), Case("dies", fine, functools.partial(os._exit, 1)), Case("b", fine, fine)]
    return Comparison("suite", "job", cases, "a", rounds=2, apart=True)


def test_a_process_that_dies_costs_its_own_figure_only() -> None:
    outcome = compare(make_one_that_dies, CPU, PEAKS, seconds=0, bench=ProcessBench)
    assert set(outcome.timings) == {"a", "b"}
    assert outcome.refused == {"dies": "its process died; was there too little memory?"}


def test_short_calls_are_repeated_and_take_the_given_time() -> None:
    cases = [Case("sleep", lambda: time.sleep(0.002), fine), Case("nothing", lambda: None, fine)]
    job = Comparison("suite", "job", cases, "nothing")
    started = time.perf_counter()
    outcome = compare(lambda: job, CPU, PEAKS, seconds=0.2, fewest=2, bench=local)
    assert time.perf_counter() - started >= 0.1
    sleep, nothing = outcome.timings["sleep"], outcome.timings["nothing"]
    assert len(sleep.seconds) == len(nothing.seconds) >= 2
    assert 1 <= sleep.calls < nothing.calls <= MOST_CALLS
    assert sleep.median >= 0.002 > nothing.median
    assert speedup(outcome.timings, "nothing", "sleep") > 10


def test_calls_fill_a_sample() -> None:
    assert Clock.calls(10 * SAMPLE_SECONDS) == 1
    assert Clock.calls(SAMPLE_SECONDS / 8) == 8
    assert Clock.calls(0.0) == MOST_CALLS


def test_a_speedup_is_taken_within_each_round() -> None:
    # The machine was five times slower in the last round: the ratio of the means would be 4.6.
    timings = {"slow": Timing([2.0, 2.2, 50.0], 1), "fast": Timing([1.0, 1.1, 10.0], 1)}
    assert speedup(timings, "fast", "slow") == pytest.approx(2.0)
    assert speedup(timings, "slow", "slow") == 1.0


def test_a_speedup_of_unequal_work_is_one_of_rates() -> None:
    timings = {"small": Timing([1.0], 1, flops=10), "large": Timing([4.0], 1, flops=80)}
    assert speedup(timings, "large", "small") == pytest.approx(2.0)


def test_percentiles() -> None:
    timing = Timing([5.0, 1.0, 3.0, 2.0, 4.0, 6.0], 1)
    assert (timing.percentile(20), timing.median, timing.percentile(80)) == (2.0, 3.5, 5.0)


def test_floor_is_the_slower_of_copying_and_multiplying() -> None:
    assert PEAKS.floor(500, 0, torch.float32) == 50  # a copy of a buffer of 1000 bytes moves 2000
    assert PEAKS.floor(3000, 0, torch.float32) == 600
    assert PEAKS.floor(1e6, 0, torch.float32) == 2e5  # larger than any copy: the largest one's rate
    assert PEAKS.floor(500, 2e4, torch.float32) == 100  # at the faster of the two products
    with pytest.raises(ValueError):
        PEAKS.floor(500, 1, torch.float16)  # not measured


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_stands_for_the_ceiling_is_a_matrix_product(dtype: torch.dtype) -> None:
    results = [product().float() for product in products((33, 40, 24), dtype, CPU).values()]
    assert results[0].shape == (33, 24)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=2**-7, atol=0.05)


def test_description_names_what_a_result_depends_on() -> None:
    facts = describe(CPU)
    assert facts["device"] == facts["cpu"] and facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert {"revision", "date", "triton", "python", "cores"} <= facts.keys()


def test_counting() -> None:
    x, row = torch.rand(8, 4), torch.rand(8)

    def work() -> torch.Tensor:
        y = x + row[:, None].expand(8, 4)  # 128 bytes, the row's 32 once, and 128 for the result
        y.mul_(2)  # read and written: 256
        z = torch.rand_like(y)  # nothing is read: 128
        positive = y.view(-1)[:8] > 0  # 32 and, as booleans, 8
        return torch.where(positive, z.flatten()[:8], row)  # 8, 32, 32 and 32

    assert count(work) == (5, 288 + 256 + 128 + 40 + 104)


def test_a_gather_reads_what_it_gives_out() -> None:
    x, index = torch.rand(8, 100), torch.randint(100, (8, 1))
    assert count(lambda: x.gather(1, index)) == (1, 8 * 4 + 8 * 8 + 8 * 4)


def test_views_cost_nothing() -> None:
    x = torch.rand(6, 4)
    assert count(lambda: x.t().reshape(1, 4, 6).unbind(1)) == (0, 0)
    assert count(lambda: torch.empty(5)) == (0, 0)
