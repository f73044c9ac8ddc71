"""The two backward kernels write gradients where they are told to: into tensors of their own or parts of a packed one.

`test_attention_one_pass.py` says so of the third.
"""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from maskgit_kernels.attention import triton_backward, triton_forward, triton_one_pass
from maskgit_kernels.attention.triton_op import heads_merged

SCALE = 0.3


@pytest.fixture(autouse=True)
def two_kernels(monkeypatch):
    monkeypatch.setattr(triton_one_pass, "takes", lambda *_: False)


def forward(shape, dtype, device, dropout_p=0.0):
    """What the backward kernels are given, up to the gradients that they write, for (B, H, Nq, Nk, D)."""
    batch, heads, queries, keys, dim = shape
    lengths = (queries, keys, keys, queries)
    q, k, v, grad = (torch.randn(batch, n, heads, dim, device=device).to(dtype).transpose(1, 2) for n in lengths)
    seed = torch.tensor(7, device=device) if dropout_p else None
    out, lse = heads_merged(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    triton_forward.forward(q, k, v, seed, dropout_p, SCALE, out, lse)
    return grad, q, k, v, out, lse, seed, dropout_p, SCALE


def packed(like, parts):
    """NaN [B, N, parts, H, D], and its parts as [B, H, N, D]."""
    batch, heads, length, dim = like.shape
    whole = like.new_empty(batch, length, parts, heads, dim)
    return whole, whole.permute(2, 0, 3, 1, 4).unbind(0)


@pytest.mark.parametrize(
    "shape, dtype, dropout_p",
    [((2, 2, 33, 33, 48), torch.bfloat16, 0.2), ((2, 3, 17, 17, 16), torch.float32, 0.0)],
    ids=str,
)
def test_parts_of_a_packed_gradient_get_the_same_bits(device, shape, dtype, dropout_p):
    given = forward(shape, dtype, device, dropout_p)
    separate = [heads_merged(x) for x in given[1:4]]
    triton_backward.backward(*given, *separate)
    whole, parts = packed(given[1], 3)
    triton_backward.backward(*given, *parts)
    for x, y in zip(parts, separate, strict=True):
        assert torch.equal(x, y)
    assert whole.isfinite().all()


def test_what_lies_between_stays_as_it_was(device):
    """Queries in one of three parts, and fewer of them than keys, which have two of four: the rest stays NaN."""
    given = forward((2, 2, 19, 40, 32), torch.float16, device)
    separate = [heads_merged(x) for x in given[1:4]]
    triton_backward.backward(*given, *separate)
    _, of_queries = packed(given[1], 3)
    _, of_keys = packed(given[2], 4)
    found = of_queries[1], of_keys[0], of_keys[3]
    triton_backward.backward(*given, *found)
    for x, y in zip(found, separate, strict=True):
        assert torch.equal(x, y)
    for untouched in (of_queries[0], of_queries[2], of_keys[1], of_keys[2]):
        assert untouched.isnan().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes too much memory")
@pytest.mark.parametrize("images", [1, 3])
def test_gradients_beyond_32_bits_in_the_interpreter(device, images):
    """Tokens so far apart that an index of the last token, or of the last image's first, does not fit into 32 bits."""
    given = forward((images, 1, 20, 20, 16), torch.float16, device)
    separate = [heads_merged(x) for x in given[1:4]]
    triton_backward.backward(*given, *separate)
    row = (2**31 // (19 if images == 1 else 20 * (images - 1)) + 16) // 16 * 16
    far = []
    for x in separate:
        memory = torch.UntypedStorage((20 * images * row) * 2)
        whole = torch.tensor([], dtype=torch.float16).set_(memory)
        far.append(whole.as_strided(x.shape, (20 * row, 16, row, 1)))
    triton_backward.backward(*given, *far)
    for x, y in zip(far, separate, strict=True):
        assert torch.equal(x, y)
