"""The LM head and a decoding step as they are meant: the specification that every implementation is tested against."""

from __future__ import annotations

from torch import Tensor

from maskgit_kernels.decode_step.reference import decode_step_reference


def head_sample_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    *,
    seeds: Tensor,
    step: int,
    softmax_temperature: float = 1.0,
    choice_temperature: float = 0.0,
    draw: str = "categorical",
    confidence: str = "log_prob",
    guidance_hidden: Tensor | None = None,
    guidance_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """See `head_sample` for the arguments, results and errors."""

    def logits(hidden: Tensor) -> Tensor:  # [B, N, D] -> [B, N, V]
        products = hidden.float() @ weight.float().T
        return products if bias is None else products + bias.float()

    return decode_step_reference(
        logits(hidden),
        tokens,
        masked,
        n_keep_masked,
        seeds=seeds,
        step=step,
        softmax_temperature=softmax_temperature,
        choice_temperature=choice_temperature,
        draw=draw,
        confidence=confidence,
        guidance_logits=None if guidance_hidden is None else logits(guidance_hidden),
        guidance_scale=guidance_scale,
    )
