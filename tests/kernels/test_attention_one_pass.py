"""The one-pass backward kernel of attention, by itself: whatever `takes` prefers."""

import functools
import importlib.util

import pytest
import torch
from attention_checks import inputs, plain, rms, with_gradients

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from maskgit_kernels.attention import triton_backward, triton_one_pass
from maskgit_kernels.attention.reference import attention_reference, drops_in_256, keep_mask
from maskgit_kernels.attention.triton_forward import forward
from maskgit_kernels.attention.triton_one_pass import backward_one_pass, takes

NAMES = ("dq", "dk", "dv")


def rows_of(x, parts=1):
    """A new [B, H, N, D] whose rows lie in memory as those of the first of `parts` tensors in a packed one."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, parts, heads, dim)[:, :, 0].transpose(1, 2)


def ours(tensors, dropout_p=0.0, seed=None, scale=None, backward=backward_one_pass, into=None):
    """[dq, dk, dv] by one of the backward functions, after the forward kernel."""
    q, k, v, grad = tensors
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dropout_p = drops_in_256(dropout_p) / 256
    seed = None if seed is None else torch.tensor([seed], device=q.device)
    out, lse = rows_of(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    forward(q, k, v, seed, dropout_p, scale, out, lse)
    gradients = into or [rows_of(x) for x in (q, k, v)]
    backward(grad, q, k, v, out, lse, seed, dropout_p, scale, *gradients)
    return gradients


def check(tensors, **options):
    """At most twice the error of plain PyTorch in the same precision."""
    found = ours(tensors, **options)
    _, *base = with_gradients(functools.partial(plain, **options), tensors)
    _, *exact = with_gradients(functools.partial(attention_reference, **options), tensors, torch.float64)
    for name, x, y, truth in zip(NAMES, found, base, exact, strict=True):
        assert rms(x, truth) <= 2 * rms(y, truth) + 2e-7, name


CASES = [
    ((1, 1, 1, 1, 16), torch.bfloat16, 0.0),
    ((2, 1, 15, 15, 16), torch.float16, 0.3),
    ((1, 2, 16, 16, 48), torch.bfloat16, 0.0),
    ((1, 1, 17, 17, 32), torch.bfloat16, 0.1),
    ((2, 2, 63, 63, 48), torch.float16, 0.0),
    ((1, 1, 64, 64, 48), torch.bfloat16, 0.25),
    ((1, 1, 65, 65, 48), torch.float16, 0.5),
    ((1, 2, 100, 100, 16), torch.bfloat16, 0.0),
    ((1, 1, 128, 128, 48), torch.bfloat16, 0.1),
    ((1, 1, 129, 129, 48), torch.bfloat16, 0.1),  # one query and one key beyond whole blocks
    ((1, 1, 144, 144, 16), torch.float16, 0.2),  # as many queries as a small block holds
    ((1, 1, 145, 145, 16), torch.float16, 0.0),  # and one more
    ((1, 1, 200, 200, 48), torch.float16, 0.2),
    ((1, 1, 256, 256, 48), torch.bfloat16, 0.1),
    ((1, 1, 257, 257, 48), torch.bfloat16, 0.1),
    ((1, 1, 272, 272, 32), torch.bfloat16, 0.0),
    # Other numbers of keys than of queries.
    ((1, 1, 40, 7, 48), torch.float16, 0.1),
    ((1, 1, 130, 81, 48), torch.bfloat16, 0.0),
    ((1, 1, 3, 66, 32), torch.bfloat16, 0.3),
]


@pytest.mark.parametrize("shape, dtype, dropout_p", CASES, ids=str)
def test_as_exact_as_plain_pytorch(device, shape, dtype, dropout_p):
    check(inputs(shape, dtype, device), dropout_p=dropout_p, seed=2**40 + 3)


@pytest.mark.parametrize("scale", [0.7, 0.01])
def test_scale(device, scale):
    check(inputs((1, 2, 20, 20, 16), torch.float16, device), scale=scale)


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_extreme_scores(device, size):
    """Most rows have one weight of 1, and their log-sum-exp is far from 0: a key or a query that is not there would
    get an infinite weight."""
    tensors = inputs((1, 1, 145, 145, 32), torch.bfloat16, device)
    tensors[0] *= size
    _, *exact = with_gradients(attention_reference, tensors, torch.float64)
    _, *base = with_gradients(plain, tensors)
    for name, x, y, truth in zip(NAMES, ours(tensors), base, exact, strict=True):
        assert rms(x, truth) <= 2 * rms(y, truth) + 2e-7, name


@pytest.mark.parametrize("length", [40, 130])
def test_negative_scores_leave_absent_keys_without_weight(device, length):
    """All scores are far below 0, where an absent key, whose score would be 0, outweighs all that are there."""
    q = torch.full((1, 1, length, 16), 30.0, dtype=torch.float16, device=device)
    k = -q[:, :, :21] + torch.randn(1, 1, 21, 16, device=device).half() / 8
    v, grad = torch.randn_like(k), torch.randn_like(q)
    check([q, k, v, grad])


@pytest.mark.parametrize("length", [70, 129])
def test_drops_what_the_two_kernels_drop(device, length):
    """With q and k of zeros all weights are alike, so that dv counts, exactly, the queries that keep a key."""
    zeros = torch.zeros(1, 2, length, 16, dtype=torch.float16, device=device)
    grad = (
        torch.eye(16, device=device).half().repeat(1, 2, 9, 1)[:, :, :length]
    )  # tells queries apart by their place in 16
    tensors = [zeros, zeros, torch.randn_like(zeros), grad]
    for x, y in zip(ours(tensors, 0.4, 5), ours(tensors, 0.4, 5, backward=two_kernels), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=1e-3)
    counts = ours(tensors, 0.4, 5)[2].double() * length * (1 - drops_in_256(0.4) / 256)
    kept = keep_mask(zeros, zeros, 0.4, 5).double()
    expected = kept.transpose(-1, -2) @ tensors[3].double()
    assert torch.equal(counts.round(), expected)


def two_kernels(*arguments):
    """The backward pass by the two kernels, whatever `takes` says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_one_pass, "takes", lambda *_: False)
        triton_backward.backward(*arguments)


