"""What every suite is given: the device, how much time to take, and which implementations can be timed there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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

    def backends(self) -> list[str]:
        """Our implementations that can be timed here, the one that "auto" takes last."""
        # The interpreter computes what the kernels compute, but its time says nothing about them.
        if self.on_gpu and not backend.interpreting() and backend.why_not_triton(self.device) is None:
            return ["torch", "triton"]
        return ["torch"]

    def ours(self, prefix: str = "ours") -> dict[str, str]:
        """Names of our implementations, for `Comparison.implementations`: each with why it can't be timed here."""
        why = {name: "" for name in self.backends()}
        if "triton" not in why:
            why["triton"] = "there is no GPU here, so no figure of it exists"
            if self.on_gpu:
                reason = "TRITON_INTERPRET is set" if backend.interpreting() else backend.why_not_triton(self.device)
                why["triton"] = f"can't run here: {reason}"
        return {f"{prefix}_{name}": reason for name, reason in why.items()}

    def generator(self, seed: int = 0) -> torch.Generator:
        """Of random inputs, the same in every run."""
        return torch.Generator(self.device).manual_seed(seed)
