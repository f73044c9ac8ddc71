"""The Triton kernels of attention, on a GPU or in Triton's interpreter, against the reference in float64."""

import functools
import importlib.util
import itertools
import math

import pytest
import torch
from attention_checks import inputs, plain, rms, with_gradients

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from maskgit_kernels.attention import attention as any_attention
from maskgit_kernels.attention.reference import attention_reference, drops_in_256, keep_mask
from maskgit_kernels.attention.tiling import HEAD_DIMS
from maskgit_kernels.attention.triton_op import attention_forward

attention = functools.partial(any_attention, backend="triton")


def check(tensors, dropout_p=0.0, seed=None, scale=None):
    """Output and gradients: at most twice the error of plain PyTorch in the same precision."""
    options = dict(dropout_p=dropout_p, seed=seed, scale=scale)
    ours = with_gradients(functools.partial(attention, **options), tensors)
    base = with_gradients(functools.partial(plain, **options), tensors)
    exact = with_gradients(functools.partial(attention_reference, **options), tensors, torch.float64)
    for name, x, y, truth in zip(("out", "dq", "dk", "dv"), ours, base, exact, strict=True):
        assert x.dtype == tensors[0].dtype and x.shape == truth.shape
        assert rms(x, truth) <= 2 * rms(y, truth) + 2e-7, name


CASES = [
    ((1, 1, 1, 1, 16), torch.float32, 0.0),
    ((1, 1, 15, 17, 16), torch.bfloat16, 0.3),
    ((2, 2, 17, 15, 48), torch.float16, 0.0),
    ((1, 2, 63, 65, 48), torch.float32, 0.25),
    ((1, 1, 65, 63, 48), torch.bfloat16, 0.0),
    ((1, 1, 128, 40, 48), torch.bfloat16, 0.0),
    ((1, 1, 257, 257, 48), torch.bfloat16, 0.1),
    ((1, 2, 7, 90, 64), torch.float16, 0.5),
    ((2, 1, 64, 64, 80), torch.bfloat16, 0.0),
    ((1, 1, 90, 7, 96), torch.float32, 0.1),
    ((1, 1, 33, 80, 112), torch.bfloat16, 0.2),
    ((1, 1, 70, 33, 128), torch.float32, 0.0),
    # Rows that fill no block of 64 or 32, few and many, of queries and of keys.
    ((1, 1, 79, 113, 16), torch.bfloat16, 0.1),
    ((1, 1, 81, 97, 48), torch.float16, 0.2),
    ((1, 2, 1, 80, 32), torch.float32, 0.0),
    ((1, 1, 113, 80, 48), torch.bfloat16, 0.0),
    ((1, 1, 97, 81, 32), torch.float32, 0.3),
]


@pytest.mark.parametrize("shape, dtype, dropout_p", CASES, ids=str)
def test_as_exact_as_plain_pytorch(device, shape, dtype, dropout_p):
    check(inputs(shape, dtype, device), dropout_p, seed=2**40 + 3)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_extreme_scores(device, scale):
    """Scores far beyond what exp can take: most rows have one weight of 1.

    On sixteenths, the sums of products behind scores and weights' gradients are exact in any order, so that the bound
    needs no room for how a machine multiplies matrices.
    """
    tensors = [(x * 16).round() / 16 for x in inputs((1, 1, 20, 70, 32), torch.float32, device)]
    tensors[0] *= scale
    out, *gradients = with_gradients(attention, tensors)
    truth, *true_gradients = with_gradients(attention_reference, tensors, torch.float64)
    assert rms(out, truth) <= 2 * rms(plain(*tensors[:3]), truth) + 2e-7
    for x, y in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-3, atol=5e-7 * scale)
    assert attention(tensors[0] * 1e30, *tensors[1:3]).isfinite().all()


@pytest.mark.parametrize("scale", [0.7, 0.0, -0.4])
def test_scale(device, scale):
    check(inputs((1, 2, 9, 20, 16), torch.float32, device), scale=scale)


def strided(shape, device):
    """The same values in several layouts."""
    batch, heads, length, dim = shape
    packed = torch.randn(batch, length, 3, heads, dim, device=device)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    yield "packed projection", q, k, v
    yield "contiguous", *(x.contiguous() for x in (q, k, v))
    yield "columns far apart", *(x.mT.contiguous().mT for x in (q, k, v))
    yield "tokens first", *(x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for x in (q, k, v))
    every_other = torch.zeros(batch, heads, 2 * length, 2 * dim, device=device)[:, :, ::2, ::2]
    yield "every other", *(every_other.clone(memory_format=torch.preserve_format).copy_(x) for x in (q, k, v))


def test_any_strides_give_the_same_bits(device):
    (_, *first), *others = strided((2, 2, 20, 48), device)
    grad = torch.randn_like(first[0])
    expected = with_gradients(attention, [*first, grad])
    for name, *tensors in others:
        grad = grad.mT.contiguous().mT
        for x, y in zip(with_gradients(attention, [*tensors, grad]), expected, strict=True):
            assert torch.equal(x, y), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes too much memory; see test_offsets_beyond_32_bits")
