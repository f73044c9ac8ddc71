"""The public `head_loss`: validation, and the operator behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgit_kernels.head_loss.operator import head_loss_operator


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counted: Tensor,
    *,
    label_smoothing: float = 0.0,
    hits_among: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of masked visual token modeling (Chang et al., "MaskGIT", CVPR 2022, section 3.2), from what goes into
    the LM head: the cross-entropy of softmax(hidden @ weight.T + bias) and the targets, summed over some positions.

    Only these are computed, but for PyTorch's path on a GPU, and no tensor of B x N x V logits is made. The host never
    waits for a GPU. The loss can be differentiated once: by hidden, weight and bias, whose gradients are computed along
    with it unless gradients are off (`torch.no_grad`) or none of the three needs one.

    Under autocast hidden and weight are first cast to its dtype, as by `F.linear`.

    Args:
        hidden: [B, N, D], float32, float16, bfloat16 or float64 (PyTorch only): what the head multiplies. The sums are
            float32 (for float64, float64).
        weight: [V, D], of hidden's dtype.
        bias: [V] or, one for each position, [N, V], of any floating-point dtype; None for none.
        targets: int64 [B, N], codes in [0, V) where counted. Another number there is an error on a CPU. On a GPU, where
            looking would stop the host, it makes the loss NaN, and gives the gradient of a position without a target.
        counted: bool [B, N], the positions whose losses are summed. The others have no influence, even if they are NaN,
            and gradients of exactly 0.
        label_smoothing: in [0, 1]: the share of a target that is spread over all V codes, as by `F.cross_entropy`.
        hits_among: bool [B, N], of which of the counted positions the hits are counted; None for all of them.
        backend: "auto", "triton" or "torch" for this call; see `maskgit_kernels.backend`. Without tensor cores, so for
            float32 unless PyTorch is set to tf32, "auto" is PyTorch, whose products are then the faster ones.

    Returns:
        loss: float32 (for float64, float64) [], 0 if nothing is counted.
        hits: int64 [], the number of positions whose largest logit, of equals the first, is that of the target.

    Raises:
        ValueError: an argument whose shape, dtype, device or value does not fit.
        RuntimeError: `backend` is "triton", where it can't run or for float64.
    """
    device_type = hidden.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # which raises for "meta"
        dtype = torch.get_autocast_dtype(device_type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    hits_among = counted if hits_among is None else hits_among
    _check(hidden, weight, bias, targets, counted, hits_among, label_smoothing)
    gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    loss, hits, *_ = head_loss_operator(
        hidden, weight, bias, targets, counted, hits_among, float(label_smoothing), gradients, backend
    )
    return loss, hits


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counted: Tensor,
    hits_among: Tensor,
    label_smoothing: float,
) -> None:
    if hidden.dim() != 3 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be [B, N, D] and floating-point, got {hidden.dtype} {list(hidden.shape)}")
    batch, length, width = hidden.shape
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight must be [V, D] with at least one code, got shape {list(weight.shape)}")
    num_codes = len(weight)
    if bias is not None and (
        not bias.is_floating_point() or list(bias.shape) not in ([num_codes], [length, num_codes])
    ):
        raise ValueError(
            f"bias must be floating-point of shape [{num_codes}] or [{length}, {num_codes}], got {bias.dtype} "
            f"{list(bias.shape)}"
        )
    expected = {
        "weight": (weight, hidden.dtype, [num_codes, width]),
        "targets": (targets, torch.int64, [batch, length]),
        "counted": (counted, torch.bool, [batch, length]),
        "hits_among": (hits_among, torch.bool, [batch, length]),
    }
    if bias is not None:
        expected["bias"] = (bias, bias.dtype, list(bias.shape))
    for name, (tensor, dtype, shape) in expected.items():
        if list(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} of shape {shape}, got {tensor.dtype} {list(tensor.shape)}")
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, but hidden is on {hidden.device}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
