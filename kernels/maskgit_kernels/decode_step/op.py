"""The public `decode_step`: validation, and the operator behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgit_kernels.backend import resolve
from maskgit_kernels.decode_step.eager import decode_step_eager
from maskgit_kernels.decode_step.settings import Settings, State, check_tensors, new_state


def decode_step(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    *,
    seeds: Tensor,
    step: int,
    num_codes: int | None = None,
    softmax_temperature: float = 1.0,
    choice_temperature: float = 0.0,
    draw: str = "categorical",
    confidence: str = "log_prob",
    guidance_logits: Tensor | None = None,
    guidance_scale: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of iterative decoding: sample every masked token, then keep all but the least confident ones.

    An image's result depends on its own row of every argument only: not on the batch, its place in it, the device or
    the implementation, except where two candidates tie within rounding. The noise is that of `maskgit_kernels.philox`,
    so a seed gives fresh noise at every step and position.

    Infinite logits mean what they say: -inf makes a code impossible (in the guidance logits too), +inf makes it
    certain, and several +inf share the probability. Logits at positions that are not masked are never looked at on a
    CPU, and have no influence elsewhere.

    Args:
        logits: [B, N, at least V], float32, float16, bfloat16 or float64; computed in float32.
        tokens: int64 [B, N]; what they hold where masked does not matter.
        masked: bool [B, N], True where a token is to be predicted.
        n_keep_masked: int64 [B], how many positions stay masked in each image, clamped to [0, number masked].
        seeds: int64 [B], each image's own; any value, negative ones included.
        step: index of the step, from 0; part of the noise's counter.
        num_codes: V. Columns from V on (the mask token) are cut off and can't be drawn. By default all columns count.
        softmax_temperature: divides the (guided) logits.
        choice_temperature: tau, the weight of the Gumbel noise on the confidence.
        draw: how a token is chosen from p, the softmax over its codes:
            "categorical": drawn from p (Gumbel-max with noise per code).
            "greedy": argmax of p; the lower code of equals.
            "perturbed": argmax over all codes of p + tau * Gumbel, whose maximum is the confidence (so it needs
            confidence="prob").
        confidence: "log_prob" for log p + tau * Gumbel of the chosen token, "prob" for p + tau * Gumbel.
        guidance_logits: a second set, such as the unconditional model's, like `logits`.
        guidance_scale: s in logits + s * (logits - guidance_logits), that is (1 + s) * logits - s * guidance_logits
            (Besnier & Chen, "A PyTorch reproduction of masked generative image transformer", 2023); 0 is no guidance.
        backend: "auto", "triton" or "torch" for this call; see `maskgit_kernels.backend`.

    Returns, both contiguous:
        tokens: int64 [B, N], the sample at every position that was masked on entry (those that stay masked included),
            the rest unchanged.
        masked: bool [B, N] with exactly n_keep_masked[b] True, the least confident of those masked on entry; of equals,
            the lower index stays masked.

    Raises:
        ValueError: an argument whose shape, dtype, device or value does not fit; where PyTorch computes on a CPU also
            logits that hold NaN or only -inf at a masked position (elsewhere looking would stop the host: such a
            position gets some valid code).
        RuntimeError: `backend` is "triton", where it can't run or for float64 logits.
    """
    if tokens.dim() != 2:
        raise ValueError(f"tokens must be [B, N], got shape {tuple(tokens.shape)}")
    batch, length = tokens.shape
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(f"logits must be [{batch}, {length}, V] to fit tokens, got shape {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating-point, got {logits.dtype}")
    state = State(tokens, masked, n_keep_masked, seeds)
    check_tensors(state, "logits are", logits, guidance_logits=(guidance_logits, logits.dtype, list(logits.shape)))
    columns = logits.shape[2]
    num_codes = columns if num_codes is None else num_codes
    if not 1 <= num_codes <= columns:
        raise ValueError(f"num_codes must be in [1, {columns}], the columns of logits, got {num_codes}")
    settings = Settings(step, softmax_temperature, choice_temperature, draw, confidence, guidance_scale)
    settings.check()
    if guidance_scale != 0 and guidance_logits is None:
        raise ValueError(f"guidance_scale is {guidance_scale}, but guidance_logits is missing")
    compiled = torch.compiler.is_compiling()
    return _decode_step(logits, guidance_logits, num_codes, *state, *settings, backend, compiled)


# One opaque operator, so that torch.compile and torch.export take a step as a whole: on a CPU its work depends on the
# data, and which implementation runs is settled where it runs.
@torch.library.custom_op("maskgit_kernels::decode_step", mutates_args=())
def _decode_step(
    logits: Tensor,
    guidance_logits: Tensor | None,
    num_codes: int,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    seeds: Tensor,
    step: int,
    softmax_temperature: float,
    choice_temperature: float,
    draw: str,
    confidence: str,
    guidance_scale: float,
    backend: str | None,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    state = State(tokens, masked, n_keep_masked, seeds)
    settings = Settings(step, softmax_temperature, choice_temperature, draw, confidence, guidance_scale)
    unsupported = "it does not take float64 logits" if logits.dtype == torch.float64 else None
    if resolve(backend, logits.device, unsupported) == "triton":
        from maskgit_kernels.decode_step.launch import decode_step_triton

        with torch.cuda.device_of(logits):  # Triton launches on the current device
            return decode_step_triton(
                logits, guidance_logits, num_codes, state, settings, counters_may_outlive=not compiled
            )
    return decode_step_eager(logits, guidance_logits, num_codes, state, settings)


@_decode_step.register_fake
def _(
    logits: Tensor, guidance_logits: Tensor | None, num_codes: int, tokens: Tensor, masked: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return new_state(tokens, masked)
