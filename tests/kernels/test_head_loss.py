"""What head_loss promises, of each of its implementations; Triton's on a GPU, or interpreted."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from maskgit_kernels import backend
from maskgit_kernels.head_loss import head_loss
from maskgit_kernels.head_loss.reference import head_loss_reference

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # NumPy's, when interpreted

eager = importlib.import_module("maskgit_kernels.head_loss.eager")
FLOOR = 3e-7  # of the size of a result, which is what rounding it may leave where PyTorch is exact


@pytest.fixture(params=["torch", "torch_all_rows", "triton"], autouse=True)
def implementation(request, monkeypatch):
    """`torch_all_rows` is what PyTorch does on a GPU, where the host must not look at what is counted."""
    if request.param == "triton":
        pytest.importorskip("triton")
    elif request.param == "torch_all_rows":
        monkeypatch.setattr(eager, "may_look", lambda device: False)
    monkeypatch.setattr(backend, "_requested", request.param.partition("_")[0])
    return request.param


def problem(batch, length, codes, width, device, *, dtype=torch.float32, bias="position", share=0.6, size=3.0):
    """Random arguments of head_loss, and one share of hits_among: logits of standard deviation `size`, some bias.

    What is not counted holds NaN and targets beyond the codes.
    """
    g = torch.Generator().manual_seed(batch + length + codes + width)
    biases = {"position": (length, codes), "code": (codes,)}
    counted = torch.rand(batch, length, generator=g) < share
    hidden = torch.randn(batch, length, width, generator=g).to(dtype)
    given = dict(
        hidden=hidden.masked_fill(~counted[..., None], torch.nan),
        weight=(size * torch.randn(codes, width, generator=g) / width**0.5).to(dtype),
        bias=torch.randn(biases[bias], generator=g) if bias else None,
        targets=torch.randint(codes, (batch, length), generator=g).masked_fill(~counted, 2**40 + 1),
        counted=counted,
        hits_among=torch.rand(batch, length, generator=g) < 0.7,
    )
    # Otherwise hardly any would be right.
    best = logits_of(given).nan_to_num().argmax(-1)
    given["targets"] = given["targets"].where(~counted | (torch.rand(batch, length, generator=g) < 0.5), best)
    return {name: x if x is None else x.to(device) for name, x in given.items()}


def logits_of(given):
    """float64 [B, N, V]."""
    logits = given["hidden"].double() @ given["weight"].double().T
    return logits if given["bias"] is None else logits + given["bias"].double()


def plain_logits(given):
    """As a PyTorch program computes those of the counted positions: rounded to the dtype of `hidden`, without bias."""
    hidden, weight, bias, counted = (given[name] for name in ("hidden", "weight", "bias", "counted"))
    logits = F.linear(hidden[counted], weight).to(torch.promote_types(hidden.dtype, torch.float32))
    if bias is not None:
        logits = logits + (bias[counted.nonzero()[:, 1]] if bias.dim() == 2 else bias)
    return logits


def plain(label_smoothing=0.0, hits_among=None, **given):
    """The loss of each counted position as a PyTorch program computes it."""
    targets = given["targets"][given["counted"]]
    return F.cross_entropy(plain_logits(given), targets, reduction="none", label_smoothing=label_smoothing)


def with_gradients(function, given, scale=1.0, **options):
    """[results of function, gradients of the sum of the first, times scale, by hidden, weight and bias]."""
    leaves = {
        name: x.detach().clone().requires_grad_()
        for name, x in given.items()
        if name in ("hidden", "weight", "bias") and x is not None
    }
    results = function(**given | leaves, **options)
    results = results if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad((results[0].sum() * scale), list(leaves.values()))
    return [x.detach() for x in (*results, *gradients)]


def rms(x):
    return x.double().square().mean().sqrt().item() if x.numel() else 0.0


def check(given, **options):
    """Loss and gradients within twice PyTorch's own error of float64, and the hits of float64 but for near ties."""
    loss, hits, *gradients = with_gradients(head_loss, given, 0.25, **options)
    losses, *plain_gradients = with_gradients(plain, given, 0.25, **options)
    in_float64 = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in given.items()}
    exact_loss, exact_hits, *exact = with_gradients(head_loss_reference, in_float64, 0.25, **options)
    errors = losses.double() - plain(**in_float64, **options)

    assert loss.dtype == losses.dtype and hits.dtype == torch.int64 and loss.shape == hits.shape == ()
    allowed = 2 * rms(errors) * len(errors) ** 0.5 + FLOOR * exact_loss.abs()
    assert abs(loss.double() - exact_loss) <= allowed
    exact_logits = logits_of(in_float64)[given["counted"]]  # [counted positions, V]
    rounding = (plain_logits(given).double() - exact_logits).abs()
    best = exact_logits.topk(min(2, exact_logits.shape[1])).values
    near_ties = (best[:, 0] - best[:, -1] <= 2 * rounding[rounding.isfinite()].amax()).sum() if len(best) else 0
    assert abs(hits - exact_hits) <= near_ties * (exact_logits.shape[1] > 1)
    leaves = [x for x in (given["hidden"], given["weight"], given["bias"]) if x is not None]
    for x, theirs, truth, leaf in zip(gradients, plain_gradients, exact, leaves, strict=True):
        assert x.dtype == leaf.dtype and x.shape == leaf.shape
        assert rms(x.double() - truth) <= 2 * rms(theirs.double() - truth) + FLOOR * rms(truth)
    assert (gradients[0][~given["counted"]] == 0).all()


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", ["position", "code", None])
@pytest.mark.parametrize(
    "batch, length, codes, width, dtype",
    [
        (2, 20, 67, 48, torch.float32),
        (5, 30, 130, 80, torch.bfloat16),
        (2, 9, 1025, 16, torch.float16),
        (3, 5, 5, 240, torch.float32),
    ],
    ids=str,
)
def test_is_within_twice_the_error_of_pytorch(batch, length, codes, width, dtype, bias, smoothing, device):
    check(problem(batch, length, codes, width, device, dtype=dtype, bias=bias), label_smoothing=smoothing)


