"""The public `head_sample`: validation, and the operator behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgit_kernels.backend import resolve
from maskgit_kernels.decode_step.settings import Settings, State, check_tensors, new_state
from maskgit_kernels.head_sample.eager import head_sample_eager


def head_sample(
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
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of iterative decoding from what goes into the LM head: `decode_step` on hidden @ weight.T + bias.

    Of the B x N x V logits only some are ever in memory: on a CPU those of some masked positions, on a GPU those of
    some images. With Triton no logit is in memory where a product that draws from its tiles is expected to be faster
    (`choice.py`), which takes masked positions only. Guidance takes one product, not two, because the head is linear:
    that of hidden + s * (hidden - guidance_hidden), in which the bias cancels.

    Everything `decode_step` says of noise and reproducibility holds here, but what is within rounding is the sum of a
    product too. Implementations add up in different orders, and so do Triton's two ways, of which one is chosen by the
    GPU, D, V and the number of positions in the batch; these sum and keep logits in float32. PyTorch rounds each to the
    dtype of `hidden`. So where two codes nearly tie, an image may get the one or the other.

    Under autocast hidden, guidance_hidden and weight are first cast to its dtype, as by `F.linear`.

    Args:
        hidden: [B, N, D], float32, float16, bfloat16 or float64 (PyTorch only): what the head multiplies. The sums are
            float32.
        weight: [V, D], of hidden's dtype.
        bias: [V] or, one for each position, [N, V], of any floating-point dtype; None for none. A code whose bias is
            -inf is impossible.
        tokens, masked, n_keep_masked, seeds, step: as for `decode_step`.
        softmax_temperature, choice_temperature, draw, confidence: as for `decode_step`. "perturbed" needs a row's
            softmax before it can compare: its logits always go through memory.
        guidance_hidden: a second hidden state, such as the unconditional model's, like `hidden`.
        guidance_scale: s in logits + s * (logits - guidance_logits); 0 is no guidance.
        backend: "auto", "triton" or "torch" for this call; see `maskgit_kernels.backend`.

    Returns, both contiguous:
        tokens: int64 [B, N], as from `decode_step`.
        masked: bool [B, N], as from `decode_step`.

    Raises:
        ValueError: an argument whose shape, dtype, device or value does not fit; where PyTorch computes on a CPU also
            a masked position whose logits hold NaN or leave no code possible (elsewhere looking would stop the host:
            such a position gets some valid code).
        RuntimeError: `backend` is "triton", where it can't run or for float64.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        guidance_hidden = None if guidance_hidden is None else guidance_hidden.to(dtype)
    if hidden.dim() != 3 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be [B, N, D] and floating-point, got {hidden.dtype} {list(hidden.shape)}")
    length, width = hidden.shape[1:]
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight must be [V, D] with at least one code, got shape {list(weight.shape)}")
    num_codes = len(weight)
    if bias is not None and not (bias.is_floating_point() and list(bias.shape) in ([num_codes], [length, num_codes])):
        raise ValueError(
            f"bias must be floating-point of shape [{num_codes}] or [{length}, {num_codes}], got {bias.dtype} "
            f"{list(bias.shape)}"
        )
    state = State(tokens, masked, n_keep_masked, seeds)
    check_tensors(
        state,
        "hidden is",
        hidden,
        weight=(weight, hidden.dtype, [num_codes, width]),
        bias=(bias, hidden.dtype if bias is None else bias.dtype, [] if bias is None else list(bias.shape)),
        guidance_hidden=(guidance_hidden, hidden.dtype, list(hidden.shape)),
    )
    settings = Settings(step, softmax_temperature, choice_temperature, draw, confidence, guidance_scale)
    settings.check()
    if guidance_scale != 0 and guidance_hidden is None:
        raise ValueError(f"guidance_scale is {guidance_scale}, but guidance_hidden is missing")
    compiled = torch.compiler.is_compiling()
    return _head_sample(hidden, guidance_hidden, weight, bias, *state, *settings, backend, compiled)


# One opaque operator, for the reasons that `decode_step` is one.
@torch.library.custom_op("maskgit_kernels::head_sample", mutates_args=())
def _head_sample(
    hidden: Tensor,
    guidance_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
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
    guidance_hidden = None if guidance_scale == 0 else guidance_hidden
    unsupported = "it does not take float64" if hidden.dtype == torch.float64 else None
    if resolve(backend, hidden.device, unsupported) == "triton":
        from maskgit_kernels.head_sample.launch import Head, head_sample_triton

        head = Head(hidden, guidance_hidden, weight, bias)
        with torch.cuda.device_of(hidden):  # Triton launches on the current device
            return head_sample_triton(head, state, settings, counters_may_outlive=not compiled)
    return head_sample_eager(hidden, guidance_hidden, weight, bias, state, settings)


@_head_sample.register_fake
def _(
    hidden: Tensor,
    guidance_hidden: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    masked: Tensor,
    *_: object,
) -> tuple[Tensor, Tensor]:
    return new_state(tokens, masked)
