"""Verified first, timed in turn, and counted right."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import hardware
from benchmarks.bench import LocalBench, ProcessBench, Verdict
from benchmarks.clock import CYCLES_PER_SECOND, MOST_CALLS, MOST_GPU_CALLS, SAMPLE_SECONDS, Clock, Pace
from benchmarks.counting import count
from benchmarks.hardware import Peaks, describe, measure_peaks, products
from benchmarks.harness import Case, Comparison, Maker, Timing, WrongResultError, speedup
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
    clock = Clock(CPU)
    assert clock.pace(10 * SAMPLE_SECONDS, pause=0.0) == (1, 0.0, 10 * SAMPLE_SECONDS)
    assert clock.pace(SAMPLE_SECONDS / 8, pause=0.0) == (8, 0.0, SAMPLE_SECONDS)
    assert clock.pace(0.0, pause=0.0).calls == MOST_CALLS


class FakeGpu:
    """Keeps the time of a GPU and of a host whose calls queue up on it, in seconds."""

    def __init__(self, kernel: float, launch: float, flush: float) -> None:
        self.kernel, self.launch, self.host, self.free = kernel, launch, 0.0, 0.0
        self.flush_seconds, self.marks = flush, list[float]()

    def queue(self, seconds: float) -> None:
        self.free = max(self.free, self.host) + seconds

    def call(self) -> None:
        self.host += self.launch
        self.queue(self.kernel)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """A clock of this GPU."""
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                gpu.queue(0.0)
                self.at = gpu.free

            def elapsed_time(self, end: Event) -> float:
                return 1000 * (end.at - self.at)

        def synchronize(_: torch.device) -> None:
            gpu.host = max(gpu.host, gpu.free)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.queue(cycles / CYCLES_PER_SECOND))
        monkeypatch.setattr(time, "perf_counter", lambda: gpu.host)
        clock = Clock(CPU)
        clock.device, clock.flush_seconds = torch.device("cuda"), self.flush_seconds
        clock.flush = SimpleNamespace(zero_=lambda: gpu.queue(gpu.flush_seconds))  # type: ignore[assignment]
        return clock


def test_a_short_kernel_is_not_charged_for_its_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(kernel=20e-6, launch=150e-6, flush=90e-6)
    clock = gpu.install(monkeypatch)
    assert clock.time(gpu.call, 5) > 50e-6  # the flush alone is over before the launch is
    assert clock.time(gpu.call, 5, pause=1e-3) == pytest.approx(20e-6)
    assert clock.host_time(gpu.call) == pytest.approx(150e-6)


def test_samples_on_a_gpu_are_as_long_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(kernel=20e-6, launch=5e-6, flush=90e-6)
    clock = gpu.install(monkeypatch)
    for pause in (0.0, 1e-3):
        pace = clock.pace(20e-6, pause)
        synchronized = gpu.host = max(gpu.host, gpu.free)
        clock.time(gpu.call, pace.calls, pace.pause)
        assert gpu.host - synchronized == pytest.approx(pace.seconds, rel=0.05)
        assert pace.seconds < 1.2 * SAMPLE_SECONDS
    clock.flush_seconds = 0.0
    assert clock.pace(1e-6, 0.0).calls == MOST_GPU_CALLS


class PausingBench(LocalBench):
    """Notes the pauses that are asked for."""

    def __init__(self, host_seconds: float) -> None:
        self.host_seconds, self.asked = host_seconds, list[tuple[str, float]]()

    def prepare(self, names: list[str]) -> dict[str, Verdict]:
        return dict.fromkeys(names, Verdict("good", host_seconds=self.host_seconds))

    def time(self, name: str, calls: int, pause: float) -> float:
        self.asked.append((name, pause))
        gpu = {"kernel": 20e-6, "chain": 600e-6, "long": 2e-3}[name]
        return gpu if pause > self.host_seconds else max(gpu, self.host_seconds)

    def pace(self, seconds: float, pause: float) -> Pace:
        return Pace(1, pause, seconds)

    def make(self, make: Maker, device: torch.device) -> tuple[Comparison, dict[str, float | None]]:
        return super().make(make, CPU)


@pytest.mark.parametrize("host_seconds", [20e-6, 6e-3])
def test_all_pause_where_one_is_short(host_seconds: float) -> None:
    """What is timed for a chain of launches depends neither on whether it is itself short nor on a slow host."""
    for names, short in ((("kernel", "chain"), True), (("chain", "long"), False)):
        bench = PausingBench(host_seconds)
        job = Comparison("suite", "job", [Case(name, fine, fine) for name in names], names[0])
        compare(lambda: job, torch.device("cuda"), PEAKS, 0, 2, bench=lambda: nullcontext(bench))  # noqa: B023
        assert [name for name, _ in bench.asked] == [*names] * 3
        assert all(pause > 1.5 * host_seconds for _, pause in bench.asked[: 6 if short else 2])
        assert short or all(pause == 0 for _, pause in bench.asked[2:])


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


def test_what_is_copied_is_no_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Tensor] = []

    def fastest(_: Clock, run: Callable[[], torch.Tensor]) -> float:
        copied.append(run())
        return 1.0

    monkeypatch.setattr(hardware, "_fastest", fastest)
    measure_peaks(CPU, Clock(CPU), quick=True)
    assert copied[0].dtype == torch.uint8 and (copied[0] == 0).float().mean() < 0.01


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