@pytest.mark.parametrize("bias", ["position", "code"])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 63, 65, 90])
def test_any_number_of_counted_positions(count, bias, device):
    given = problem(3, 30, 21, 16, device, share=1.0, bias=bias)
    order = torch.rand(90, generator=torch.Generator().manual_seed(count)).argsort().view(3, 30)
    given["counted"] = (order < count).to(device)
    given["hidden"] = given["hidden"].masked_fill(~given["counted"][..., None], torch.nan)
    check(given, label_smoothing=0.1)
    if count == 0:
        loss, hits, *gradients = with_gradients(head_loss, given)
        assert loss == 0 and hits == 0 and not any(x.any() for x in gradients)


def test_float64(implementation, device):
    given = problem(2, 9, 7, 16, device, dtype=torch.float64)
    given["bias"] = given["bias"].double()
    if implementation == "triton":
        with pytest.raises(RuntimeError, match="float64"):
            head_loss(**given)
        return
    expected = with_gradients(head_loss_reference, given, label_smoothing=0.1)
    for x, y in zip(with_gradients(head_loss, given, label_smoothing=0.1), expected, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    given["hidden"] = given["hidden"].nan_to_num()

    def loss(hidden, weight, bias):
        return head_loss(**given | dict(hidden=hidden, weight=weight, bias=bias), label_smoothing=0.1)[0]

    leaves = [given[name].detach().requires_grad_() for name in ("hidden", "weight", "bias")]
    assert torch.autograd.gradcheck(loss, leaves)


# --- the loss and the hits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_large_logits(smoothing, device):
    """Differences of logits of 10,000 are as exact as PyTorch's, and none overflows."""
    check(problem(2, 20, 150, 32, device, size=1e4), label_smoothing=smoothing)
    given = problem(1, 4, 150, 16, device, share=1.0)
    given["bias"] = torch.zeros_like(given["bias"])
    given["bias"][:, 140] = 3e38
    given["targets"] = torch.full_like(given["targets"], 140)
    loss, hits, *gradients = with_gradients(head_loss, given)
    assert loss == 0 and hits == 0 + given["hits_among"].sum() and not any(x.any() for x in gradients)


def test_small_losses_keep_their_digits(device):
    """Where one of a few codes is far ahead, the loss is that of the others, and not what is left of a difference."""
    given = problem(1, 6, 3, 16, device, share=1.0, bias="code")
    given["weight"].zero_()
    given["bias"] = torch.tensor([1000.0, 995.0, 990.0], device=device)
    given["targets"] = torch.zeros_like(given["targets"])
    loss, _ = head_loss(**given)
    expected = 6 * torch.log1p(torch.tensor([-5.0, -10.0]).double().exp().sum())
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=0)


