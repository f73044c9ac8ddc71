"""What only a GPU can tell of whole models: images per second, host time per call, what depends on the batch.

    python -m benchmarks.gpu.figures FILE.json [--seconds 50] [--quick]

The decoding loop alone is timed beside all of `inpaint`, whose pictures are mended on the CPU. Every row of its
comparisons has the time that the host takes to start a call; those of small batches are here because the host decides
there.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import attention, decode_step, end_to_end, head_sample
from benchmarks.gpu.comparisons import COMPILED
from benchmarks.gpu.files import read, write
from benchmarks.gpu.measuring import Planned, program
from benchmarks.harness import Maker
from benchmarks.models import decode_tokens, make_models
from benchmarks.setting import Setting
from maskgit.decoding import DecodeConfig

PICTURES = 16
BATCHES = (16, 4, 1)
STEPS = 8


def plan(setting: Setting) -> list[Planned]:
    """The decoding loop and `inpaint` for two models; each operator for one image."""
    batches = {"embedded": 64, "lab": 8}
    makers: list[Maker] = [
        functools.partial(comparison, name, 2 if setting.quick else batch, setting)
        for comparison in (end_to_end.decoding_comparison, end_to_end.inpaint_comparison)
        for name, batch in batches.items()
    ]
    modules: tuple[Any, ...] = (attention, decode_step, head_sample)
    for module in modules:
        jobs = list(module.jobs(setting))
        one = (job for job in jobs if job.batch == 1 and job.dtype == torch.bfloat16)
        makers.append(functools.partial(module.comparison, next(one, jobs[0]), setting))
    return [Planned(make, COMPILED) for make in makers]


def batch_dependence(setting: Setting, file: Path) -> list[str]:
    """How many pictures' tokens differ when they are made in batches of another size; written into the file.

    Our kernels don't let an image's neighbours have a say; the libraries' matrix products may choose another kernel,
    which rounds differently, for another batch. So a difference is a finding, not a failure.
    """
    found = []
    for precision, model in make_models("embedded", setting.device, setting.quick).items():
        config = DecodeConfig(steps=STEPS)
        made = {}
        for batch in BATCHES:
            parts = [decode_tokens(model, config, batch, None, first=i) for i in range(0, PICTURES, batch)]
            made[batch] = torch.cat(parts)  # [PICTURES, N]
        for batch in BATCHES[1:]:
            different = int((made[batch] != made[BATCHES[0]]).any(1).sum())
            found.append({"precision": precision, "batch": batch, "different": different, "pictures": PICTURES})
            print(
                f"{precision}: {different} of {PICTURES} pictures differ between batches of {BATCHES[0]} and {batch}",
                flush=True,
            )
    write(file, read(file) | {"batch dependence": found})
    return []


if __name__ == "__main__":
    sys.exit(program("figures", __doc__, plan, batch_dependence))
