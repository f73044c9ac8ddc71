import importlib

import pytest
import torch

from maskgit_kernels.attention import attention
from maskgit_kernels.attention.eager import attention_in_pieces
from maskgit_kernels.attention.reference import attention_reference, drops_in_256, keep_mask

SHAPES = [(2, 4, 16, 16, 32), (1, 2, 17, 17, 48), (3, 1, 5, 63, 16), (2, 3, 257, 111, 96), (1, 1, 1, 1, 128)]


def inputs(shape, dtype=torch.float32, seed=0):
    """q, k, v as the permuted views that a model has: [B, H, N, D] over memory laid out as [B, N, H, D]."""
    batch, heads, queries, keys, dim = shape
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, n, heads, dim, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)
        for n in (queries, keys, keys)
    ]


def error(x, y):
    """Root mean square difference. The largest one is too noisy to compare on small shapes: of two equally exact
    bfloat16 results, one in 30 has more than twice the other's."""
    return (x.double() - y.double()).square().mean().sqrt().item()


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_plain_pytorch(shape, dtype, dropout_p):
    """Output and gradients: an error of at most 1.5 times that of matmul, softmax, matmul in the same precision."""
    given = inputs(shape, dtype)
    weight = inputs(shape, dtype, seed=1)[0]

    def run(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, weight.to(dtype))]

    def plain(q, k, v):
        p = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        return (p * keep_mask(q, k, dropout_p, 7) / (1 - drops_in_256(dropout_p) / 256) if dropout_p else p) @ v

    exact = run(lambda q, k, v: attention_reference(q, k, v, dropout_p=dropout_p, seed=7), torch.float64)
    baseline = run(plain, dtype)
    ours = run(lambda q, k, v: attention(q, k, v, dropout_p=dropout_p, seed=7), dtype)
    without_gradients = attention(*given, dropout_p=dropout_p, seed=7)
    ours, baseline, exact = [without_gradients, *ours], [baseline[0], *baseline], [exact[0], *exact]
    for x, base, true in zip(ours, baseline, exact, strict=True):
        assert x.dtype == dtype
        assert error(x, true) <= 1.5 * error(base, true) + 1e-6


def test_reference_in_float32_matches_float64():
    q, k, v = inputs((2, 3, 33, 17, 48))
    exact = attention_reference(q.double(), k.double(), v.double())
    assert error(attention_reference(q, k, v), exact) < 1e-6


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("size", [1, 2 * 8 * 8 * 2, 3 * 2 * 8 * 8 * 2], ids=["heads", "images", "three images"])
def test_batches_are_cut_into_pieces_without_a_trace(monkeypatch, dropout_p, size):
    tensors = inputs((5, 2, 8, 8, 16), torch.bfloat16)

    def run():
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = attention(*leaves, dropout_p=dropout_p, seed=3)
        return [
            out,
            *torch.autograd.grad(out, leaves, torch.ones_like(out)),
            attention(*tensors, dropout_p=dropout_p, seed=3),
        ]

    whole = run()
    eager = importlib.import_module("maskgit_kernels.attention.eager")
    monkeypatch.setattr(eager, "_PIECE_BYTES", size)
    for part, expected in zip(run(), whole, strict=True):
        assert torch.equal(part, expected)


def test_packed_projection_is_read_in_place():
    packed = torch.randn(2, 9, 3, 4, 16)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    torch.testing.assert_close(attention(q, k, v), attention_reference(q, k, v))


def test_scale():
    q, k, v = inputs((1, 2, 6, 6, 16))
    torch.testing.assert_close(attention(q, k, v, scale=0.5), attention(q * 0.5 * 4, k, v))


def test_dropout_is_replayed_from_the_seed():
    q, k, v = inputs((2, 2, 40, 40, 16))
    out = attention(q, k, v, dropout_p=0.2, seed=-5)
    assert torch.equal(out, attention(q, k, v, dropout_p=0.2, seed=torch.tensor(-5)))
    assert not torch.equal(out, attention(q, k, v, dropout_p=0.2, seed=-4))
    kept = keep_mask(q, k, 0.2, -5).double()
    assert abs(kept.mean() - 0.8) < 5 * (0.16 / kept.numel()) ** 0.5
    assert not torch.equal(kept[0, 0], kept[0, 1]) and not torch.equal(kept[0, 0], kept[1, 0])


def test_autocast_casts_the_inputs():
    q, k, v = inputs((1, 2, 5, 5, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k, v.bfloat16())
    assert torch.equal(out, attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


def test_gradcheck():
    leaves = [x.double().requires_grad_() for x in inputs((1, 2, 3, 4, 16))]
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, dropout_p=0.3, seed=1), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_as_one_graph(dtype):
    q, k, v = inputs((2, 2, 8, 8, 16), dtype)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v), attention(q, k, v))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_operators_pass_opcheck(dropout, packed):
    operators = torch.ops.maskgit_kernels
    forward, backward = operators.attention_in_pieces.default, operators.attention_in_pieces_backward.default
    keep = torch.randint(2, (2, 2, 9, 9), dtype=torch.uint8) if dropout else None
    qkv = torch.randn(2, 9, 3, 2, 16, requires_grad=True)  # operators see strides
    given = (qkv, None, None) if packed else qkv.permute(2, 0, 3, 1, 4).unbind(0)
    torch.library.opcheck(forward, (*given, keep, 1.25, 0.25, True))
    with torch.no_grad():
        out, weights = attention_in_pieces(*given, keep, 1.25, 0.25, True)
        torch.library.opcheck(forward, (*given, keep, 1.25, 0.25, False))
        torch.library.opcheck(backward, (torch.randn_like(out), *given, weights, keep, 1.25, 0.25))


def test_empty_batch():
    q = torch.zeros(0, 2, 4, 16, dtype=torch.bfloat16)
    assert attention(q, q, q).shape == (0, 2, 4, 16)


Q = torch.zeros(2, 2, 4, 16)
WRONG = {
    "q must be \\[B, H, Nq, D\\]": dict(q=Q[0]),
    "k must be \\[2, 2, Nk, 16\\]": dict(k=torch.zeros(2, 2, 4, 8)),
    "v must be": dict(v=torch.zeros(2, 2, 5, 16)),
    "k must hold at least one token": dict(k=Q[:, :, :0], v=Q[:, :, :0]),
    "v is torch.bfloat16 on cpu, but q is torch.float32": dict(v=Q.bfloat16()),
    "k is torch.float32 on meta": dict(k=Q.to("meta")),
    "attention takes float32, .* got torch.int32": dict(q=Q.int(), k=Q.int(), v=Q.int()),
    "dropout_p must be in \\[0, 1\\), got 1": dict(dropout_p=1),
    "dropout_p = 0.1 needs a seed": dict(dropout_p=0.1),
    "seed must hold one int64, got torch.int64 of shape \\(2,\\)": dict(dropout_p=0.1, seed=torch.tensor([1, 2])),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_argument(message):
    with pytest.raises(ValueError, match=message):
        attention(**{"q": Q, "k": Q, "v": Q, **WRONG[message]})
