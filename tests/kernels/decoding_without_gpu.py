"""Starts the decoding kernels, compiled for an H100, on a driver that only notes which is started and with what.

`test_launching.py` runs this in a process of its own: under TRITON_INTERPRET, as tests run, nothing is compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from launches_without_gpu import noted

from maskgit_kernels import launching
from maskgit_kernels.decode_step.launch import decode_step_triton
from maskgit_kernels.decode_step.settings import Settings, State
from maskgit_kernels.head_sample import choice, launch

launch.capability_of = lambda device: 90  # type: ignore[assignment]
launch._multiprocessors = lambda device: 132  # type: ignore[assignment]

USUAL: dict[str, Any] = dict(batch=2, length=16, codes=64, dtype=torch.bfloat16, settings=Settings(3, 1.0, 1.0))
CASES: dict[str, dict[str, Any]] = {
    "as usual": {},
    "another batch": dict(batch=3),
    "many rows": dict(batch=300),
    "a position more": dict(length=17),
    "another codebook": dict(codes=100),
    "float32": dict(dtype=torch.float32),
    "greedy": dict(settings=Settings(3, 1.0, 1.0, "greedy")),
    "probabilities": dict(settings=Settings(3, 1.0, 1.0, confidence="prob")),
    "no noise": dict(settings=Settings(3)),
    "guided": dict(settings=Settings(3, 1.0, 1.0, guidance_scale=2.0)),
    "a late step": dict(settings=Settings(2**32 - 1, 1.0, 1.0)),
    "the first step": dict(settings=Settings(1, 1.0, 1.0)),
    "codes apart": dict(apart=2),
    "not aligned": dict(offset=1),
}


def run(case: str) -> list[tuple[Any, ...]]:
    """What is started for a case, the same twice. The second time is to find what the first has left."""
    given = USUAL | dict(apart=1, offset=0) | CASES[case]
    batch, length, codes, settings = (given[name] for name in ("batch", "length", "codes", "settings"))
    size = batch, length, codes
    memory = torch.zeros(batch * length * codes * given["apart"] + 1, dtype=given["dtype"])
    strides = tuple(given["apart"] * stride for stride in (length * codes, codes, 1))
    logits = memory.as_strided(size, strides, given["offset"])
    flags = torch.ones(batch * length + 1, dtype=torch.bool)
    masked = flags[given["offset"] :][: batch * length].view(batch, length)
    numbers = torch.zeros(batch, dtype=torch.int64)
    state = State(torch.zeros(batch, length, dtype=torch.int64), masked, numbers, numbers)
    guidance = logits if settings.guidance_scale else None
    head = launch.Head(logits, guidance, torch.zeros(40, codes, dtype=given["dtype"]), torch.zeros(length, 40))
    noted.clear()
    for _ in range(2):
        decode_step_triton(logits, guidance, codes, state, settings, counters_may_outlive=False)
        with choice.impose("fused"):
            launch.head_sample_triton(head, state, settings, counters_may_outlive=False)
    return [(kernel, grid, [x for x in values if type(x) is not int or x < 2**33]) for kernel, grid, values in noted]


def main() -> None:
    # One after another, and each by itself: what came before must not decide what is started.
    together = {case: run(case) for case in CASES}
    assert len(launching._started) < sum(len(set(kernel for kernel, *_ in found)) for found in together.values())
    for case in CASES:
        launching._started.clear()
        alone = run(case)
        half = len(alone) // 2
        assert half == (5 if case == "many rows" else 4), (case, half)
        assert alone[:half] == alone[half:] == together[case][:half], case
    assert len({kernel for found in together.values() for kernel, *_ in found}) > 20


if __name__ == "__main__":
    main()
