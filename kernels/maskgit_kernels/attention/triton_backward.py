"""Attention backward: gradients of the queries, then of keys and values, each a sum in one program's fixed order.

Weights are recomputed from the log-sum-exp that the forward pass left (Dao et al., "FlashAttention", 2022). Two kernels
instead of one compute the scores twice, and do without the atomic additions that would make the result depend on the
order in which programs happen to run.

With P the weights, M what dropout keeps of them, and c = 1 / (1 - dropout_p):

    out = c (M * P) v        delta = row sums of out * grad
    dv  = c (M * P)^T grad   dscores = P * (c M * (grad v^T) - delta) = c (M * P * (grad v^T) - P * delta / c)

so c stays out of the loops: the first kernel leaves delta / c, and the sums are multiplied by c at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgit_kernels.attention import triton_one_pass
from maskgit_kernels.attention.launch import builds_of, imposed, launch
from maskgit_kernels.attention.triton_dk_dv import attention_dk_dv_kernel
from maskgit_kernels.attention.triton_dq import attention_dq_kernel
from maskgit_kernels.backend import capability_of
from maskgit_kernels.build import Build
from maskgit_kernels.common import math_for


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Write the gradients: in one pass where `triton_one_pass.takes` that, else with the two kernels.

    Args:
        grad: that of out, [B, H, Nq, D], any strides.
        q, k, v, out, lse, seed, dropout_p, scale: what `triton_forward.forward` was given and has written.
        dq: [B, H, Nq, D]; dk, dv: [B, H, Nk, D]; strides (N * row, D, row, 1) with a `row` of at least H * D, which dk
            and dv share: a transposed contiguous [B, N, H, D], or a part of a packed [B, N, 3, H, D].
    """
    given = capability_of(q.device), q.shape[3], math_for(q.dtype), dropout_p > 0, q.shape[2], k.shape[2]
    if triton_one_pass.takes(*given) and not (imposed("dq") or imposed("dk_dv")):
        triton_one_pass.backward_one_pass(grad, q, k, v, out, lse, seed, dropout_p, scale, dq, dk, dv)
        return
    delta = torch.empty_like(lse)
    strides = (*q.stride(), *k.stride(), *v.stride(), *grad.stride())
    tensors = (q, k, v, out, grad, lse, delta, dq, seed)
    launch("dq", attention_dq_kernel, q, k, dropout_p, scale, tensors, (*strides, dq.stride(2)))
    tensors = (q, k, v, grad, lse, delta, dk, dv, seed)
    launch("dk_dv", attention_dk_dv_kernel, q, k, dropout_p, scale, tensors, (*strides, dk.stride(2)))


def builds(capability: int) -> list[Build]:
    """What is compiled for GPUs of some capability: every tiling, where it takes the most registers."""
    shipped = [(48, "half", False), (48, "half", True), (96, "half", True), (128, "half", True)]
    shipped += [(64, "half", False), (48, "tf32", True), (80, "tf32", True), (128, "ieee", True)]
    kernels = {"dq": attention_dq_kernel, "dk_dv": attention_dk_dv_kernel}
    return [build for name, kernel in kernels.items() for build in builds_of(name, kernel, capability, shipped)]
