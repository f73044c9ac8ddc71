"""`attention_packed`: as `attention` of its three parts, with one gradient, in every implementation."""

import functools
import importlib.util
import itertools

import pytest
import torch
from attention_checks import plain, rms
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from maskgit_kernels import backend
from maskgit_kernels.attention import attention, attention_packed
from maskgit_kernels.attention.reference import attention_reference

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
BACKENDS = ["torch", pytest.param("triton", marks=needs_triton)]
NAMES = {"triton": "attention", "torch": "attention_in_pieces"}


def inputs(shape, dtype, device):
    """qkv of (B, N, H, D), and a gradient of the output."""
    batch, length, heads, dim = shape
    made = (torch.randn(batch, length, *parts, heads, dim, dtype=torch.float64) for parts in ((3,), ()))
    return [x.to(dtype).to(device) for x in made]


def unpacked(attend, qkv: Tensor, **options) -> Tensor:
    """By a function of queries, keys and values."""
    return attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0), **options).transpose(1, 2)


def with_gradient(function, qkv, grad, dtype=None):
    """[out, dqkv] of function(qkv), computed in `dtype`."""
    leaf = qkv.detach().to(dtype or qkv.dtype).requires_grad_()
    out = function(leaf)
    return [out, *torch.autograd.grad(out, leaf, grad.to(out.dtype))]


CASES = [
    ((2, 17, 2, 48), torch.bfloat16, 0.25),
    ((1, 33, 3, 32), torch.bfloat16, 0.0),
    ((2, 20, 1, 16), torch.float32, 0.3),
    ((1, 65, 2, 48), torch.float32, 0.0),
    ((1, 9, 2, 96), torch.float16, 0.1),
    ((3, 1, 2, 16), torch.float16, 0.0),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape, dtype, dropout_p", CASES, ids=str)
def test_as_exact_as_plain_pytorch(device, shape, dtype, dropout_p, backend):
    tensors = inputs(shape, dtype, device)
    options = dict(dropout_p=dropout_p, seed=2**40 + 3)
    ours = with_gradient(functools.partial(attention_packed, backend=backend, **options), *tensors)
    base = with_gradient(functools.partial(unpacked, plain, **options), *tensors)
    exact = with_gradient(functools.partial(unpacked, attention_reference, **options), *tensors, torch.float64)
    for name, x, y, truth in zip(("out", "dqkv"), ours, base, exact, strict=True):
        assert x.dtype == dtype and x.shape == truth.shape and x.is_contiguous()
        assert rms(x, truth) <= 2 * rms(y, truth) + 2e-7, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.7, 0.0, -0.4])
def test_scale(device, backend, scale):
    tensors = inputs((1, 9, 2, 16), torch.bfloat16, device)
    ours = with_gradient(functools.partial(attention_packed, backend=backend, scale=scale), *tensors)
    base = with_gradient(functools.partial(unpacked, plain, scale=scale), *tensors)
    exact = with_gradient(functools.partial(unpacked, attention_reference, scale=scale), *tensors, torch.float64)
    for x, y, truth in zip(ours, base, exact, strict=True):
        assert rms(x, truth) <= 2 * rms(y, truth) + 2e-7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_the_same_bits_as_attention_every_time(device, backend, dropout_p):
    tensors = inputs((2, 33, 2, 32), torch.bfloat16, device)
    options = dict(dropout_p=dropout_p, seed=torch.tensor(5, device=device), backend=backend)
    first, again = (with_gradient(functools.partial(attention_packed, **options), *tensors) for _ in range(2))
    parts = with_gradient(functools.partial(unpacked, attention, **options), *tensors)
    for x, y, z in zip(first, again, parts, strict=True):
        assert torch.equal(x, y) and torch.equal(x, z)


def layouts(qkv):
    yield "columns far apart", qkv.mT.contiguous().mT
    yield "heads outside", qkv.permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
    yield "part of a wider row", torch.cat([qkv, qkv], dim=2)[:, :, 3:]
    yield "every other", torch.repeat_interleave(qkv, 2, dim=1)[:, ::2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_give_the_same_bits(device, backend):
    qkv, grad = inputs((2, 18, 2, 48), torch.bfloat16, device)
    run = functools.partial(with_gradient, functools.partial(attention_packed, backend=backend))
    expected = run(qkv, grad)
    for name, other in layouts(qkv):
        found = run(other, grad.mT.contiguous().mT)
        assert found[1].is_contiguous(), name
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)), name


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes too much memory")
@pytest.mark.parametrize("dim", range(5), ids=["images", "rows", "parts", "heads", "columns"])
def test_offsets_beyond_32_bits_in_the_interpreter(device, far_apart, dim):
    """Reading; the gradient is contiguous."""
    qkv, grad = inputs((2, 10, 2, 16), torch.float16, device)
    run = functools.partial(with_gradient, functools.partial(attention_packed, backend="triton"))
    far = far_apart(qkv, dim).requires_grad_()
    out = attention_packed(far, backend="triton")
    found = [out, *torch.autograd.grad(out, far, grad)]
    assert all(torch.equal(x, y) for x, y in zip(found, run(qkv, grad), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(device, backend):
    qkv = torch.zeros(0, 4, 3, 2, 16, device=device, dtype=torch.bfloat16, requires_grad=True)
    out = attention_packed(qkv, backend=backend)
    out.sum().backward()
    assert out.shape == (0, 4, 2, 16) and qkv.grad.shape == qkv.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_the_input(device, backend):
    qkv, grad = inputs((1, 18, 2, 16), torch.float32, device)
    half = qkv.bfloat16()
    expected = with_gradient(functools.partial(attention_packed, backend=backend), half, grad)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = with_gradient(functools.partial(attention_packed, backend=backend), qkv, grad)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1].float())