def test_impossible_codes(device):
    """Those whose bias is -inf count for nothing, unless they are targets, or smoothing makes them so."""
    given = problem(2, 10, 140, 16, device)
    given["bias"][:, 7:136] = -torch.inf
    given["targets"] = torch.where(given["counted"], given["targets"] % 4, given["targets"])
    check(given)
    assert head_loss(**given, label_smoothing=0.1)[0] == torch.inf
    b, n = given["counted"].nonzero()[0]
    given["targets"][b, n] = 9
    assert head_loss(**given)[0] == torch.inf


def test_of_equals_the_first_code_is_the_guess(device):
    given = problem(1, 3, 300, 16, device, share=1.0, bias="code")
    given["weight"].zero_()
    given["bias"] = torch.tensor([0.0, 2.0, 1.0] * 100, device=device)  # in several tiles
    given["hits_among"][:] = True
    for target, hits in ((1, 3), (4, 0), (298, 0), (2, 0)):
        assert head_loss(**given | dict(targets=torch.full_like(given["targets"], target)))[1] == hits


def test_hits_are_counted_among_the_counted(device):
    given = problem(4, 20, 11, 16, device)
    given["hidden"] = given["hidden"].nan_to_num()  # so that there are guesses everywhere
    right = logits_of(given).argmax(-1) == given["targets"]
    among = given.pop("hits_among")
    assert 0 < (right & given["counted"] & among).sum() < (right & given["counted"]).sum()
    assert head_loss(**given)[1] == (right & given["counted"]).sum()
    assert head_loss(**given, hits_among=None)[1] == (right & given["counted"]).sum()
    assert head_loss(**given, hits_among=among)[1] == (right & given["counted"] & among).sum()


@pytest.mark.parametrize("wrong", [-1, 11, 2**32, -(2**63), 2**63 - 1])
def test_targets_that_are_no_codes(wrong, implementation, device):
    given = problem(2, 9, 11, 16, device, share=1.0)
    given["targets"][1, 4] = wrong
    if implementation == "torch" and device.type == "cpu":
        with pytest.raises(
            ValueError, match=f"targets must be codes, below 11, where counted, but one of them is {wrong}"
        ):
            head_loss(**given)
        return
    loss, hits, *gradients = with_gradients(head_loss, given)
    assert loss.isnan()
    # The gradient is that of the log-sum-exp alone.
    leaves = [given[name].detach().clone().requires_grad_() for name in ("hidden", "weight", "bias")]
    logits = leaves[0] @ leaves[1].T + leaves[2]
    target_logits = logits.gather(-1, given["targets"].clamp(0, 10)[..., None])[..., 0]
    without = target_logits.where(given["targets"] != wrong, 0)
    (logits.logsumexp(-1) - without).sum().backward()
    for x, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(x, leaf.grad, rtol=1e-4, atol=1e-5)
    right = (logits.argmax(-1) == given["targets"]) & given["hits_among"]
    assert hits == right.sum()


# --- the contract ----------------------------------------------------------------------------------------------------


def same(results, expected):
    return all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


