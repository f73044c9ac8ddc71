"""What every suite is given: the device, how much time to take, and which implementations can be timed there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.hardware import bfloat16_instructions
from maskgit_kernels import backend


@dataclass(frozen=True)
class Setting:
    """Of one run."""

    device: torch.device
    quick: bool
    """Tiny shapes and two rounds: shows that everything runs, measures nothing."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def promised(self) -> bool:
        """Whether this is a machine of the kind for which figures are promised: a CPU with bfloat16 instructions."""
        return not self.on_gpu and bool(bfloat16_instructions())

    def backends(self) -> list[str]:
        """Our implementations that can be timed here, the one that "auto" takes last."""
        # The interpreter computes what the kernels compute, but its time says nothing about them.
        if self.on_gpu and not backend.interpreting() and backend.why_not_triton(self.device) is None:
            return ["torch", "triton"]
        return ["torch"]

    def left_out(self) -> dict[str, str]:
        """Our implementations that can't be timed here, and why: for `Comparison.left_out`."""
        if "triton" in self.backends():
            return {}
        if not self.on_gpu:
            return {"ours (triton)": "there is no GPU here, so no figure of it exists"}
        reason = "TRITON_INTERPRET is set" if backend.interpreting() else backend.why_not_triton(self.device)
        return {"ours (triton)": f"can't run here: {reason}"}

    def generator(self, seed: int = 0) -> torch.Generator:
        """Of random inputs, the same in every run."""
        return torch.Generator(self.device).manual_seed(seed)
