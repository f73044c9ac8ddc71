"""The Triton kernels of attention as PyTorch's operators: traced, compiled, exported, autocast, refused."""

import functools
import importlib.util

import pytest
import torch
from attention_checks import inputs, with_gradients
from torch._subclasses.fake_tensor import FakeTensorMode

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from maskgit_kernels.attention import attention as any_attention
from maskgit_kernels.attention.reference import attention_reference
from maskgit_kernels.attention.triton_op import attention_forward

attention = functools.partial(any_attention, backend="triton")


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_operators_pass_opcheck(device, dropout_p):
    seed = torch.tensor(3, device=device) if dropout_p else None
    q, k, v, grad = inputs((1, 2, 5, 18, 16), torch.float32, device)
    if dropout_p:
        q, k, v = torch.randn(1, 5, 3, 2, 16, device=device).permute(2, 0, 3, 1, 4).unbind(0)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    operators = torch.ops.maskgit_kernels
    torch.library.opcheck(operators.attention_forward.default, (*leaves, seed, dropout_p, 0.25))
    out, lse = attention_forward(q, k, v, seed, dropout_p, 0.25)
    grad = grad.transpose(1, 2)
    torch.library.opcheck(operators.attention_backward.default, (grad, q, k, v, out, lse, seed, dropout_p, 0.25))


def test_fake_tensors_have_the_real_strides(device):
    tensors = inputs((2, 3, 5, 9, 48), torch.bfloat16, device)
    expected = with_gradients(attention, tensors)
    with FakeTensorMode() as mode:
        found = with_gradients(attention, [mode.from_tensor(x) for x in tensors])
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.stride(), x.dtype, x.device) == (y.shape, y.stride(), y.dtype, y.device)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_meta_tensors(dropout_p):
    tensors = inputs((2, 3, 5, 9, 48), torch.bfloat16, "meta")
    found = with_gradients(functools.partial(any_attention, dropout_p=dropout_p, seed=1), tensors)
    q, k, v, _ = tensors
    assert [x.shape for x in found] == [q.shape, q.shape, k.shape, v.shape]


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_compiles_as_one_graph(device, dropout_p):
    tensors = inputs((1, 2, 20, 20, 16), torch.float32, device)
    seed = torch.tensor(5, device=device)

    def block(q, k, v):
        out = attention(q * 2, k, v, dropout_p=dropout_p, seed=seed)
        return out.transpose(1, 2).flatten(2).sin().unflatten(2, (2, 16)).transpose(1, 2)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for x, y in zip(with_gradients(compiled, tensors), with_gradients(block, tensors), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_exports(device, backend):
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return any_attention(q, k, v, backend=backend) * 2

    q, k, v, _ = inputs((1, 2, 20, 33, 16), torch.float32, device)
    program = torch.export.export(Module(), (q, k, v))
    targets = [str(node.target) for node in program.graph.nodes]
    assert ("maskgit_kernels.attention_forward.default" in targets) == (backend == "triton")
    torch.testing.assert_close(program.module()(q, k, v), 2 * any_attention(q, k, v, backend=backend))


def test_autocast_casts_the_inputs(device):
    q, k, v, _ = inputs((1, 2, 5, 18, 16), torch.float32, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = attention(q, k, v.half())
    assert torch.equal(out, attention(q.bfloat16(), k.bfloat16(), v.half().bfloat16()))


@pytest.mark.parametrize(
    "dim, dtype, message",
    [
        (20, torch.float32, "D must be a multiple of 16 up to 128, not 20: use 'auto' or 'torch'"),
        (144, torch.float32, "D must be a multiple of 16 up to 128, not 144"),
        (16, torch.float64, "no kernel for float64"),
    ],
)
def test_what_the_kernels_do_not_take(device, dim, dtype, message):
    q, k, v, _ = inputs((1, 2, 5, 5, dim), dtype, device)
    with pytest.raises(RuntimeError, match=message):
        attention(q, k, v)
    torch.testing.assert_close(any_attention(q, k, v, backend="auto"), attention_reference(q, k, v))