def test_what_is_not_counted_has_no_influence(device):
    given = problem(3, 20, 40, 32, device)
    expected = with_gradients(head_loss, given)
    skipped = ~given["counted"]
    other = given | dict(
        hidden=given["hidden"].masked_fill(skipped[..., None], 3.0),
        targets=given["targets"].masked_fill(skipped, 1),
    )
    assert same(with_gradients(head_loss, other), expected)
    assert all(x.isfinite().all() for x in expected)


def test_the_same_bits_every_time(device):
    given = problem(3, 40, 150, 32, device, dtype=torch.bfloat16)
    assert same(with_gradients(head_loss, given), with_gradients(head_loss, given))


def test_gradients_only_where_they_are_needed(implementation, monkeypatch, device):
    given = problem(2, 10, 13, 16, device)
    loss, hits, *_ = with_gradients(head_loss, given)
    leaf = given["weight"].clone().requires_grad_()
    with torch.no_grad():
        found = head_loss(**given | dict(weight=leaf))
    assert same(found, (loss, hits)) and not found[0].requires_grad
    assert same(head_loss(**given), (loss, hits))
    found = head_loss(**given | dict(weight=leaf))
    assert found[0].requires_grad and not found[1].requires_grad
    found[0].backward()
    torch.testing.assert_close(leaf.grad, with_gradients(head_loss, given)[3])


def test_gradients_are_scaled_in_float32(device):
    """Not by what bfloat16 makes of the factor, which is 1: on average bfloat16 rounds neither up nor down."""
    given = problem(3, 40, 50, 64, device, dtype=torch.bfloat16)
    scale = 1 + 2**-9 + 2**-10
    for x, y in zip(with_gradients(head_loss, given, scale)[2:4], with_gradients(head_loss, given)[2:4], strict=True):
        changed = y != 0
        ratio = (x[changed].double() / y[changed].double()).mean().item()
        assert abs(ratio - scale) < 3e-4


def test_strides_are_no_matter(device):
    given = problem(3, 20, 40, 32, device)
    strided = {name: x if x.dim() < 2 else x.mT.contiguous().mT for name, x in given.items()}
    assert not strided["hidden"].is_contiguous() and not strided["counted"].is_contiguous()
    assert same(
        with_gradients(head_loss, strided, label_smoothing=0.1), with_gradients(head_loss, given, label_smoothing=0.1)
    )


@pytest.mark.parametrize("batch, length", [(0, 5), (3, 0)])
def test_nothing_at_all(batch, length, device):
    for bias in ("position", "code", None):
        given = (
            problem(batch, length, 7, 16, device, bias=bias) if batch * length else empty(batch, length, bias, device)
        )
        loss, hits, *gradients = with_gradients(head_loss, given, label_smoothing=0.1)
        assert loss == 0 and hits == 0 and not any(x.any() for x in gradients)


def empty(batch, length, bias, device):
    shape = {"position": (length, 7), "code": (7,)}
    return dict(
        hidden=torch.zeros(batch, length, 16, device=device),
        weight=torch.ones(7, 16, device=device),
        bias=torch.ones(shape[bias], device=device) if bias else None,
        targets=torch.zeros(batch, length, dtype=torch.int64, device=device),
        counted=torch.ones(batch, length, dtype=torch.bool, device=device),
    )


def test_one_code(device):
    given = problem(2, 5, 1, 16, device)
    loss, hits, *gradients = with_gradients(head_loss, given)
    assert loss == 0 and hits == (given["counted"] & given["hits_among"]).sum()
    assert not any(x.any() for x in gradients)


def test_autocast_casts_what_is_multiplied(device):
    given = problem(2, 10, 40, 32, device)
    halves = given | dict(hidden=given["hidden"].bfloat16(), weight=given["weight"].bfloat16())
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = with_gradients(head_loss, given)
    expected = with_gradients(head_loss, halves)
    assert [x.dtype for x in found] == [torch.float32, torch.int64, *[torch.float32] * 3]
    assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(found, expected, strict=True))


