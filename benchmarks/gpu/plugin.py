"""A plugin of pytest: the benchmarks that a few minutes allow, the most important first, each written down as it ends.

    python -m pytest benchmarks -p benchmarks.gpu.plugin --part comparisons --keep FILE.json [--seconds 150] [--quick]

FILE.json is what --benchmark-json would write when all is over, with the outcomes of what was not timed. It is whole at
every moment: a kernel that never ends, or takes the GPU along, costs its own comparison only. What the file already
has is not run again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
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
    group.addoption("--part", choices=PARTS, required=True, help="which benchmarks")
    group.addoption("--keep", type=Path, required=True, help="file for the results")


def pytest_configure(config: pytest.Config) -> None:
    """Begin with what the file has."""
    config.pluginmanager.register(Keeper(config))


class Keeper:
    """Chooses what is run, and writes down what came of it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.file, self.items = config, config.getoption("--keep"), list[pytest.Item]()
        self.results: dict[str, Any] = read(self.file) or {"benchmarks": [], "outcomes": {}}
        self.outcomes: dict[str, tuple[str, str]] = self.results["outcomes"]
        """Of each benchmark: "passed", "failed" or "skipped", and why."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Those of the part, in its order; of a quick run's tiny ones all that belong to its groups."""
        patterns = PARTS[self.config.getoption("--part")]
        if self.config.getoption("--quick"):
            patterns = [pattern.split("/")[0] + "/*" for pattern in patterns]
        chosen = choose([(_of(item, "job"), _of(item, "implementation")) for item in items], patterns)
        self.items = [items[number] for number in chosen]
        self.results["planned"] = len(chosen)
        items[:] = [item for item in self.items if item.name not in self.outcomes]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Note what became of a benchmark; pytest goes on to report it."""
        if call.excinfo is not None:
            outcome = "skipped" if call.excinfo.errisinstance(pytest.skip.Exception) else "failed"
            self.outcomes[item.name] = (outcome, str(call.excinfo.value).strip()[:300])
        elif call.when == "call":
            assert isinstance(item, pytest.Function)
            self.outcomes[item.name] = ("passed", "")
            self.results["benchmarks"].append(item.funcargs["benchmark"].stats.as_dict(include_data=False))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write the file; where the GPU is lost to this process, let another one go on behind this job."""
        lost = not usable()
        if lost:
            (item,) = (item for item in self.items if item.nodeid == nodeid)
            if self.outcomes[item.name][0] != "failed":
                del self.outcomes[item.name]
            for other in self.items:
                if _of(other, "job") == _of(item, "job"):
                    self.outcomes.setdefault(other.name, ("failed", "the GPU was lost to the process"))
        hook = self.config.hook
        self.results["machine_info"] = hook.pytest_benchmark_generate_machine_info(config=self.config)
        hook.pytest_benchmark_update_json(config=self.config, benchmarks=[], output_json=self.results)
        write(self.file, self.results)
        if lost:
            pytest.exit("the GPU is lost to this process; another one goes on", returncode=GO_ON)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """What failed in a process before this one counts too."""
        if session.exitstatus != GO_ON and any(outcome == "failed" for outcome, _ in self.outcomes.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def choose(benchmarks: Sequence[tuple[str, str]], patterns: Sequence[str]) -> list[int]:
    """Numbers of the benchmarks (job, implementation) that fit one of PARTS' patterns, each once, in their order."""
    chosen: dict[int, None] = {}
    for pattern in patterns:
        left_out = () if pattern.endswith(AND_SLOW) else SLOW
        for number, (job, implementation) in enumerate(benchmarks):
            if fnmatch.fnmatchcase(job, pattern.removesuffix(AND_SLOW)) and implementation not in left_out:
                chosen[number] = None
    return list(chosen)


def usable() -> bool:
    """Whether this process can still use the GPU: after an access to a wrong address nothing works."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
    return True


def _of(item: pytest.Item, parameter: str) -> str:
    assert isinstance(item, pytest.Function)
    return str(item.callspec.params[parameter])
