"""The comparisons that a few minutes allow, the most important first, in one process.

    python -m benchmarks.gpu.comparisons FILE.json [--seconds 160] [--quick]

`python -m benchmarks` gives each of its comparisons a fresh process, and would take most of an hour on a GPU. The
results have the same form as its results.json.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import attention, decode_step, end_to_end, head_sample, transformer
from benchmarks.gpu.measuring import Planned, program
from benchmarks.setting import Setting

BF16, FLOAT32 = torch.bfloat16, torch.float32
COMPILED = ("FlexAttention", "FlexAttention, FLASH", "torch.compile")  # 10 s and more for each shape


def plan(setting: Setting) -> list[Planned]:
    """What to compare, the most important first: a time that is up cuts off the end."""
    quick, seen = setting.quick, set[object]()

    def some(module: Any, *, compiled: bool = False, **wanted: Any) -> Iterator[Planned]:
        """Comparisons of the jobs whose fields are as wanted; of a quick run's tiny ones each once."""
        for job in module.jobs(setting):
            if job not in seen if quick else all(getattr(job, name) == value for name, value in wanted.items()):
                seen.add(job)
                yield Planned(functools.partial(module.comparison, job, setting), () if compiled else COMPILED)

    def attend(
        model: str, batch: int, dtype: torch.dtype, dropout: float = 0.0, compiled: bool = False
    ) -> Iterator[Planned]:
        """Forward and backward."""
        return some(attention, compiled=compiled, model=model, batch=batch, dtype=dtype, dropout=dropout)

    decode, head = functools.partial(some, decode_step), functools.partial(some, head_sample)

    def of(function: Any, *arguments: Any, batch: int) -> Iterator[Planned]:
        yield Planned(functools.partial(function, *arguments, 2 if quick else batch, setting))

    small: dict[str, Any] = {"tokens": 256, "codes": 1024, "dtype": BF16, "masked_share": 1.0, "guided": False}
    parts = [
        attend("lab", 8, BF16, compiled=True),
        decode(**small, batch=8, compiled=True),
        head(**small, batch=8),
        of(end_to_end.inpaint_comparison, "embedded", batch=64),
        attend("maskgit-512", 8, BF16, compiled=True),
        attend("lab", 64, BF16, 0.1),
        attend("embedded", 64, BF16),
        of(transformer.forward_comparison, "lab", "bf16", batch=8),
        of(end_to_end.inpaint_comparison, "lab", batch=8),
        decode(**small, batch=64),
        head(**small, batch=64),
        of(end_to_end.training_comparison, "embedded", batch=32),
        decode(batch=8, dtype=BF16, guided=True),
        head(batch=8, dtype=BF16, guided=True),
        head(batch=8, dtype=BF16, codes=16384),
        attend("lab", 8, FLOAT32),
        attend("maskgit-256", 8, BF16),
        decode(**small | {"masked_share": 0.25}, batch=8),
        head(**small | {"masked_share": 0.25}, batch=8),
    ]
    return [planned for part in parts for planned in part]


if __name__ == "__main__":
    sys.exit(program("comparisons", __doc__, plan))