@pytest.mark.parametrize("dim", [0, 1, 2, 3], ids=["images", "heads", "rows", "columns"])
def test_offsets_beyond_32_bits_in_the_interpreter(device, far_apart, dim):
    """Its integers wrap as a GPU's do."""
    tensors = inputs((2, 2, 20, 20, 16), torch.float16, device)
    far = [far_apart(x, dim) for x in tensors]
    for x, y in zip(with_gradients(attention, far), with_gradients(attention, tensors), strict=True):
        assert torch.equal(x, y)


def test_expanded_tensors(device):
    """Strides of 0, in the inputs and in the gradient that a sum sends back."""
    q, k, v, _ = inputs((1, 1, 20, 18, 16), torch.float32, device)
    leaves = [x.expand(2, 3, -1, -1).requires_grad_() for x in (q, k, v)]
    gradients = torch.autograd.grad(attention(*leaves).sum(), leaves)
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    expected = torch.autograd.grad(attention_reference(*doubles).sum(), doubles)
    for x, y in zip(gradients, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-6)


def test_merging_heads_needs_no_copy(device):
    for x in with_gradients(attention, inputs((2, 3, 5, 9, 48), torch.float32, device)):
        merged = x.transpose(1, 2).flatten(2)
        assert merged.data_ptr() == x.data_ptr() and merged.is_contiguous()


def test_batches_are_independent(device):
    q, k, v, _ = inputs((3, 2, 20, 33, 16), torch.float32, device)
    together = attention(q, k, v)
    for image in range(3):
        for head in range(2):
            one = (slice(image, image + 1), slice(head, head + 1))
            assert torch.equal(attention(q[one], k[one], v[one]), together[one])


def test_empty_batch(device):
    q = torch.zeros(0, 2, 4, 16, device=device, requires_grad=True)
    out = attention(q, q, q)
    out.sum().backward()
    assert out.shape == q.grad.shape == (0, 2, 4, 16)


def test_no_queries(device):
    q, k, v, _ = (x.requires_grad_() for x in inputs((1, 1, 0, 20, 16), torch.float32, device))
    out = attention(q, k, v)
    out.sum().backward()
    assert out.shape == (1, 1, 0, 16) and not k.grad.any() and not v.grad.any()


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_the_same_bits_every_time(device, dropout_p):
    tensors = inputs((2, 1, 70, 70, 32), torch.float16, device)
    run = functools.partial(with_gradients, functools.partial(attention, dropout_p=dropout_p, seed=8), tensors)
    assert all(torch.equal(x, y) for x, y in zip(run(), run(), strict=True))


