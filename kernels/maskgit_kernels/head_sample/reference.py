"""The LM head and a decoding step as they are meant: the specification that every implementation is tested against."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskgit_kernels.decode_step.reference import decode_step_reference


def head_sample_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *state: Tensor,
    guidance_hidden: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """See `head_sample` for the arguments, results and errors; `state` and `options` are those of a decoding step."""

    def logits(hidden: Tensor) -> Tensor:  # [B, N, D] -> [B, N, V]
        products = hidden.float() @ weight.float().T
        return products if bias is None else products + bias.float()

    guidance_logits = None if guidance_hidden is None else logits(guidance_hidden)
    return decode_step_reference(logits(hidden), *state, guidance_logits=guidance_logits, **options)
