"""What the operators' launchers share."""

from __future__ import annotations

import torch


def math_for(dtype: torch.dtype) -> str:
    """What multiplies matrices of a dtype: "half" for float16 and bfloat16, and for float32 "tf32" (with tensor cores)
    or "ieee" (without), as PyTorch is set for its own products."""
    if dtype != torch.float32:
        return "half"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since PyTorch 2.9, where reading the older setting may raise
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


def precision(math: str) -> str:
    """What `tl.dot` calls it: its `input_precision` for what `math_for` returns."""
    return "tf32" if math == "tf32" else "ieee"
