"""Verified first, timed in turn, and counted right."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import hardware
from benchmarks.bench import Apart, Bench, Verdict
from benchmarks.clock import CYCLES_PER_SECOND, MOST_CALLS, MOST_GPU_CALLS, SAMPLE_SECONDS, Clock, Pace, Stopwatch
from benchmarks.counting import Count, count
from benchmarks.hardware import Peaks, measure_peaks, products
from benchmarks.harness import Case, Comparison, WrongResultError
from benchmarks.measuring import Measurement
from maskgit.machine import describe

CPU = torch.device("cpu")
RATES = {"float32 torch.mm": 100.0, "float32 oneDNN packed": 200.0, "bfloat16 torch.mm": 50.0}
PEAKS = Peaks(copies={1000: 10.0, 4000: 5.0}, products=RATES)


class Fixture:
    """What pytest-benchmark's pedantic mode does."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch, self.extra_info, self.seconds = stopwatch, dict[str, Any](), list[float]()

    def pedantic(
        self, target: Callable[[], object], setup: Callable[[], None], rounds: int, iterations: int = 1
    ) -> None:
        for _ in range(rounds):
            setup()
            start = self.stopwatch.read()
            target()
            self.seconds.append(self.stopwatch.read() - start)


def compare(
    comparison: Comparison,
    seconds: float = 0.0,
    fewest: int = 3,
    place: Any = Bench,
    clock: Clock = Clock(CPU),  # noqa: B008
    names: Sequence[str] = (),
) -> dict[str, Fixture | str]:
    """Each implementation's figures or why there are none, the baseline's last."""
    stopwatch = Stopwatch()
    chosen = names or list(comparison.implementations)
    measurement = Measurement(comparison, chosen, clock, stopwatch, seconds, fewest, place)
    found: dict[str, Fixture | str] = {}
    first, *others = chosen
    for name in (*others, first):
        fixture = Fixture(stopwatch)
        try:
            measurement.run(name, fixture, PEAKS)
            found[name] = fixture
        except (pytest.fail.Exception, pytest.skip.Exception) as error:
            found[name] = f"{type(error).__name__}: {error.msg}"
    measurement.close()
    return found


def comparison_of(cases: dict[str, Case], **options: Any) -> Comparison:
    return Comparison("group", "job", dict.fromkeys(cases, ""), functools.partial(dict, cases), **options)


def fine() -> None:
    """A check that passes."""


def fails(error: Exception) -> Callable[[], None]:
    def verify() -> None:
        raise error

    return verify


def test_only_what_is_right_is_timed() -> None:
    calls: list[str] = []
    cases = {
        "a": Case(lambda: calls.append("a"), fine),
        "wrong": Case(lambda: calls.append("wrong"), fails(WrongResultError("off by 3"))),
        "crashes": Case(lambda: calls.append("crashes"), fails(RuntimeError("no\nkernel"))),
        "foreign": Case(lambda: calls.append("foreign"), fails(RuntimeError("no kernel here\n...")), optional=True),
        "b": Case(lambda: calls.append("b"), fine),
    }
    found = compare(comparison_of(cases, rounds=3))
    assert calls == ["a", "b"] * 3  # a round of the baseline in each; its own figures are those
    assert found["wrong"] == "Failed: off by 3" and found["crashes"] == "Failed: no"
    assert found["foreign"] == "Skipped: no kernel here"
    for name in ("a", "b"):
        fixture = found[name]
        assert isinstance(fixture, Fixture)
        assert len(fixture.seconds) == 3 and fixture.extra_info["check"] == "passed"


def test_a_wrong_baseline_costs_the_ratios_only() -> None:
    cases = {"a": Case(fine, fails(WrongResultError("off"))), "b": Case(fine, fine)}
    found = compare(comparison_of(cases))
    assert found["a"] == "Failed: off"
    assert isinstance(found["b"], Fixture) and "speedup" not in found["b"].extra_info


def test_a_baseline_by_itself_is_timed() -> None:
    found = compare(comparison_of({"a": Case(fine, fine), "b": Case(fine, fine)}, rounds=4), names=["a"])
    assert isinstance(found["a"], Fixture) and len(found["a"].seconds) == 4
    assert found["a"].extra_info["speedup"] == 1


