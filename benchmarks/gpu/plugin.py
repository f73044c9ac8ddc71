"""A plugin of pytest that writes each outcome down at once, and chooses the benchmarks that a few minutes allow.

    python -m pytest benchmarks -p benchmarks.gpu.plugin --keep FILE.json --part comparisons [--seconds 150] [--quick]

FILE.json is whole at every moment: a kernel that never ends costs nothing that was found before it, one that takes the
GPU along its own comparison only. What the file already has is not run again. Of benchmarks it is what --benchmark-json
would write at the end, and `outcomes`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.files import read, write
from benchmarks.gpu.steps import GO_ON

PARTS: dict[str, list[str]] = {
    "comparisons": [
        "attention-*/lab-b8-bf16 and what is slow to compile",
        "decode-step/b8-n256-v1024-bf16 and what is slow to compile",
        "head-sample/b8-n256-v1024-d*-bf16",
        "inpaint/embedded-b64",
        "attention-*/maskgit-512-b8-bf16 and what is slow to compile",
        "attention-*/lab-b64-bf16-dropout0.1",
        "attention-*/embedded-b64-bf16",
        "forward/lab-b8-bf16",
        "inpaint/lab-b8",
        "decode-step/b64-n256-v1024-bf16",
        "head-sample/b64-n256-v1024-d*-bf16",
        "training/embedded-b32",
        "head-loss/lab-b64-bf16",
        "decode-step/b8-n256-v1024-bf16-guided",
        "head-sample/b8-n256-v1024-d*-bf16-guided",
        "head-sample/b8-n256-v16384-d*-bf16",
        "attention-*/lab-b8-float32",
        "attention-*/maskgit-256-b8-bf16",
        "decode-step/b8-n256-v1024-bf16-masked25",
        "head-sample/b8-n256-v1024-d*-bf16-masked25",
    ],
    "figures": [
        "decoding/embedded-b64",
        "decoding/lab-b8",
        "inpaint/embedded-b64",
        "inpaint/lab-b8",
        "attention-forward/embedded-b1-bf16",
        "decode-step/b1-n256-v1024-bf16-masked25",
        "head-sample/b1-n256-v1024-d*-bf16-masked25",
    ],
}
"""Comparisons as shell patterns of their jobs, the most important first: a time that is up cuts off the end."""
AND_SLOW = " and what is slow to compile"
SLOW = ("flex", "flex_flash", "compiled")
"""Implementations that take 10 s and more to compile, for each shape: elsewhere left out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options above."""
    group = parser.getgroup("gpu", "of benchmarks.gpu")
    group.addoption("--keep", type=Path, required=True, help="file for the results")
    group.addoption("--part", choices=PARTS, help="which benchmarks; by default everything is run")


def pytest_configure(config: pytest.Config) -> None:
    """Begin with what the file has; xdist's workers report to the process that writes."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Keeper(config))


class Keeper:
    """Chooses what is run, and writes down what came of it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.file, self.items = config, config.getoption("--keep"), list[pytest.Item]()
        self.results: dict[str, Any] = read(self.file) or {"outcomes": {}, "benchmarks": []}
        self.outcomes: dict[str, str] = self.results["outcomes"]
        """Of each test: "passed", "failed: " or "skipped: ", and why."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        """Leave what is not done yet, the most important first."""
        yield  # to all who sort them otherwise
        self.items = list(items)
        if part := self.config.getoption("--part"):
            names = [(_parameter(item, "job"), _parameter(item, "implementation")) for item in items]
            self.items = [items[number] for number in choose(names, PARTS[part], self.config.getoption("--quick"))]
        self.results["planned"] = len(self.items)
        items[:] = [item for item in self.items if item.nodeid not in self.outcomes]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that can't be imported is a failure too."""
        if report.failed:
            self._note(report)

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Take the figures of a benchmark; pytest goes on to report it."""
        benchmark = getattr(item, "funcargs", {}).get("benchmark")
        if benchmark is not None and call.when == "call" and call.excinfo is None:
            self.results["benchmarks"].append(benchmark.stats.as_dict(include_data=False))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the outcome: a test passes when its call has, unless its end fails."""
        if report.outcome != "passed" or report.when == "call":
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or ""
        why = getattr(getattr(why, "reprcrash", None), "message", str(why)).removeprefix("Skipped: ")
        self.outcomes[report.nodeid] = f"{report.outcome}: {why[:300]}" if why else report.outcome

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write the file; where the GPU is lost to this process, let another one go on behind this job."""
        lost = not usable()
        if lost:
            (item,) = (item for item in self.items if item.nodeid == nodeid)
            if not self.outcomes[nodeid].startswith("failed"):
                del self.outcomes[nodeid]
            for other in self.items:
                if _parameter(other, "job") == _parameter(item, "job"):
                    self.outcomes.setdefault(other.nodeid, "failed: the GPU was lost to the process")
        if self.results["benchmarks"]:
            hook = self.config.hook
            if "machine_info" not in self.results:
                self.results["machine_info"] = hook.pytest_benchmark_generate_machine_info(config=self.config)
            hook.pytest_benchmark_update_json(config=self.config, benchmarks=[], output_json=self.results)
        write(self.file, self.results)
        if lost:
            pytest.exit("the GPU is lost to this process; another one goes on", returncode=GO_ON)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """What failed in a process before this one counts too."""
        write(self.file, self.results)
        if session.exitstatus != GO_ON and any(outcome.startswith("failed") for outcome in self.outcomes.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def choose(benchmarks: Sequence[tuple[str, str]], patterns: Sequence[str], tiny: bool = False) -> list[int]:
    """Numbers of the benchmarks (job, implementation) that fit patterns as in PARTS, in their order.

    Args:
        tiny: sizes are a quick run's: a pattern then stands for the next job of each of its groups.
    """
    chosen: dict[str, bool] = {}  # jobs, and whether with what is slow to compile
    for pattern in patterns:
        wanted = pattern.split("/")[0] + "/*" if tiny else pattern.removesuffix(AND_SLOW)
        fitting = [job for job, _ in benchmarks if job not in chosen and fnmatch.fnmatchcase(job, wanted)]
        if tiny:
            fitting = list({job.split("/")[0]: job for job in reversed(fitting)}.values())
        chosen |= dict.fromkeys(fitting, pattern.endswith(AND_SLOW))
    return [
        number
        for job, slow in chosen.items()
        for number, (its_job, implementation) in enumerate(benchmarks)
        if its_job == job and (slow or implementation not in SLOW)
    ]


def usable() -> bool:
    """Whether this process can still use the GPU: after an access to a wrong address nothing works."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def _parameter(item: pytest.Item, name: str) -> str:
    """Of a benchmark; of any other test what no other has."""
    return str(item.callspec.params.get(name, item.nodeid)) if hasattr(item, "callspec") else item.nodeid
