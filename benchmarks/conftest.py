"""`pytest benchmarks`: its options, what each benchmark is given, and what stands beside pytest-benchmark's figures.

pytest-benchmark's own options do what they always do; --benchmark-max-time and --benchmark-min-rounds are those of each
implementation.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:  # the benchmarks are not installed: they are imported from the checkout
    sys.path.insert(0, ROOT)

from benchmarks.bench import Apart, Bench  # noqa: E402
from benchmarks.clock import Clock, Stopwatch  # noqa: E402
from benchmarks.hardware import Peaks, measure_peaks  # noqa: E402
from benchmarks.harness import Comparison  # noqa: E402
from benchmarks.measuring import Measurement  # noqa: E402
from benchmarks.promises import Row, rates, table  # noqa: E402
from benchmarks.setting import Setting  # noqa: E402
from benchmarks.suites import GROUPS  # noqa: E402
from maskgit.machine import describe  # noqa: E402
from maskgit.pipeline import resolve_device  # noqa: E402

SETTING = pytest.StashKey[Setting]()
COMPARISONS = pytest.StashKey[dict[str, Comparison]]()
PEAKS = pytest.StashKey[Peaks]()
MEASURED = pytest.StashKey[list[Row]]()
STARTED = time.monotonic()
SAME_MACHINE = ("device", "cpu", "threads", "quick")  # without these in common, times can't be compared
STOPWATCH = Stopwatch()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks", "of this repository")
    group.addoption("--quick", action="store_true", help="tiny shapes and two rounds: shows that everything runs")
    group.addoption("--device", default="auto", help="cuda, cpu, ... ; auto takes a GPU where there is one")
    group.addoption("--seconds", type=float, help="start nothing after so many; what is left is skipped")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that isn't there before anything is collected; and end when told to as after Ctrl-C.

    What was measured by then is written, and the processes of the implementations end too.
    """
    _setting(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _setting(config: pytest.Config) -> Setting:
    """Made when it is first asked for: pytest-benchmark compares machines before pytest is configured."""
    if SETTING not in config.stash:
        name = config.getoption("--device")
        try:
            device = resolve_device(None if name == "auto" else name)
        except ValueError as error:
            raise pytest.UsageError(f"--device {name}: {error}") from error
        config.stash[SETTING] = Setting(device, config.getoption("--quick"))
        config.stash[COMPARISONS] = {}
    return config.stash[SETTING]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each comparison of the function's group, and each implementation of it, the baseline last.

    What the others' rounds have told of the baseline need not be measured again.
    """
    if "job" not in metafunc.fixturenames:
        return
    setting, parameters = _setting(metafunc.config), []
    for comparison in GROUPS[metafunc.definition.name](setting):
        metafunc.config.stash[COMPARISONS][comparison.job] = comparison
        first, *others = comparison.implementations.items()
        for name, why_not in (*others, first):
            marks = [pytest.mark.benchmark(group=comparison.job, timer=STOPWATCH.read)]
            if why_not:
                marks.append(pytest.mark.skip(reason=why_not))
            parameters.append(pytest.param(comparison.job, name, id=f"{comparison.name}-{name}", marks=marks))
    metafunc.parametrize(("job", "implementation"), parameters, indirect=["job"])


@pytest.fixture(scope="session")
def clock(request: pytest.FixtureRequest) -> Clock:
    """Of the device."""
    return Clock(_setting(request.config).device)


@pytest.fixture(scope="session")
def peaks(request: pytest.FixtureRequest, clock: Clock) -> Peaks:
    """How fast the machine copies and multiplies, measured at the start."""
    peaks = measure_peaks(clock.device, clock, _setting(request.config).quick)
    request.config.stash[PEAKS] = peaks
    return peaks


@pytest.fixture(scope="session")
def current() -> Iterator[list[Measurement]]:
    """The comparison that is being carried out, if one is: a scope of pytest's own would reorder what is run."""
    measurements: list[Measurement] = []
    yield measurements
    for measurement in measurements:
        measurement.close()


@pytest.fixture
def job(request: pytest.FixtureRequest, clock: Clock, peaks: Peaks, current: list[Measurement]) -> Measurement:
    """The item's comparison; whatever is to be timed of it is checked when the first item of it begins."""
    if current and current[0].comparison.job == request.param:
        return current[0]
    while current:
        current.pop().close()
    option, setting = request.config.getoption, _setting(request.config)
    if option("--seconds") is not None and time.monotonic() - STARTED > option("--seconds"):
        pytest.skip(f"the time is up: --seconds {option('--seconds'):g}")
    comparison = request.config.stash[COMPARISONS][request.param]
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {comparison.baseline, *(call["implementation"] for call in calls if call.get("job") == request.param)}
    names = [name for name, why_not in comparison.implementations.items() if name in wanted and not why_not]
    seconds, fewest = float(option("benchmark_max_time")), option("benchmark_min_rounds")
    if setting.quick:
        seconds, fewest = 0.0, 2
    # A GPU's memory is kept by PyTorch anyway, and scarce; the times of a quick run mean nothing.
    place = Bench if setting.on_gpu or setting.quick else Apart
    current.append(Measurement(comparison, names, clock, STOPWATCH, seconds, fewest, place))
    return current[0]


# --- pytest-benchmark's hooks -----------------------------------------------------------------------------------------


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """What times depend on; neither the host's name nor the date."""
    setting = _setting(config)
    facts = describe(setting.device)
    return {"quick": setting.quick, **{name: facts[name] for name in facts if name not in ("date", "revision")}}


def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    """Refuse what can't be compared."""
    theirs = compared_benchmark["machine_info"]
    differing = [f"{name} {theirs.get(name)!r}" for name in SAME_MACHINE if theirs.get(name) != machine_info[name]]
    if differing:
        raise pytest.UsageError(f"the older run can't be compared with this one, it is of {', '.join(differing)}")


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """The machine's rates of the run."""
    peaks = config.stash.get(PEAKS, Peaks())
    output_json["peaks"] = {"products": peaks.products, "copies": peaks.copies}


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(config: pytest.Config) -> Generator[None, Any, Any]:
    """Take note of what is about to be shown."""
    groups = yield
    config.stash[MEASURED] = [row for _, benchmarks in groups for row in benchmarks]
    return groups


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The ratios, for which pytest-benchmark's table has no columns."""
    # Not what is compared with, nor what broke off while it was timed.
    measured = [row for row in config.stash.get(MEASURED, []) if row["path"] is None and row["extra_info"]]
    if measured and not config.getoption("benchmark_quiet"):
        lines = [rates(config.stash[PEAKS].products), "", *table(measured)]
        terminalreporter.write_line("\n" + "\n".join(lines))