class Loss(torch.nn.Module):
    def forward(self, hidden, weight, bias, targets, counted, hits_among):
        loss, hits = head_loss(hidden * 2, weight, bias, targets, counted, label_smoothing=0.1, hits_among=hits_among)
        return loss.exp2().log2(), hits + 1


@pytest.mark.parametrize("bias", ["position", None])
def test_operator_checks_compiles_and_exports(bias, implementation, device):
    given = problem(2, 5, 7, 16, device, bias=bias, dtype=torch.bfloat16)
    given["hidden"] = given["hidden"].nan_to_num()
    given["weight"] = given["weight"] / 10
    operator = torch.ops.maskgit_kernels.head_loss.default
    leaves = [x if x is None else x.detach().requires_grad_() for x in list(given.values())[:3]]
    leaves[0] = given["hidden"].mT.contiguous().mT.requires_grad_()
    rest = [given[name] for name in ("targets", "counted", "hits_among")]
    for gradients in (False, True):
        tests = ["test_schema", "test_faketensor"] if not gradients else None
        options = {} if tests is None else {"test_utils": tests}
        torch.library.opcheck(operator, (*leaves, *rest, 0.1, gradients, None), **options)

    expected = with_gradients(Loss(), given)
    compiled = torch.compile(Loss(), fullgraph=True, backend="aot_eager")
    for x, y in zip(with_gradients(compiled, given), expected, strict=True):
        torch.testing.assert_close(x, y)
    arguments = tuple(given.values())
    exported = torch.export.export(Loss(), arguments)
    assert [node.target for node in exported.graph.nodes if node.op == "call_function"].count(operator) == 1
    assert same(exported.module()(*arguments), expected[:2])


def test_fake_tensors_are_like_the_real(device):
    given = problem(2, 5, 7, 16, device, dtype=torch.bfloat16)
    given["hidden"] = given["hidden"].mT.contiguous().mT
    expected = with_gradients(head_loss, given)
    with FakeTensorMode() as mode:
        found = with_gradients(head_loss, {name: mode.from_tensor(x) for name, x in given.items()})
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.stride(), x.dtype, x.device) == (y.shape, y.stride(), y.dtype, y.device)


def test_no_second_derivatives(device):
    given = problem(2, 5, 7, 16, device)
    leaf = given["weight"].clone().requires_grad_()
    scale = torch.ones((), device=device, requires_grad=True)
    loss, _ = head_loss(**given | dict(weight=leaf))
    (gradient,) = torch.autograd.grad(loss * scale, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(hidden=torch.zeros(2, 5)), r"hidden must be \[B, N, D\]"),
        (dict(hidden=torch.zeros(2, 5, 16, dtype=torch.int64)), "floating-point"),
        (dict(weight=torch.zeros(0, 16)), "at least one code"),
        (dict(weight=torch.zeros(7, 15)), r"weight must be torch.float32 of shape \[7, 16\]"),
        (dict(weight=torch.zeros(7, 16).half()), "got torch.float16"),
        (dict(bias=torch.zeros(6)), r"bias must be floating-point of shape \[7\] or \[5, 7\]"),
        (dict(bias=torch.zeros(7, dtype=torch.int64)), "bias must be floating-point"),
        (dict(targets=torch.zeros(2, 5, dtype=torch.int32)), "targets must be torch.int64"),
        (dict(counted=torch.zeros(2, 5)), "counted must be torch.bool"),
        (dict(hits_among=torch.zeros(5, dtype=torch.bool)), "hits_among must be torch.bool"),
        (dict(counted=torch.zeros(2, 5, dtype=torch.bool, device="meta")), "counted is on meta"),
        (dict(label_smoothing=1.1), r"label_smoothing must be in \[0, 1\], got 1.1"),
        (dict(label_smoothing=-0.1), "label_smoothing"),
    ],
)
def test_what_does_not_fit(change, message):
    given = problem(2, 5, 7, 16, "cpu")
    with pytest.raises(ValueError, match=message):
        head_loss(**given | change)