def strided(shape, device):
    """The same values in several layouts."""
    batch, heads, length, dim = shape
    packed = torch.randn(batch, length, 3, heads, dim, device=device).half()
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    yield "packed projection", q, k, v
    yield "contiguous", *(x.contiguous() for x in (q, k, v))
    yield "columns far apart", *(x.mT.contiguous().mT for x in (q, k, v))
    yield "tokens first", *(x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for x in (q, k, v))
    every_other = torch.zeros(batch, heads, 2 * length, 2 * dim, device=device).half()[:, :, ::2, ::2]
    yield "every other", *(every_other.clone(memory_format=torch.preserve_format).copy_(x) for x in (q, k, v))


def test_any_strides_give_the_same_bits(device):
    (_, *first), *others = strided((2, 2, 20, 48), device)
    grad = torch.randn_like(first[0])
    expected = ours([*first, grad])
    for name, *tensors in others:
        grad = grad.mT.contiguous().mT
        for x, y in zip(ours([*tensors, grad]), expected, strict=True):
            assert torch.equal(x, y), name


@pytest.mark.parametrize("length", [20, 129])
def test_writes_its_part_of_a_packed_gradient_and_nothing_else(device, length):
    tensors = inputs((2, 3, length, length, 48), torch.bfloat16, device)
    packed = torch.full((2, length, 5, 3, 48), 7.0, device=device, dtype=torch.bfloat16)
    into = [packed[:, :, i].transpose(1, 2) for i in (1, 2, 3)]
    found = ours(tensors, 0.1, 3, into=into)
    for x, y in zip(found, ours(tensors, 0.1, 3), strict=True):
        assert torch.equal(x, y)
    assert (packed[:, :, [0, 4]] == 7).all()


