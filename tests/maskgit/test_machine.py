"""What a result says of the machine and the code it was made with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from maskgit import machine
from maskgit.pipeline import arguments
from maskgit.pipeline.arguments import resolve_precision


def test_a_cpu_is_described() -> None:
    facts = machine.describe(torch.device("cpu"))
    assert facts["device"] == facts["cpu"] == machine.cpu_name() and facts["cpu"]
    assert (facts["python"], facts["torch"]) == (platform.python_version(), torch.__version__)
    assert facts["threads"] == torch.get_num_threads() and "cuda" not in facts
    assert machine.package_version("no-package-of-this-name") is None


@pytest.mark.parametrize(
    "cpu, faster",
    [
        ("AMD EPYC 9R14 96-Core Processor avx512_bf16", True),
        ("AMD EPYC 7R32", False),
        ("Intel(R) Xeon(R) Platinum 8488C avx512_bf16 amx_bf16", True),
        ("Intel(R) Xeon(R) Processor avx512_bf16", False),  # a hypervisor that hides AMX
        ("arm", False),
    ],
)
def test_which_cpus_are_faster_in_bfloat16(cpu: str, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "cpu_name", lambda: cpu)
    assert resolve_precision("auto", torch.device("cpu")) == ("bf16" if faster else "float32")


def test_the_revision_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a repository that the package happens to lie in, installed."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "machine.py").write_text("")
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.git_revision() is None
    assert machine.describe(torch.device("cpu"))["revision"] == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    revision = machine.git_revision()
    assert revision is not None and len(revision) == 40
    (tmp_path / "machine.py").write_text("changed")
    assert machine.git_revision() == f"{revision}-dirty"
