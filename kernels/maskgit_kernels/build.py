"""What is compiled of a kernel: the modules that launch kernels list it in `builds(capability) -> list[Build]`.

`python -m benchmarks.compiled` in the repository compiles the lists for GPUs that need not be there, and reads from the
machine code what each will cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Build:
    """One kernel as it is shipped: what is compiled, and with which options."""

    name: str  # "attention forward, head_dim 48, bf16"
    kernel: Any  # the @triton.jit function, without an autotuner around it
    signature: dict[str, str]  # type of each argument that is not constexpr: "*bf16", "i32", "fp32", ...
    constants: dict[str, Any]  # value of each constexpr argument
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None  # per thread; None leaves them to the compiler
    aligned: tuple[str, ...] = ()  # integer arguments that are multiples of 16; pointers always are
    elements: int = 0  # scores, logits, ... that one pass of the main loop works on, or of the loop around it
    ideal_macs: int = 0  # multiply-adds of one pass of the main loop if nothing were padded; 0: no tensor-core work
