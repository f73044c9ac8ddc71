"""What head_sample promises, of each of its implementations; Triton's, which are two, on a GPU, or interpreted."""

import pytest
import torch
import torch.nn.functional as F

from maskgit_kernels import backend, philox
from maskgit_kernels.decode_step import decode_step
from maskgit_kernels.decode_step.settings import Settings, State
from maskgit_kernels.head_sample import choice, head_sample
from maskgit_kernels.head_sample.eager import head_sample_eager
from maskgit_kernels.head_sample.reference import head_sample_reference

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # NumPy's, when interpreted

MODES = [("categorical", "log_prob"), ("categorical", "prob"), ("greedy", "log_prob"), ("perturbed", "prob")]


@pytest.fixture(params=["torch", "fused", "product"], autouse=True)
def implementation(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(backend, "_requested", "torch")
        yield "torch"
    else:
        pytest.importorskip("triton")
        monkeypatch.setattr(backend, "_requested", "triton")
        with choice.impose(request.param):
            yield "triton"


def problem(batch, length, codes, width, device, *, dtype=torch.float32, bias="position", share=0.6, guided=False):
    """Random arguments of head_sample: logits of standard deviation 3, and a little bias."""
    g = torch.Generator().manual_seed(batch + length + codes + width)
    masked = torch.rand(batch, length, generator=g) < share
    biases = {"position": (length, codes), "code": (codes,)}
    given = dict(
        hidden=torch.randn(batch, length, width, generator=g).to(dtype),
        weight=(3 * torch.randn(codes, width, generator=g) / width**0.5).to(dtype),
        bias=torch.randn(biases[bias], generator=g) if bias else None,
        tokens=torch.randint(codes, (batch, length), generator=g).masked_fill(masked, codes),
        masked=masked,
        n_keep_masked=torch.randint(length + 1, (batch,), generator=g),
        seeds=torch.randint(-(2**63), 2**63 - 1, (batch,), generator=g),
    )
    if guided:
        given["guidance_hidden"] = torch.randn(batch, length, width, generator=g).to(dtype)
    given = {name: x if x is None else x.to(device) for name, x in given.items()}
    return given | dict(step=3, guidance_scale=1.5 if guided else 0.0)


def same_rows(logits, draws, device, **options):
    """Sample one token at each of `draws` positions of one image, all with the logits [V]: int64 [draws]."""
    given = dict(
        hidden=torch.ones(1, draws, 16, device=device),
        weight=torch.zeros(len(logits), 16, device=device),
        bias=logits.to(device),
        tokens=torch.full((1, draws), -1, device=device),
        masked=torch.ones(1, draws, dtype=torch.bool, device=device),
        n_keep_masked=torch.zeros(1, dtype=torch.int64, device=device),
        seeds=torch.tensor([12345], device=device),
    )
    finite = logits.isfinite().to(device)  # those come by way of the product
    given["weight"][:, 3] = torch.where(finite, given["bias"], 0)
    given["bias"] = torch.where(finite, 0, given["bias"])
    tokens, masked = head_sample(**given | {"step": 0, **options})
    assert not masked.any()
    return tokens[0]


def assert_is(results, expected):
    assert torch.equal(results[0], expected[0])
    assert torch.equal(results[1], expected[1])


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("draw, confidence", MODES)
@pytest.mark.parametrize(
    "batch, length, codes, width, bias", [(2, 20, 150, 48, "position"), (3, 5, 7, 240, "code"), (1, 90, 130, 64, None)]
)
def test_equals_reference(batch, length, codes, width, bias, draw, confidence, guided, device):
    given = problem(batch, length, codes, width, device, bias=bias, guided=guided)
    given |= dict(draw=draw, confidence=confidence, softmax_temperature=0.7, choice_temperature=2.0)
    assert_is(head_sample(**given), head_sample_reference(**given))


def exact_logits(given):
    """float64 [B, N, V], guided."""
    hidden, weight = given["hidden"].double(), given["weight"].double()
    if given["guidance_scale"]:
        hidden = hidden + given["guidance_scale"] * (hidden - given["guidance_hidden"].double())
    return hidden @ weight.T + given["bias"].double()


def pytorch_logits(given):
    """The same as PyTorch computes it in the dtype of hidden."""
    logits = F.linear(given["hidden"], given["weight"])
    if given["guidance_scale"]:
        logits = logits + given["guidance_scale"] * (logits - F.linear(given["guidance_hidden"], given["weight"]))
    return logits + given["bias"].to(logits.dtype)


def gumbel(given, stream, count):
    positions = torch.arange(given["tokens"].shape[1], device=given["tokens"].device)
    words = philox.random_words(given["seeds"][:, None], positions, given["step"], stream, count)
    return -torch.log(-torch.log1p(-philox.uniform(words).double()))  # [B, N, count]


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("draw", ["categorical", "greedy", "perturbed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_precision(dtype, draw, guided, device):
    """Whatever is chosen is within twice PyTorch's own rounding error of the best, in float64."""
    given = problem(2, 70, 200, 96, device, dtype=dtype, guided=guided)
    tau = 2.0
    tokens, masked = head_sample(
        **given, draw=draw, confidence="prob" if draw == "perturbed" else "log_prob", choice_temperature=tau
    )
    logits = exact_logits(given)
    error = (pytorch_logits(given).double() - logits).abs().max()
    tolerance = 2 * 2 * error + 1e-5  # two logits may err in opposite directions

    log_p = torch.log_softmax(logits, -1)
    noise = gumbel(given, philox.STREAM_TOKEN, 200)
    scores = {"categorical": log_p + noise, "greedy": log_p, "perturbed": log_p.exp() + tau * noise}[draw]
    is_open = given["masked"]
    chosen = scores.gather(-1, tokens.clamp(max=199)[..., None])[..., 0]
    assert (scores.amax(-1) - chosen)[is_open].max() <= tolerance
    assert torch.equal(tokens[~is_open], given["tokens"][~is_open])

    confidence = chosen
    if draw != "perturbed":
        confidence = log_p.gather(-1, tokens.clamp(max=199)[..., None])[..., 0]
        confidence = confidence + tau * gumbel(given, philox.STREAM_CONFIDENCE, 1)[..., 0]
    assert torch.equal(masked.sum(1), given["n_keep_masked"].minimum(is_open.sum(1)))
    assert not (masked & ~is_open).any()
    for b in range(2):
        least_confident_known = confidence[b][is_open[b] & ~masked[b]].amin()
        assert (confidence[b][masked[b]] <= least_confident_known + tolerance).all()


def test_equals_decode_step_of_the_logits(device):
    given = problem(2, 20, 40, 32, device, guided=True) | dict(choice_temperature=1.0, softmax_temperature=1.3)
    ours = head_sample(**given)
    hidden, guidance, weight, bias = (given.pop(name) for name in ("hidden", "guidance_hidden", "weight", "bias"))
    logits, unguided = (F.linear(x, weight) + bias for x in (hidden, guidance))
    assert_is(ours, decode_step(logits, **given, guidance_logits=unguided))


# --- the draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_distribution(temperature, device):
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf, 0.5, -3.0])
    draws = 4000
    codes = same_rows(logits, draws, device, softmax_temperature=temperature)
    p = torch.softmax(logits.double() / temperature, 0)
    counts = torch.bincount(codes, minlength=7).cpu()
    assert counts[4] == 0
    possible = p > 0
    chi2 = ((counts - draws * p) ** 2 / (draws * p))[possible].sum()
    assert chi2 < 22.5  # 5 degrees of freedom: beyond it once in 2000


@pytest.mark.parametrize("draw, confidence", MODES)
def test_near_one_hot_is_exact(draw, confidence, device):
    codes = torch.arange(140, device=device)
    given = problem(1, 140, 140, 140, device, share=1.0)
    given |= dict(hidden=torch.eye(140, device=device)[None], weight=60 * torch.eye(140, device=device))
    tokens, _ = head_sample(**given, draw=draw, confidence=confidence)
    assert torch.equal(tokens[0], codes)


@pytest.mark.parametrize("draw, confidence", MODES)
def test_impossible_codes_are_never_drawn(draw, confidence, device):
    logits = torch.full((300,), -torch.inf)
    logits[[3, 17, 299]] = torch.tensor([-1e30, 0.0, 0.1])  # one tile of codes has none that is possible
    codes = same_rows(logits, 300, device, draw=draw, confidence=confidence, choice_temperature=100.0)
    assert set(codes.tolist()) <= {3, 17, 299}


def test_greedy_takes_the_lower_code_of_equals(device):
    logits = torch.tensor([0.0, 2.0, 1.0] * 100)  # in several tiles
    assert set(same_rows(logits, 2, device, draw="greedy").tolist()) == {1}
    assert set(same_rows(-logits.flip(0), 2, device, draw="greedy").tolist()) == {2}


@pytest.mark.parametrize("draw, confidence", MODES)
@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures(temperature, draw, confidence, device):
    logits = torch.tensor([1.0, 3.0, -torch.inf, 2.0])
    codes = same_rows(logits, 200, device, draw=draw, confidence=confidence, softmax_temperature=temperature)
    if draw == "categorical":
        assert set(codes.tolist()) == ({1} if temperature < 1 else {0, 1, 3})
    elif draw == "greedy" or temperature < 1:
        assert set(codes.tolist()) == {1}
    else:
        assert 2 not in set(codes.tolist())


# --- guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw, confidence", MODES)
def test_guidance_towards_the_same_hidden_state_changes_nothing(draw, confidence, device):
    given = problem(2, 30, 50, 32, device) | dict(draw=draw, confidence=confidence, choice_temperature=1.0)
    guided = head_sample(**given | dict(guidance_hidden=given["hidden"], guidance_scale=7.0))
    assert_is(guided, head_sample(**given))


def test_guidance_scale_zero_ignores_the_second_state(device):
    given = problem(2, 30, 50, 32, device)
    nothing = torch.full_like(given["hidden"], torch.nan)
    assert_is(head_sample(**given | dict(guidance_hidden=nothing)), head_sample(**given))


# --- the selection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw, confidence", MODES)
def test_exactly_the_promised_number_stays_masked(draw, confidence, device):
    given = problem(9, 7, 6, 16, device, share=0.5)
    given |= dict(draw=draw, confidence=confidence, choice_temperature=3.0)
    given["n_keep_masked"] = torch.arange(-1, 8, device=device)
    _, masked = head_sample(**given)
    assert torch.equal(masked.sum(1), given["n_keep_masked"].clamp(min=0).minimum(given["masked"].sum(1)))
    assert not (masked & ~given["masked"]).any()


@pytest.mark.parametrize("huge", [-(2**62), 2**62])
def test_counts_are_clamped(huge, device):
    given = problem(3, 8, 4, 16, device)
    given["n_keep_masked"] = torch.full((3,), huge, device=device)
    _, masked = head_sample(**given)
    assert torch.equal(masked, given["masked"] & (huge > 0))


def test_ties_leave_the_lower_index_masked(device):
    given = problem(2, 12, 4, 16, device, bias=None) | dict(draw="greedy")
    given["weight"].zero_()
    _, masked = head_sample(**given)
    keep = given["n_keep_masked"].minimum(given["masked"].sum(1))
    assert torch.equal(masked, given["masked"] & (given["masked"].cumsum(1) <= keep[:, None]))


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw, confidence", MODES)
def test_results_do_not_depend_on_the_batch(draw, confidence, device):
    given = problem(4, 30, 100, 48, device)
    given |= dict(draw=draw, confidence=confidence, choice_temperature=2.0)
    tokens, masked = head_sample(**given)
    for picked in (torch.tensor([3, 0]), torch.tensor([1])):
        images = ("hidden", "tokens", "masked", "n_keep_masked", "seeds")
        some = {name: given[name][picked.to(device)] for name in images}
        some_tokens, some_masked = head_sample(**given | some)
        assert torch.equal(some_tokens, tokens[picked]) and torch.equal(some_masked, masked[picked])


def test_known_positions_are_unchanged_and_ignored(device):
    given = problem(2, 20, 10, 16, device, guided=True)
    tokens, masked = head_sample(**given)
    for name in ("hidden", "guidance_hidden"):
        given[name][~given["masked"]] = torch.nan
    assert_is(head_sample(**given), (tokens, masked))
    assert torch.equal(tokens[~given["masked"]], given["tokens"][~given["masked"]])
    given["masked"][:] = False
    tokens, masked = head_sample(**given)
    assert torch.equal(tokens, given["tokens"]) and not masked.any()


@pytest.mark.parametrize("batch, length", [(0, 4), (2, 0)])
def test_nothing_to_do(batch, length, device):
    tokens, masked = head_sample(**problem(batch, length, 3, 16, device))
    assert tokens.shape == masked.shape == (batch, length)


def test_inputs_are_not_modified_and_may_be_strided(device):
    given = problem(2, 9, 40, 32, device, guided=True)
    before = {name: x.clone() for name, x in given.items() if isinstance(x, torch.Tensor)}
    expected = head_sample_reference(**given)
    strided = {name: before[name].mT.contiguous().mT.requires_grad_() for name in ("hidden", "weight", "bias")}
    strided |= {name: before[name].t().contiguous().t() for name in ("tokens", "masked")}
    results = head_sample(**given | strided)
    assert_is(results, expected)
    assert all(x.is_contiguous() and not x.requires_grad for x in results)
    assert_is(head_sample(**given), expected)
    assert all(torch.equal(given[name], x) for name, x in before.items())


def test_a_bias_of_another_dtype(device):
    given = problem(2, 9, 40, 32, device, dtype=torch.bfloat16)
    given["bias"] = given["bias"].bfloat16()
    assert_is(head_sample(**given), head_sample(**given | dict(bias=given["bias"].double())))


def test_autocast_casts_as_linear_does(device):
    given = problem(2, 9, 40, 32, device, guided=True) | dict(choice_temperature=1.0)
    with torch.autocast(device.type, torch.bfloat16):
        results = head_sample(**given)
    cast = {name: given[name].bfloat16() for name in ("hidden", "weight", "guidance_hidden")}
    assert_is(results, head_sample(**given | cast))


def test_float64_is_left_to_pytorch(implementation, device):
    given = problem(1, 6, 5, 16, device, dtype=torch.float64)
    if implementation == "triton":
        with pytest.raises(RuntimeError, match="backend 'triton' was asked for, but it does not take float64"):
            head_sample(**given)
    assert_is(head_sample(**given, backend="auto"), head_sample_reference(**given))


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("draw, confidence", MODES)
def test_rows_without_a_sample(draw, confidence, bad, implementation, device):
    given = problem(2, 6, 10, 16, device) | dict(draw=draw, confidence=confidence, choice_temperature=1.0)
    given["masked"][:] = torch.tensor([True, False, True, True, False, True])
    given["n_keep_masked"][:] = 2
    given["bias"][2, 4 if bad != bad else slice(None)] = bad
    if implementation == "torch" and device.type == "cpu":
        with pytest.raises(ValueError, match="logits hold NaN or leave no code possible"):
            head_sample(**given)
    else:
        tokens, masked = head_sample(**given)
        assert ((tokens >= 0) & (tokens <= 10)).all() and (tokens[given["masked"]] < 10).all()
        assert masked.sum(1).tolist() == [2, 2] and not (masked & ~given["masked"]).any()


class Step(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, hidden, weight, bias, tokens, masked, n_keep_masked, seeds):
        state = (tokens, masked, n_keep_masked)
        return head_sample(hidden, weight, bias, *state, seeds=seeds, step=3, **self.options)


def test_operator_checks_compiles_and_exports(implementation, device):
    given = problem(2, 5, 7, 16, device)
    arguments = tuple(x for x in given.values() if isinstance(x, torch.Tensor))
    expected = head_sample_reference(**given, choice_temperature=2.0)
    operator = torch.ops.maskgit_kernels.head_sample.default
    hidden, weight, bias, tokens, *rest = arguments
    options = (3, 1.0, 2.0, "categorical", "log_prob", 0.0, implementation, True)
    transposed = (hidden.mT.contiguous().mT, None, weight, bias, tokens.t().contiguous().t(), *rest)
    torch.library.opcheck(operator, (*transposed, *options))

    step = Step(choice_temperature=2.0)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(step, arguments)
    (call,) = (node for node in exported.graph.nodes if node.target is operator)
    assert call.args[-1] is True  # keeps no memory beyond the call
    for function in (compiled, exported.module()):
        assert_is(function(*arguments), expected)


def test_no_host_sync_off_the_cpu(monkeypatch):
    """Tensors without data can't be looked at: any read of a value, or a shape that depends on one, would raise."""
    given = problem(2, 5, 8, 16, "meta", guided=True)
    head = [given[name] for name in ("hidden", "guidance_hidden", "weight", "bias")]
    state = State(*(given[name] for name in State._fields))
    for draw, confidence in MODES:
        tokens, masked = head_sample_eager(*head, state, Settings(3, 1.0, 1.0, draw, confidence, 1.5))
        assert tokens.shape == masked.shape == (2, 5)


WRONG = {
    "hidden must be \\[B, N, D\\] and floating-point": dict(hidden=torch.zeros(2, 5)),
    "hidden must be .* got torch.int64": dict(hidden=torch.zeros(2, 5, 4, dtype=torch.int64)),
    "weight must be \\[V, D\\] with at least one code": dict(weight=torch.zeros(0, 4)),
    "weight must be torch.float32 of shape \\[3, 4\\], got torch.float32 of shape \\[3, 5\\]": dict(
        weight=torch.zeros(3, 5)
    ),
    "weight must be torch.float32 .* got torch.float16": dict(weight=torch.zeros(3, 4, dtype=torch.float16)),
    "bias must be floating-point of shape \\[3\\] or \\[5, 3\\], got torch.float32 \\[5\\]": dict(bias=torch.zeros(5)),
    "bias is on meta, but hidden is on cpu": dict(bias=torch.zeros(3, device="meta")),
    "tokens must be torch.int64 of shape \\[2, 5\\]": dict(tokens=torch.zeros(2, 4, dtype=torch.int64)),
    "masked must be torch.bool": dict(masked=torch.zeros(2, 5)),
    "n_keep_masked must be torch.int64 of shape \\[2\\]": dict(n_keep_masked=torch.zeros(1, dtype=torch.int64)),
    "seeds must be torch.int64 of shape \\[2\\]": dict(seeds=torch.zeros(2)),
    "guidance_hidden must be torch.float32 of shape \\[2, 5, 4\\]": dict(guidance_hidden=torch.zeros(2, 5, 3)),
    "guidance_hidden is missing": dict(guidance_scale=1.0),
    "guidance_scale must be finite": dict(guidance_scale=float("nan")),
    "step must be .* got -1": dict(step=-1),
    "softmax_temperature must be positive and finite, got 0": dict(softmax_temperature=0),
    "choice_temperature must be at least 0 and finite, got -1": dict(choice_temperature=-1),
    "draw must be one of categorical, greedy, perturbed, got 'argmax'": dict(draw="argmax"),
    "confidence must be one of log_prob, prob, got 'entropy'": dict(confidence="entropy"),
    "pass confidence='prob'": dict(draw="perturbed"),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_argument(message):
    with pytest.raises(ValueError, match=message):
        head_sample(**problem(2, 5, 3, 4, "cpu") | WRONG[message])
