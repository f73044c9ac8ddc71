"""What the tests of attention share: inputs as a model has them, gradients, plain PyTorch to compare with."""

import torch

from maskgit_kernels.attention.reference import drops_in_256, keep_mask


def inputs(shape, dtype, device, scale=1.0):
    """q, k, v and a gradient of the output as views of a model's memory: [B, H, N, D] over [B, N, H, D]."""
    batch, heads, queries, keys, dim = shape
    made = [torch.randn(batch, n, heads, dim, dtype=torch.float64) for n in (queries, keys, keys, queries)]
    return [(x * scale).to(dtype).to(device).transpose(1, 2) for x in made]


def with_gradients(function, tensors, dtype=None):
    """[out, dq, dk, dv] of function(q, k, v), computed in `dtype`."""
    *leaves, grad = (x.detach().to(dtype or x.dtype) for x in tensors)
    leaves = [x.requires_grad_() for x in leaves]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def plain(q, k, v, dropout_p=0.0, seed=None, scale=None):
    """Matrix product, softmax, matrix product, in the inputs' precision."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(q @ k.transpose(-1, -2) * scale, -1)
    if dropout_p:
        weights = weights * keep_mask(q, k, dropout_p, seed) / (1 - drops_in_256(dropout_p) / 256)
    return weights @ v


def rms(x, y):
    return (x.double() - y.double()).square().mean().sqrt().item()