def test_meta_tensors():
    qkv, grad = inputs((2, 5, 3, 48), torch.bfloat16, "meta")
    for dropout_p in (0.0, 0.1):
        out, dqkv = with_gradient(functools.partial(attention_packed, dropout_p=dropout_p, seed=1), qkv, grad)
        assert out.shape == grad.shape and dqkv.shape == qkv.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_fake_tensors_have_the_real_strides(device, backend):
    tensors = inputs((2, 5, 3, 48), torch.bfloat16, device)
    run = functools.partial(with_gradient, functools.partial(attention_packed, backend=backend))
    with FakeTensorMode() as mode:
        found = run(*map(mode.from_tensor, tensors))
    for x, y in zip(found, run(*tensors), strict=True):
        assert (x.shape, x.stride(), x.dtype, x.device) == (y.shape, y.stride(), y.dtype, y.device)


@needs_triton
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_operators_pass_opcheck(device, dropout_p):
    from maskgit_kernels.attention.triton_op import attention_forward

    qkv, grad = inputs((1, 5, 2, 16), torch.float32, device)
    seed, operators = torch.tensor(3, device=device) if dropout_p else None, torch.ops.maskgit_kernels
    for given in (qkv, next(x for _, x in layouts(qkv))):
        leaf = given.clone().requires_grad_()
        torch.library.opcheck(operators.attention_forward.default, (leaf, None, None, seed, dropout_p, 0.25))
        kept = given, None, None, *attention_forward(given, None, None, seed, dropout_p, 0.25), seed
        torch.library.opcheck(operators.attention_backward.default, (grad, *kept, dropout_p, 0.25))