def test_a_row_says_everything() -> None:
    cases = {
        "theirs": Case(lambda: time.sleep(0.08), fine),
        "ours": Case(lambda: time.sleep(0.04), fine, kernel="flash", dtype=torch.bfloat16),
    }
    comparison = comparison_of(cases, shape={"batch": 4}, item="image", items=4, flops=2.0, bytes=500, rounds=3)
    found = compare(comparison)
    assert isinstance(found["ours"], Fixture) and isinstance(found["theirs"], Fixture)
    info, median = found["ours"].extra_info, statistics.median(found["ours"].seconds)
    assert info["speedup_p20"] <= info["speedup"] <= info["speedup_p80"] and 1.2 < info["speedup"] < 3
    assert (info["implementation"], info["baseline"], info["kernel"]) == ("ours", "theirs", "flash")
    assert (info["dtype"], info["shape"], info["item"], info["items"]) == ("bfloat16", {"batch": 4}, "image", 4)
    assert info["of_ceiling"] == pytest.approx(2.0 / median / 50.0)
    assert info["of_floor"] == pytest.approx(median / 50)
    assert found["theirs"].extra_info["of_ceiling"] == pytest.approx(
        2.0 / statistics.median(found["theirs"].seconds) / 200.0
    )


class Process:
    """A case of the test below: notes the process that it runs in, and what was made there."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.started = folder, name, False

    def start(self) -> None:
        self.started = True

    def __call__(self) -> None:
        assert self.started
        (self.folder / f"{self.name} {os.getpid()} {time.perf_counter_ns()}").touch()


def make_processes(folder: Path) -> dict[str, Case]:
    return {name: Case(process := Process(folder, name), process, start=process.start) for name in ("a", "b")}


@pytest.mark.parametrize("apart", [False, True])
def test_a_comparison_has_fresh_processes(apart: bool, tmp_path: Path) -> None:
    make = functools.partial(make_processes, tmp_path)
    comparison = Comparison("group", "job", {"a": "", "b": ""}, make, rounds=3, apart=apart, warm_up=1)
    found = compare(comparison, place=Apart)
    assert all(isinstance(fixture, Fixture) for fixture in found.values())
    calls = sorted((path.name.split() for path in tmp_path.iterdir()), key=lambda call: int(call[2]))
    assert [name for name, *_ in calls][-6:] == ["a", "b"] * 3 and len(calls) == 2 * 5  # in turn; checked, warmed up
    processes = {process for _, process, _ in calls}
    assert len(processes) == (2 if apart else 1) and str(os.getpid()) not in processes


def make_one_that_dies() -> dict[str, Case]:
    return {"a": Case(fine, fine), "dies": Case(fine, functools.partial(os._exit, 1)), "b": Case(fine, fine)}


def test_a_process_that_dies_costs_its_own_figure_only() -> None:
    comparison = Comparison("group", "job", dict.fromkeys(("a", "dies", "b"), ""), make_one_that_dies, apart=True)
    found = compare(comparison, place=Apart)
    assert isinstance(found["a"], Fixture) and isinstance(found["b"], Fixture)
    assert found["dies"] == "Failed: its process died; was there too little memory?"


def test_short_calls_are_repeated_and_take_the_given_time() -> None:
    cases = {"sleep": Case(lambda: time.sleep(0.002), fine), "nothing": Case(lambda: None, fine)}
    started = time.perf_counter()
    found = compare(comparison_of(cases), 0.2, 2)
    assert time.perf_counter() - started >= 0.1
    sleep, nothing = found["sleep"], found["nothing"]
    assert isinstance(sleep, Fixture) and isinstance(nothing, Fixture)
    assert len(sleep.seconds) == len(nothing.seconds) >= 2
    assert 1 <= sleep.extra_info["calls"] < nothing.extra_info["calls"] <= MOST_CALLS
    assert statistics.median(sleep.seconds) >= 0.002 > statistics.median(nothing.seconds)
    assert nothing.extra_info["speedup"] > 10


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


class PausingBench:
    """Notes the pauses that are asked for."""

    def __init__(self, comparison: Comparison, clock: Clock, names: Sequence[str], *, host_seconds: float) -> None:
        self.verdicts = dict.fromkeys(names, Verdict("good", host_seconds=host_seconds))
        self.host_seconds = host_seconds

    asked = list[tuple[str, float]]()

    def time(self, name: str, pace: Pace) -> float:
        self.asked.append((name, pace.pause))
        gpu = {"kernel": 20e-6, "chain": 600e-6, "long": 2e-3}[name]
        return gpu if pace.pause > self.host_seconds else max(gpu, self.host_seconds)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("host_seconds", [20e-6, 6e-3])
def test_all_pause_where_one_is_short(host_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed for a chain of launches depends neither on whether it is itself short nor on a slow host."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    clock = Clock(CPU)
    clock.device = torch.device("cuda")
    place = functools.partial(PausingBench, host_seconds=host_seconds)
    for names, short in ((("kernel", "chain"), True), (("chain", "long"), False)):
        PausingBench.asked.clear()
        compare(comparison_of({name: Case(fine, fine) for name in names}), 0.0, 2, place, clock)
        assert [name for name, _ in PausingBench.asked] == [*names] * 3
        assert all(pause > 1.5 * host_seconds for _, pause in PausingBench.asked[: 6 if short else 2])
        assert short or all(pause == 0 for _, pause in PausingBench.asked[2:])


class Scripted(PausingBench):
    """Takes the seconds that are written down."""

    def __init__(self, comparison: Comparison, clock: Clock, names: Sequence[str], *, script: Any, flops: Any) -> None:
        self.verdicts = {name: Verdict("good", flops=flops.get(name, 0)) for name in names}
        self.script = {name: iter(seconds) for name, seconds in script.items()}

    def time(self, name: str, pace: Pace) -> float:
        return next(self.script[name])


def scripted(script: dict[str, list[float]], flops: dict[str, float] | None = None) -> dict[str, Fixture]:
    rounds = len(next(iter(script.values())))
    comparison = comparison_of({name: Case(fine, fine) for name in script}, rounds=rounds)
    found = compare(comparison, place=functools.partial(Scripted, script=script, flops=flops or {}))
    return {name: fixture for name, fixture in found.items() if isinstance(fixture, Fixture)}


def test_a_speedup_is_taken_within_each_round() -> None:
    # The machine was five times slower in the last round: the ratio of the means would be 4.6.
    found = scripted({"slow": [2.0, 2.2, 50.0], "fast": [1.0, 1.1, 10.0]})
    assert found["fast"].extra_info["speedup"] == pytest.approx(2.0)
    assert found["slow"].extra_info["speedup"] == 1.0
    assert found["fast"].seconds == [1.0, 1.1, 10.0] and found["slow"].seconds == [2.0, 2.2, 50.0]


def test_a_speedup_of_unequal_work_is_one_of_rates() -> None:
    found = scripted({"small": [1.0], "large": [4.0]}, flops={"small": 10, "large": 80})
    assert found["large"].extra_info["speedup"] == pytest.approx(2.0)


def test_percentiles() -> None:
    found = scripted({"one": [1.0] * 6, "ours": [1 / x for x in (5.0, 1.0, 3.0, 2.0, 4.0, 6.0)]})
    info = found["ours"].extra_info
    assert [info[name] for name in ("speedup_p20", "speedup", "speedup_p80")] == pytest.approx([2.0, 3.5, 5.0])


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

    assert count(work) == Count(5, 288 + 256 + 128 + 40 + 104)


def test_casts_are_launches_of_a_kind() -> None:
    x = torch.rand(8, 4)
    assert count(lambda: x.bfloat16().float() + x.clone()) == Count(4, 2 * 192 + 256 + 384, 2, 2 * 192)


def test_what_gives_nothing_back_is_launched_too() -> None:
    pair = [torch.rand(8), torch.rand(4)]
    assert count(lambda: torch._foreach_mul_(pair, 2)) == Count(1, 48)


def test_a_gather_reads_what_it_gives_out() -> None:
    x, index = torch.rand(8, 100), torch.randint(100, (8, 1))
    assert count(lambda: x.gather(1, index)) == Count(1, 8 * 4 + 8 * 8 + 8 * 4)


def test_views_cost_nothing() -> None:
    x = torch.rand(6, 4)
    assert count(lambda: x.t().reshape(1, 4, 6).unbind(1)) == Count(0, 0)
    assert count(lambda: torch.empty(5)) == Count(0, 0)
