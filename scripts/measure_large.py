"""What a hole of 100 pixels costs in a picture of 4000x3000, beside the same in one of 256x256.

    python scripts/measure_large.py

Each picture is read, filled by the embedded model in windows and written in a process of its own, and once more without
filling; in turn, several times. Printed are the medians of time and peak memory, and what 1.5 times the small one would
allow.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = (256, 256), (4000, 3000)
HOLE, ROUNDS = 100, 5

PROGRAM = """
import json, resource, sys, time
import numpy as np
from PIL import Image
from maskgit import MaskGIT
from maskgit.memory import keep_freed_memory

path, size, left, fill = sys.argv[1], *map(int, sys.argv[2:])
keep_freed_memory()
model = MaskGIT.from_pretrained(device="cpu")
mask = np.zeros((64, 64), dtype=bool)
mask[16:48, 16:48] = True
model.inpaint(Image.new("RGB", (64, 64)), mask)  # what is done once only
start = time.perf_counter()
image = Image.open(path)
image.load()
mask = np.zeros(image.size[::-1], dtype=bool)
mask[left : left + size, left : left + size] = True
result = model.inpaint(image, mask, crop="auto").image if fill else image.copy()
result.save(path + ".out.png", compress_level=1)
print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def run(path: Path, fill: bool) -> tuple[float, float]:
    """Seconds, and MiB at the peak."""
    arguments = [str(path), str(HOLE), str((256 - HOLE) // 2), str(int(fill))]
    output = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    seconds, memory = json.loads(output.stdout)
    return seconds, memory


def main() -> None:
    rng = np.random.default_rng(0)
    found: dict[tuple[tuple[int, int], bool], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for width, height in SIZES:
            small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            paths[width, height] = Path(folder, f"{width}.png")
            small.resize((width, height), Image.Resampling.BICUBIC).save(paths[width, height], compress_level=1)
        for _ in range(ROUNDS):
            for size in SIZES:
                for fill in (False, True):
                    found.setdefault((size, fill), []).append(run(paths[size], fill))
    medians = {key: [statistics.median(values) for values in zip(*runs, strict=True)] for key, runs in found.items()}
    small, large = SIZES
    for i, unit in enumerate(("s", "MiB")):
        alone, with_fill = (medians[small, fill][i] for fill in (False, True))
        read, filled = (medians[large, fill][i] for fill in (False, True))
        allowed = 1.5 * with_fill + (read - alone)
        print(f"{small[0]}x{small[1]}: {with_fill:.2f} {unit}, of which {alone:.2f} without filling")
        print(f"{large[0]}x{large[1]}: {filled:.2f} {unit}, of which {read:.2f} without filling")
        print(f"  1.5 times the small one, and reading and writing, are {allowed:.2f}: {filled / allowed:.2f} of that")


if __name__ == "__main__":
    main()
