"""Dropout: the distribution and the interface of PyTorch's."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from maskgit.network.dropout import Dropout, random_int64

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_drops_a_share_and_scales_the_rest(dtype: torch.dtype, p: float) -> None:
    x = torch.full((40, 25, 37), 3.0, dtype=dtype)
    out = Dropout(p).train()(x)
    assert out.dtype == dtype
    dropped = out == 0
    share, deviation = dropped.double().mean(), (p * (1 - p) / x.numel()) ** 0.5
    assert abs(share - p) < 5 * deviation
    for dimension in (0, 1, 2):  # no row, column or image is treated otherwise
        others = [other for other in (0, 1, 2) if other != dimension]
        shares = dropped.double().mean(others)
        assert (shares - p).abs().max() < 6 * deviation * len(shares) ** 0.5
    torch.testing.assert_close(out[~dropped].double().mean().item(), 3 / (1 - p), rtol=1e-2, atol=0)


def test_gradients_go_where_values_went() -> None:
    x = torch.ones(64, 48, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach())


def test_noise_follows_the_seed() -> None:
    dropout, x = Dropout(0.5), torch.ones(16, 16)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and torch.equal(dropout(x), second)


def test_activation_checkpointing_replays_it() -> None:
    dropout, x = Dropout(0.5), torch.ones(16, 16, requires_grad=True)
    out = checkpoint(lambda x: dropout(x).exp(), x, use_reentrant=False)  # the gradient needs the mask again
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient != 0, out != 1)


def test_nothing_happens_in_evaluation_or_without_dropout() -> None:
    x = torch.randn(4, 8)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(4, 8))
    assert Dropout(0.5)(torch.empty(0, 8)).shape == (0, 8)


def test_bits_are_those_of_splitmix64() -> None:
    """The first numbers of the generator that starts at 1234567, as the literature has them."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    steps = 1234567 * pow(0x9E3779B97F4A7C15, -1, 2**64) % 2**64
    seed = torch.tensor(steps - 2**64 if steps >= 2**63 else steps)
    assert [number % 2**64 for number in random_int64(seed, 4).tolist()] == expected


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(Dropout(0.5), fullgraph=True, backend="aot_eager")
    out = compiled(torch.ones(64, 64))
    assert set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.usefixtures("cpp_compiler")
def test_compiled_bits_are_the_same() -> None:
    """Compilers have to leave overflows alone, and numbers that don't fill a vector."""
    compiled = torch.compile(random_int64, dynamic=True)
    for count in (2, 7, 136, 1001, 70000):
        seed = torch.randint(2**62, ())
        assert torch.equal(compiled(seed, count), random_int64(seed, count))