def test_queries_and_keys_may_have_rows_of_different_lengths(device):
    tensors = inputs((2, 2, 30, 20, 16), torch.bfloat16, device)
    q, k, v, _ = tensors
    found = ours(tensors, into=[rows_of(q, 2), rows_of(k, 3), rows_of(v, 3)])
    for x, y in zip(found, ours(tensors), strict=True):
        assert torch.equal(x, y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes too much memory")
@pytest.mark.parametrize("dim", [0, 1, 2, 3], ids=["images", "heads", "rows", "columns"])
def test_offsets_beyond_32_bits_in_the_interpreter(device, far_apart, dim):
    """Its integers wrap as a GPU's do. Three images and heads, so that not the stride, but a multiple is too large."""
    tensors = inputs((3, 3, 20, 20, 16), torch.float16, device)
    far = [far_apart(x, dim) for x in tensors]
    for x, y in zip(ours(far), ours(tensors), strict=True):
        assert torch.equal(x, y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes too much memory")
def test_gradients_may_lie_far_apart_in_the_interpreter(device, far_apart):
    tensors = inputs((2, 2, 20, 20, 16), torch.float16, device)
    expected = ours(tensors)
    rows = 2**31 // 19 + 1
    storage = [torch.UntypedStorage((40 * rows + 64) * 2, device=device) for _ in NAMES]
    into = [
        torch.tensor([], dtype=torch.float16, device=device)
        .set_(x)
        .as_strided((2, 2, 20, 16), (20 * rows, 16, rows, 1))
        for x in storage
    ]
    for x, y in zip(ours(tensors, into=into), expected, strict=True):
        assert torch.equal(x, y)


def test_images_and_heads_do_not_depend_on_each_other(device):
    """Without dropout, whose noise goes by the place in the batch."""
    tensors = inputs((3, 2, 33, 33, 48), torch.bfloat16, device)
    expected = ours(tensors)
    for x, y in zip(ours([x[1:2, 1:] for x in tensors]), expected, strict=True):
        assert torch.equal(x, y[1:2, 1:])


def test_same_bits_every_time(device):
    tensors = inputs((2, 2, 70, 70, 48), torch.bfloat16, device)
    expected = ours(tensors, 0.1, 1)
    for x, y in zip(ours(tensors, 0.1, 1), expected, strict=True):
        assert torch.equal(x, y)


def test_runs_on_the_device_of_its_inputs(launched_under, device):
    if device.type != "cpu":
        pytest.skip("for the interpreter")
    tensors = inputs((1, 1, 9, 9, 16), torch.float16, device)
    ours(tensors)
    assert launched_under[-1] is tensors[0]


class TestTakes:
    @pytest.mark.parametrize("dropout", [False, True])
    def test_the_embedded_models_shape_on_hopper(self, monkeypatch, dropout):
        monkeypatch.setattr(triton_one_pass, "interpreting", lambda: False)
        assert takes(90, 48, "half", dropout, 256, 256)

    def test_what_it_can_not_do_anywhere(self):
        for length in (0, 273, 1025):
            assert not takes(90, 48, "half", True, length, length)
        for math in ("tf32", "ieee"):
            assert not takes(90, 48, math, False, 256, 256)

    def test_short_lengths_are_taken_where_tests_run(self):
        if not triton_one_pass.interpreting():
            pytest.skip("on a GPU only what is faster is taken")
        assert all(takes(80, 48, "half", True, length, length) for length in range(1, 273))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("length", [256, 257])
def test_replays_in_a_graph_and_beside_other_streams(device, length):
    tensors = inputs((4, 16, length, length, 48), torch.bfloat16, device)
    expected = ours(tensors)
    q, k, v, grad = tensors
    out, lse = rows_of(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    forward(q, k, v, None, 0.0, 48**-0.5, out, lse)
    graph, into = torch.cuda.CUDAGraph(), [rows_of(x) for x in (q, k, v)]
    with torch.cuda.graph(graph):
        backward_one_pass(grad, q, k, v, out, lse, None, 0.0, 48**-0.5, *into)
    graph.replay()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        beside = ours(tensors)
    torch.cuda.synchronize()
    for x, y, z in zip(into, beside, expected, strict=True):
        assert torch.equal(x, z) and torch.equal(y, z)
