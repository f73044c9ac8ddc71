"""Operators go straight to their launch where nothing traces, and through PyTorch's dispatcher where something does."""

import contextlib
import weakref

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from maskgit_kernels.operators import nothing_traces, operator

OPERATOR = "maskgit_kernels_tests.scaled.default"
GRADIENT = "maskgit_kernels_tests.scaled_backward.default"


@operator("maskgit_kernels_tests::scaled_backward", fake=lambda grad, x, factor: torch.empty_like(x))
def scaled_backward(grad: Tensor, x: Tensor, factor: float) -> Tensor:
    return grad * 2 * x * factor


def save(ctx, inputs, output):
    x, _, ctx.factor = inputs
    ctx.save_for_backward(x)


def differentiate(ctx, grad):
    return scaled_backward(grad, *ctx.saved_tensors, ctx.factor), None, None


@operator(
    "maskgit_kernels_tests::scaled",
    fake=lambda x, offset, factor: torch.empty_like(x),
    save=save,
    differentiate=differentiate,
)
def scaled(x: Tensor, offset: Tensor | None, factor: float) -> Tensor:
    """factor x^2 + offset, of which only x has a gradient."""
    return x * x * factor + (0 if offset is None else offset)


class Seen(TorchDispatchMode):
    """Notes which operators come by."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_dispatcher(monkeypatch):
    """Calls of custom operators fail."""

    def refuse(self, *_):
        raise AssertionError("went through PyTorch's dispatcher")

    monkeypatch.setattr(torch.library.CustomOpDef, "__call__", refuse)


X = torch.tensor([1.0, -2.0, 3.0])


@pytest.mark.usefixtures("no_dispatcher")
def test_goes_straight_to_the_launch():
    assert torch.equal(scaled(X, None, 0.5), 0.5 * X * X)
    for leaf in (X.clone().requires_grad_(), torch.nn.Parameter(X.clone())):
        out = scaled(leaf, torch.ones(3), 0.5)
        assert torch.equal(out, 0.5 * X * X + 1)
        assert torch.equal(torch.autograd.grad(out.sum(), leaf)[0], X)
        with torch.no_grad():
            assert scaled(leaf, None, 0.5).grad_fn is None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scaled(X, None, 0.5), 0.5 * X * X)


@pytest.mark.usefixtures("no_dispatcher")
def test_activation_checkpointing():
    leaf = X.clone().requires_grad_()
    out = checkpoint(lambda x: scaled(x.exp(), None, 1.0), leaf, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), leaf)[0], 2 * (2 * X).exp())


def test_nothing_is_kept_longer_than_the_graph():
    leaf = X.clone().requires_grad_()
    kept = leaf * 1
    gone = weakref.ref(kept)
    out = scaled(kept, None, 1.0)
    del kept
    torch.autograd.grad(out.sum(), leaf)
    assert gone() is None


@pytest.mark.parametrize("mode", [contextlib.nullcontext, Seen], ids=["straight", "traced"])
def test_second_derivatives_are_an_error(mode):
    leaf = X.clone().requires_grad_()
    with mode():
        (first,) = torch.autograd.grad(scaled(leaf, None, 1.0).sum(), leaf, create_graph=True)
        assert torch.equal(first, 2 * X)
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            torch.autograd.grad((first + leaf).sum(), leaf)  # or it would be 1


class Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


MODES = {"dispatch mode": Seen, "function mode": Function, "forward derivatives": forward_ad.dual_level}
TENSORS = {
    "subclass": X.as_subclass(Subclass),
    "meta": X.to("meta"),
    "negated": torch._neg_view(X),
    "fake": FakeTensorMode().from_tensor(X),
}


def test_what_is_seen_as_tracing():
    assert nothing_traces((X, None, 3, 0.5, torch.nn.Parameter(X)))
    for name, mode in MODES.items():
        with mode():
            assert not nothing_traces((X,)), name
    for name, x in TENSORS.items():
        assert not nothing_traces((X, x)), name
    found = []

    def note(x):
        found.append(nothing_traces((X,)))
        return x * 1

    torch.func.vmap(note)(X)
    torch.func.grad(lambda x: note(x).sum())(X)
    torch.jit.trace(note, (X,), check_trace=False)
    make_fx(note)(X)
    make_fx(note, pre_dispatch=True)(X)
    torch.compile(note, backend="eager")(X)
    assert found == [False] * 6


@pytest.mark.parametrize("x", [TENSORS["negated"], TENSORS["subclass"]], ids=["negated", "subclass"])
def test_what_only_looks_like_its_memory(x):
    assert torch.equal(scaled(x, None, 0.5), 0.5 * X * X)


def step(x):
    return torch.autograd.grad(scaled(x, None, 0.5).sum(), x)[0]


def test_tracers_see_the_operators():
    leaf = X.clone().requires_grad_()
    with Seen() as seen:
        step(leaf)
    assert OPERATOR in seen.names and GRADIENT in seen.names
    out = scaled(leaf, None, 0.5)
    with Seen() as seen:  # of the backward pass only
        torch.autograd.grad(out.sum(), leaf)
    assert GRADIENT in seen.names
    names = [str(node.target) for node in make_fx(step)(leaf).graph.nodes]
    assert OPERATOR in names and GRADIENT in names

    class Module(torch.nn.Module):
        def forward(self, x):
            return scaled(x, None, 0.5)

    for strict in (False, True):
        program = torch.export.export(Module(), (X,), strict=strict)
        assert OPERATOR in [str(node.target) for node in program.graph.nodes]
        assert torch.equal(torch.autograd.grad(program.module()(leaf).sum(), leaf)[0], X)


def test_compiles_as_one_graph():
    leaf = X.clone().requires_grad_()
    compiled = torch.compile(lambda x: scaled(x.exp(), None, 0.5).sin(), fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(leaf).sum(), leaf)
    (expected,) = torch.autograd.grad((0.5 * leaf.exp().square()).sin().sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_opcheck():
    operators = torch.ops.maskgit_kernels_tests
    torch.library.opcheck(operators.scaled.default, (X.clone().requires_grad_(), None, 0.5))
    torch.library.opcheck(operators.scaled_backward.default, (X, X, 0.5))
