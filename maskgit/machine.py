"""What a result was made with: the device in words, versions, the revision of the code."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch


def describe(device: torch.device) -> dict[str, str | int]:
    """What a result is keyed by: device, versions, date, revision, threads."""
    facts: dict[str, str | int] = {
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": package_version("triton") or "none",
        "platform": platform.platform(),
        "revision": git_revision() or "unknown",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if device.type == "cuda":
        facts["cuda"] = str(torch.version.cuda)
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return facts


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H100 80GB HBM3", or the CPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name() if device.type == "cpu" else device.type


def cpu_name() -> str:
    """The processor's name, and the instructions that decide how fast bfloat16 is."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return " ".join([name, *bfloat16_instructions()])


def bfloat16_instructions() -> list[str]:
    """Those of the CPU that multiply in bfloat16."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
    return [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]


def is_faster_in_bfloat16(cpu: str) -> bool:
    """Whether a CPU, named as `cpu_name` does, multiplies faster in bfloat16 than in float32.

    With AMX it does, and AMD's cores with AVX512-BF16. Intel's have that too, but where a hypervisor hides AMX it wins
    nothing; `python -m benchmarks` says how much faster a machine's products are, and `python inpaint.py --generate 8
    --precision bf16`, against float32, what comes of it.
    """
    return "amx_bf16" in cpu or (cpu.startswith("AMD") and "avx512_bf16" in cpu)


def package_version(name: str) -> str | None:
    """Of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Revision of the repository that this package runs from, with "-dirty" for uncommitted changes; None if none."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it is the repository of whoever installed the package
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