# With q = 0 all weights are 1 / Nk, and what dropout does to each can be read off the results one by one.
@pytest.mark.parametrize(
    "dropout_p, seed, queries, keys", [(0.1, 0, 70, 100), (0.5, -7, 16, 128), (0.9, 2**63 - 1, 128, 24)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kernel_drops_the_same_weights_as_the_reference(device, dropout_p, seed, queries, keys, dtype):
    batch, heads, dim = 2, 1, 128
    zero = torch.zeros(batch, heads, queries, dim, dtype=dtype, device=device, requires_grad=True)
    one_hot = torch.eye(128, dtype=dtype, device=device).expand(batch, heads, 128, 128)
    k = one_hot[:, :, :keys].clone().requires_grad_()
    kept = keep_mask(zero, k, dropout_p, seed)  # [B, H, Nq, Nk]
    weight = 1 / keys / (1 - drops_in_256(dropout_p) / 256)
    close = functools.partial(torch.testing.assert_close, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0)

    v = one_hot[:, :, :keys].clone().requires_grad_()
    out = attention(zero, k, v, dropout_p=dropout_p, seed=seed)  # out[i, j] is the weight of key j
    close(out[..., :keys], (kept * weight).to(dtype))
    (dv,) = torch.autograd.grad(out, v, one_hot[:, :, :queries])  # dv[j, i] likewise
    close(dv[..., :queries].mT, (kept * weight).to(dtype))

    v = torch.zeros_like(k).index_fill(3, torch.tensor([0], device=device), 1)
    out = attention(zero, k, v, dropout_p=dropout_p, seed=seed)
    (dq,) = torch.autograd.grad(out, zero, torch.ones_like(out))  # dq[i, j] ~ kept[i, j] * c - mean of those
    assert torch.equal(dq[..., :keys] > 0, kept)


def test_dropout_near_its_limits(device):
    q, k, v, _ = inputs((1, 1, 20, 20, 16), torch.float32, device)
    assert torch.equal(attention(q, k, v, dropout_p=1e-6, seed=1), attention(q, k, v))
    for dropout_p in (1 - 1e-9, 1.6 / 256):  # only the byte 255 keeps, only 0 and 1 drop
        given = dict(dropout_p=dropout_p, seed=1)
        torch.testing.assert_close(attention(q, k, v, **given), attention_reference(q, k, v, **given))


def test_seeds_from_the_host_or_the_device(device):
    q, k, v, _ = inputs((1, 2, 20, 20, 16), torch.float32, device)
    run = functools.partial(attention, q, k, v, dropout_p=0.3)
    out = run(seed=-9)
    assert torch.equal(out, run(seed=torch.tensor(-9))) and torch.equal(
        out, run(seed=torch.tensor([-9], device=device))
    )
    assert not torch.equal(out, run(seed=-9 + 2**32))


def test_log_sum_exp(device):
    q, k, v, _ = inputs((1, 2, 18, 70, 32), torch.float32, device)
    _, lse = attention_forward(q, k, v, None, 0.0, 0.5)
    exact = torch.logsumexp(q.double() @ k.double().mT * 0.5, -1) / math.log(2)
    torch.testing.assert_close(lse.double(), exact, rtol=1e-6, atol=1e-6)


on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


class TestOnGpu:
    pytestmark = on_gpu
    LARGE = [
        (4, 16, 256, 256, 48),
        (4, 16, 257, 257, 48),
        (2, 8, 1025, 1025, 96),
        (3, 5, 100, 1000, 128),
        (2, 4, 512, 63, 80),
    ]

    @pytest.mark.parametrize("dropout_p", [0.0, 0.1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("shape", LARGE, ids=str)
    def test_large(self, device, shape, dtype, dropout_p):
        check(inputs(shape, dtype, device), dropout_p, seed=11)

    @pytest.mark.parametrize("head_dim", HEAD_DIMS)
    def test_every_head_dim(self, device, head_dim):
        for dtype in (torch.float32, torch.bfloat16):
            check(inputs((2, 3, 130, 145, head_dim), dtype, device), 0.2, seed=4)

    def test_tf32_follows_pytorch(self, device, request):
        tensors = inputs((2, 4, 257, 257, 48), torch.float32, device)
        before = torch.get_float32_matmul_precision()
        request.addfinalizer(lambda: torch.set_float32_matmul_precision(before))
        torch.set_float32_matmul_precision("highest")
        exact = with_gradients(attention, tensors)
        torch.set_float32_matmul_precision("high")
        check(tensors)
        truth = with_gradients(attention_reference, tensors, torch.float64)
        for rounded, x, y in zip(with_gradients(attention, tensors), exact, truth, strict=True):
            assert rms(rounded, y) > 10 * rms(x, y)

    def test_on_a_side_stream(self, device):
        tensors = inputs((4, 8, 257, 257, 48), torch.bfloat16, device)
        run = functools.partial(with_gradients, functools.partial(attention, dropout_p=0.1, seed=3), tensors)
        expected = run()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = run()
        stream.synchronize()
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))

    def test_in_a_cuda_graph_with_new_inputs_and_seeds(self, device):
        tensors = inputs((2, 8, 257, 257, 48), torch.bfloat16, device)
        seed = torch.tensor(1, device=device)
        run = functools.partial(with_gradients, functools.partial(attention, dropout_p=0.1, seed=seed), tensors)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for new_seed in (2, -3):
            seed.fill_(new_seed)
            for x in tensors:
                x.normal_()
            graph.replay()
            assert all(torch.equal(x, y) for x, y in zip(captured, run(), strict=True))

    def test_the_host_never_waits(self, device, request):
        tensors = inputs((2, 4, 130, 130, 48), torch.bfloat16, device)
        seed = torch.tensor(1, device=device)
        runs = [
            functools.partial(any_attention, dropout_p=0.1, seed=given, backend=backend)
            for given, backend in itertools.product((seed, 5), ("triton", "torch"))
        ]
        for run in runs:
            with_gradients(run, tensors)  # compiles
        request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
        torch.cuda.set_sync_debug_mode("error")
        for run in runs:
            with_gradients(run, tensors)

    def test_tuned(self, device, monkeypatch):
        monkeypatch.setenv("MASKGIT_AUTOTUNE", "1")
        for dtype in (torch.float32, torch.bfloat16):
            check(inputs((2, 4, 257, 257, 48), dtype, device), 0.1, seed=6)

    def test_offsets_beyond_32_bits(self, device):
        """Rows so far apart that an index into the last one does not fit into 32 bits."""
        row = 2**31 // 60
        if torch.cuda.mem_get_info()[0] < 3 * 2 * 70 * row:
            pytest.skip("not enough memory on the GPU")
        memory = torch.zeros(70 * row, dtype=torch.bfloat16, device=device)
        q, k, v, grad = (memory.as_strided((1, 1, 70, 48), (0, 0, row, 1), 64 * i).normal_() for i in range(4))
        found = with_gradients(attention, [q, k, v, grad])
        expected = with_gradients(attention, [x.contiguous() for x in (q, k, v, grad)])
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