def training_step(qkv, grad, seed, backend):
    out = attention_packed(qkv * 2, dropout_p=0.2, seed=seed, backend=backend)
    return torch.autograd.grad(out.flatten(2).sin(), qkv, grad.flatten(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_both_passes_puts_nothing_together(device, backend):
    """Neither gradients of three parts nor anything else."""
    qkv, grad = inputs((1, 5, 2, 16), torch.bfloat16, device)
    step = functools.partial(training_step, backend=backend)
    graph = make_fx(step, tracing_mode="fake")(qkv.requires_grad_(), grad, torch.tensor(1, device=device)).graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    operator = NAMES[backend] + ("_forward" if backend == "triton" else "")
    assert f"maskgit_kernels.{operator}.default" in names
    assert f"maskgit_kernels.{NAMES[backend]}_backward.default" in names
    if backend == "triton":  # in PyTorch, random words are put together
        assert not {"aten.stack.default", "aten.cat.default"} & set(names)
        assert not [name for name in names if "copy" in name or "clone" in name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(device, backend):
    qkv, grad = inputs((1, 20, 2, 16), torch.float32, device)
    seed = torch.tensor(5, device=device)

    def block(qkv):
        return attention_packed(qkv * 2, dropout_p=0.2, seed=seed, backend=backend).sin()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for x, y in zip(with_gradient(compiled, qkv, grad), with_gradient(block, qkv, grad), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exports(device, backend):
    class Module(torch.nn.Module):
        def forward(self, qkv):
            return attention_packed(qkv, backend=backend) * 2

    qkv, _ = inputs((1, 20, 2, 16), torch.bfloat16, device)
    program = torch.export.export(Module(), (qkv,))
    names = [str(node.target) for node in program.graph.nodes]
    assert ("maskgit_kernels.attention_forward.default" in names) == (backend == "triton")
    torch.testing.assert_close(program.module()(qkv), 2 * attention_packed(qkv, backend=backend))


@needs_triton
def test_launches_on_the_device_of_the_tensors(launched_under):
    """The interpreter has one device only; which one was made the current one is what can be seen."""
    qkv, grad = inputs((1, 5, 1, 16), torch.float32, "cpu")
    with_gradient(functools.partial(attention_packed, backend="triton"), qkv, grad)
    assert len(launched_under) >= 2 and all(x is not None and x.device == qkv.device for x in launched_under)


def test_auto_leaves_exact_float32_to_pytorch(monkeypatch, request):
    """Unless weights are dropped: dropout that is written out is slower still."""
    if torch.cuda.is_available():
        pytest.skip("stands in for a GPU")
    asked = []
    resolve = backend.resolve
    monkeypatch.setattr(backend, "_why_not_triton", lambda *_: None)

    def on_a_gpu(name, device, unsupported, slower):
        asked.append(resolve(name, torch.device("cuda"), unsupported, slower))
        return "torch"

    monkeypatch.setattr("maskgit_kernels.attention.op.resolve", on_a_gpu)
    request.addfinalizer(functools.partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
    for precision, dtype in itertools.product(("highest", "high"), (torch.float32, torch.bfloat16)):
        torch.set_float32_matmul_precision(precision)
        for dropout_p, name in itertools.product((0.0, 1e-9, 0.1), ("auto", "triton")):
            attention_packed(inputs((1, 2, 1, 16), dtype, "cpu")[0], dropout_p=dropout_p, seed=1, backend=name)
            exact = precision == "highest" and dtype == torch.float32 and dropout_p < 0.1
            assert asked.pop() == ("torch" if exact and name == "auto" else "triton"), (precision, dtype, dropout_p)


QKV = torch.zeros(2, 4, 3, 2, 16)
WRONG = {
    r"qkv must be \[B, N, 3, H, D\] with at least one token, got shape \(4, 3, 2, 16\)": dict(qkv=QKV[0]),
    r"qkv must be .* got shape \(2, 4, 2, 2, 16\)": dict(qkv=QKV[:, :, :2]),
    r"qkv must be .* got shape \(2, 0, 3, 2, 16\)": dict(qkv=QKV[:, :0]),
    "attention takes float32, float16, bfloat16 and float64, got torch.int64": dict(qkv=QKV.long()),
    r"dropout_p must be in \[0, 1\), got -0.1": dict(dropout_p=-0.1),
    "dropout_p = 0.1 needs a seed": dict(dropout_p=0.1),
    "seed must hold one int64, got torch.int32": dict(dropout_p=0.1, seed=torch.tensor(1, dtype=torch.int32)),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_argument(message):
    with pytest.raises(ValueError, match=message):
        attention_packed(**{"qkv": QKV, **WRONG[message]})


@needs_triton
def test_what_the_kernels_do_not_take(device):
    qkv = torch.zeros(1, 5, 3, 2, 20, device=device)
    with pytest.raises(RuntimeError, match="D must be a multiple of 16 up to 128, not 20: use 'auto' or 'torch'"):
        attention_packed(qkv, backend="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestOnGpu:
    OPTIONS = dict(dropout_p=0.1, backend="triton")

    def run(self, tensors, seed):
        return with_gradient(functools.partial(attention_packed, seed=seed, **self.OPTIONS), *tensors)

    @pytest.mark.parametrize("shape", [(4, 256, 16, 48), (4, 257, 16, 48), (2, 1025, 8, 96)], ids=str)
    def test_large(self, device, shape):
        tensors = inputs(shape, torch.bfloat16, device)
        options = dict(dropout_p=0.1, seed=3)
        found = self.run(tensors, 3)
        base = with_gradient(functools.partial(unpacked, plain, **options), *tensors)
        exact = with_gradient(functools.partial(unpacked, attention_reference, **options), *tensors, torch.float64)
        for x, y, truth in zip(found, base, exact, strict=True):
            assert rms(x, truth) <= 2 * rms(y, truth)
        assert all(torch.equal(x, y) for x, y in zip(found, self.run(tensors, 3), strict=True))

    def test_on_a_side_stream(self, device):
        tensors = inputs((4, 257, 8, 48), torch.bfloat16, device)
        expected = self.run(tensors, 3)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = self.run(tensors, 3)
        stream.synchronize()
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))

    def test_in_a_cuda_graph_with_new_inputs_and_seeds(self, device):
        tensors, seed = inputs((2, 257, 8, 48), torch.bfloat16, device), torch.tensor(1, device=device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(tensors, seed)  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = self.run(tensors, seed)
        for new_seed in (2, -3):
            seed.fill_(new_seed)
            for x in tensors:
                x.normal_()
            graph.replay()
            assert all(torch.equal(x, y) for x, y in zip(captured, self.run(tensors, seed), strict=True))

    def test_the_host_never_waits(self, device, request):
        tensors, seed = inputs((2, 130, 4, 48), torch.bfloat16, device), torch.tensor(1, device=device)
        self.run(tensors, seed)  # compiles
        request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
        torch.cuda.set_sync_debug_mode("error")
        self.run(tensors, seed)
        self.run(tensors, 5)
