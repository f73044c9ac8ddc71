"""The lesson's kernel, on a GPU or in Triton's interpreter, against the reference in float64."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.plain_attention import plain_attention
from maskgit_kernels.attention.reference import attention_reference
from maskgit_kernels.interpreter import mend

mend()


def rms(x, y):
    return (x.double() - y).square().mean().sqrt().item()


def check(q, k, v):
    """At most twice the error of matrix product, softmax and matrix product in the same precision."""
    truth = attention_reference(q.double(), k.double(), v.double())
    plain = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
    found = plain_attention(q, k, v)
    assert found.dtype == q.dtype and found.shape == q.shape
    assert rms(found, truth) <= 2 * rms(plain, truth) + 2e-7


@pytest.mark.parametrize("length", [1, 31, 64, 65, 130])
@pytest.mark.parametrize("dtype, dim", [(torch.bfloat16, 16), (torch.float16, 64), (torch.float32, 32)], ids=str)
def test_as_exact_as_plain_pytorch(device, length, dtype, dim):
    check(*torch.randn(3, 2, 2, length, dim, device=device).to(dtype))


@pytest.mark.parametrize("largest", [300, -300])
def test_extreme_scores(device, largest):
    """Far beyond what exp can take, in either direction; the largest in size come last."""
    q, k, v = torch.randn(3, 1, 1, 70, 16, device=device)
    k = k.abs() * torch.linspace(largest / 2, largest, 70, device=device)[:, None]
    check(q.abs(), k, v)


def test_strides_do_not_matter(device):
    q, k, v = torch.randn(2, 20, 3, 2, 16, device=device).permute(2, 0, 3, 1, 4)
    assert torch.equal(plain_attention(q, k, v), plain_attention(q.contiguous(), k.contiguous(), v.contiguous()))


def test_empty_batch(device):
    q = torch.zeros(0, 2, 5, 16, device=device)
    assert plain_attention(q, q, q).shape == q.shape


def test_launches_on_the_device_of_the_tensors(device, launched_under):
    q = torch.randn(1, 1, 5, 16, device=device)
    plain_attention(q, q, q)
    if device.type == "cpu":
        assert [guard is q for guard in launched_under] == [True]


def test_what_it_does_not_take(device):
    q = torch.zeros(1, 2, 5, 48, device=device)
    with pytest.raises(ValueError, match=r"a D of 16, 32, 64 or 128, got \(1, 2, 5, 48\)"):
        plain_attention(q, q, q)
    q = torch.zeros(1, 2, 5, 32, device=device)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 32\)"):
        plain_attention(q, q[:, :, :4], q[:, :, :4])
