"""What machine this is: the GPU as its driver describes it, and the versions that results depend on.

python -m benchmarks.gpu.environment FILE.json
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.files import write
from maskgit.machine import describe

# nvidia-smi only reads here: no clock or limit is changed.
QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,"
    "mig.mode.current"
)


def main() -> None:
    """Write the facts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.environment", description=__doc__)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts: dict[str, object] = dict(describe(device))
    facts |= {"numpy": np.__version__, "cudnn": torch.backends.cudnn.version(), "nvidia-smi": _nvidia_smi()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"multiprocessors": properties.multi_processor_count, "L2 bytes": properties.L2_cache_size}
    write(options.result, facts)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))


def _nvidia_smi() -> dict[str, str] | str:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return f"not to be had: {type(error).__name__}"
    return dict(zip(QUERY.split(","), (cell.strip() for cell in done.stdout.splitlines()[0].split(",")), strict=True))


if __name__ == "__main__":
    main()
