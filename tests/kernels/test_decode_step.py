import pytest
import torch

from maskgit_kernels.decode_step import decode_step, eager
from maskgit_kernels.decode_step.reference import decode_step_reference
from maskgit_kernels.decode_step.settings import Settings, State

MODES = [("categorical", "log_prob"), ("categorical", "prob"), ("greedy", "log_prob"), ("perturbed", "prob")]


@pytest.fixture(params=["cpu", "gpu-way"])
def way(request, monkeypatch):
    """Both ways of the PyTorch implementation, the GPU's run on the CPU."""
    if request.param == "gpu-way":
        monkeypatch.setattr(eager, "_host_may_look", lambda tensor: False)
    return request.param


def problem(batch, length, codes, *, dtype=torch.float32, share=0.6, seed=0):
    """Random arguments of decode_step, with a column for the mask token that would win if it could."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(batch, length, codes + 1, generator=g) * 3).to(dtype)
    logits[:, :, codes] = 99
    masked = torch.rand(batch, length, generator=g) < share
    return dict(
        logits=logits,
        tokens=torch.randint(codes, (batch, length), generator=g).masked_fill(masked, codes),
        masked=masked,
        n_keep_masked=torch.randint(length + 1, (batch,), generator=g),
        seeds=torch.randint(-(2**63), 2**63 - 1, (batch,), generator=g),
        step=3,
        num_codes=codes,
    )


def one_row(logits, seeds, **kwargs):
    """Sample one token per seed from the same logits [V]: int64 [len(seeds)]."""
    batch = len(seeds)
    tokens, masked = decode_step(
        logits.expand(batch, 1, -1),
        torch.zeros(batch, 1, dtype=torch.int64),
        torch.ones(batch, 1, dtype=torch.bool),
        torch.zeros(batch, dtype=torch.int64),
        seeds=seeds,
        **{"step": 0, **kwargs},
    )
    assert not masked.any()
    return tokens[:, 0]


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("draw, confidence", MODES)
@pytest.mark.parametrize("batch, length, codes", [(3, 17, 5), (2, 1, 1000), (1, 256, 1024), (2, 17, 1025), (4, 9, 1)])
def test_equals_reference(way, batch, length, codes, draw, confidence, guided):
    given = problem(batch, length, codes)
    given |= dict(draw=draw, confidence=confidence, softmax_temperature=0.7, choice_temperature=2.0)
    if guided:
        given |= dict(guidance_logits=given["logits"].flip(1) / 2, guidance_scale=1.5)
    tokens, masked = decode_step(**given)
    expected_tokens, expected_masked = decode_step_reference(**given)
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(masked, expected_masked)
    assert (tokens < codes).all() and torch.equal(tokens[~given["masked"]], given["tokens"][~given["masked"]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions(way, dtype):
    given = problem(2, 17, 100, dtype=dtype)
    for ours, expected in zip(decode_step(**given), decode_step_reference(**given), strict=True):
        assert torch.equal(ours, expected)


def test_inputs_are_not_modified_and_may_be_strided(way):
    given = problem(2, 9, 12)
    strided = given["logits"].transpose(1, 2).contiguous().transpose(1, 2)
    before = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    results = decode_step(**given | {"logits": strided.requires_grad_()})
    for ours, expected in zip(results, decode_step_reference(**given), strict=True):
        assert torch.equal(ours, expected) and not ours.requires_grad
    assert all(torch.equal(given[name], value) for name, value in before.items())


# --- the draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_distribution(temperature):
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf, 0.5, -3.0])
    draws = 20000
    codes = one_row(logits, torch.arange(draws), softmax_temperature=temperature)
    p = torch.softmax(logits.double() / temperature, 0)
    counts = torch.bincount(codes, minlength=7)
    assert counts[4] == 0
    possible = p > 0
    chi2 = ((counts - draws * p) ** 2 / (draws * p))[possible].sum()
    assert chi2 < 22.5  # 5 degrees of freedom: beyond it once in 2000


def test_draws_are_independent_between_steps_and_positions():
    seeds, batch = torch.arange(20000), 20000
    logits = torch.zeros(batch, 2, 2)
    step = [
        decode_step(
            logits,
            torch.zeros(batch, 2, dtype=torch.int64),
            torch.ones(batch, 2, dtype=torch.bool),
            torch.zeros(batch, dtype=torch.int64),
            seeds=seeds,
            step=t,
        )[0]
        for t in (0, 1)
    ]
    streams = torch.stack([step[0][:, 0], step[0][:, 1], step[1][:, 0]]).double()
    correlation = torch.corrcoef(streams) - torch.eye(3)
    assert correlation.abs().max() < 4.5 / batch**0.5


def test_guidance_formula():
    """logits + s * (logits - guidance): the draw's distribution is that of the combined logits."""
    logits, unguided = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.5])
    seeds = torch.arange(500)
    combined = 3.0 * logits - 2.0 * unguided
    guided = one_row(logits, seeds, guidance_logits=unguided.expand(500, 1, 3), guidance_scale=2.0)
    assert torch.equal(guided, one_row(combined, seeds))
    assert torch.equal(one_row(logits, seeds, guidance_logits=unguided.expand(500, 1, 3)), one_row(logits, seeds))


@pytest.mark.parametrize("draw, confidence", MODES)
def test_near_one_hot_is_exact(way, draw, confidence):
    codes = torch.arange(1000)
    logits = torch.full((1, 1000, 1000), -60.0)
    logits[0, codes, codes] = 60.0
    tokens, _ = decode_step(
        logits,
        torch.zeros(1, 1000, dtype=torch.int64),
        torch.ones(1, 1000, dtype=torch.bool),
        torch.zeros(1, dtype=torch.int64),
        seeds=torch.tensor([3]),
        step=0,
        draw=draw,
        confidence=confidence,
    )
    assert torch.equal(tokens[0], codes)


@pytest.mark.parametrize("draw, confidence", MODES)
def test_impossible_codes_are_never_drawn(way, draw, confidence):
    logits = torch.full((50,), -torch.inf)
    logits[[3, 17, 49]] = torch.tensor([-1e30, 0.0, 0.1])
    codes = one_row(logits, torch.arange(3000), draw=draw, confidence=confidence, choice_temperature=100.0)
    assert set(codes.tolist()) <= {3, 17, 49}


def test_greedy_takes_the_lower_code_of_equals(way):
    assert set(one_row(torch.tensor([0.0, 2.0, 1.0, 2.0]), torch.arange(9), draw="greedy").tolist()) == {1}


@pytest.mark.parametrize("draw, confidence", MODES)
def test_infinite_logits_share_the_probability(way, draw, confidence):
    logits = torch.tensor([5.0, torch.inf, -torch.inf, torch.inf])
    codes = one_row(logits, torch.arange(2000), draw=draw, confidence=confidence)
    assert set(codes.tolist()) == ({1} if draw in ("greedy", "perturbed") else {1, 3})
    if draw == "categorical":
        assert abs((codes == 1).double().mean() - 0.5) < 0.06


def test_infinities_under_guidance(way):
    inf = torch.inf
    logits = torch.tensor([-inf, 0.0, 0.0, 0.0, -inf])
    unguided = torch.tensor([-inf, -inf, inf, 0.0, 0.0])
    codes = one_row(logits, torch.arange(200), guidance_logits=unguided.expand(200, 1, 5), guidance_scale=2.0)
    assert set(codes.tolist()) == {3}


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures(way, temperature):
    codes = one_row(torch.tensor([1.0, 3.0, 2.0]), torch.arange(300), softmax_temperature=temperature)
    assert set(codes.tolist()) == ({1} if temperature < 1 else {0, 1, 2})


# --- the selection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw, confidence", MODES)
def test_exactly_the_promised_number_stays_masked(way, draw, confidence):
    given = problem(21, 19, 6, share=0.5)
    given |= dict(draw=draw, confidence=confidence, choice_temperature=3.0)
    given["n_keep_masked"] = torch.arange(-1, 20)
    _, masked = decode_step(**given)
    expected = given["n_keep_masked"].clamp(min=0).minimum(given["masked"].sum(1))
    assert torch.equal(masked.sum(1), expected)
    assert not (masked & ~given["masked"]).any()


@pytest.mark.parametrize("huge", [-(2**62), 2**62])
def test_counts_are_clamped(way, huge):
    given = problem(3, 8, 4)
    given["n_keep_masked"] = torch.full((3,), huge)
    _, masked = decode_step(**given)
    assert torch.equal(masked, given["masked"] & (huge > 0))


@pytest.mark.parametrize("choice_temperature", [0.0, 3e38])
def test_ties_leave_the_lower_index_masked(way, choice_temperature):
    """All confidences are equal without noise; with a huge one many overflow, and are then below the known ones."""
    given = problem(2, 12, 4)
    given |= dict(logits=torch.zeros(2, 12, 5), draw="greedy", choice_temperature=choice_temperature)
    given["n_keep_masked"] = torch.tensor([3, 4])
    _, masked = decode_step(**given)
    assert masked.sum(1).tolist() == [3, 4] and not (masked & ~given["masked"]).any()
    if choice_temperature == 0:
        for b, n in ((0, 3), (1, 4)):
            assert masked[b].nonzero().flatten().tolist() == given["masked"][b].nonzero().flatten().tolist()[:n]


def test_the_least_confident_stay_masked(way):
    logits = torch.zeros(1, 4, 3)
    logits[0, :, 0] = torch.tensor([3.0, 1.0, 4.0, 2.0])
    _, masked = decode_step(
        logits,
        torch.zeros(1, 4, dtype=torch.int64),
        torch.tensor([[True, True, True, True]]),
        torch.tensor([2]),
        seeds=torch.tensor([0]),
        step=0,
        draw="greedy",
    )
    assert masked.tolist() == [[False, True, False, True]]


def test_confidence_noise_is_gumbel():
    """With equal confidences and noise, every pair of positions is equally likely to be the last one masked."""
    batch = 6000
    _, masked = decode_step(
        torch.zeros(batch, 3, 2),
        torch.zeros(batch, 3, dtype=torch.int64),
        torch.ones(batch, 3, dtype=torch.bool),
        torch.ones(batch, dtype=torch.int64),
        seeds=torch.arange(batch),
        step=0,
        choice_temperature=1.0,
    )
    share = masked.double().mean(0)
    assert (share - 1 / 3).abs().max() < 4.5 * (2 / 9 / batch) ** 0.5


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw, confidence", MODES)
def test_results_do_not_depend_on_the_batch(way, draw, confidence):
    given = problem(7, 40, 77) | dict(draw=draw, confidence=confidence, choice_temperature=2.0)
    tokens, masked = decode_step(**given)
    order = torch.tensor([5, 0, 6, 2])
    rest = {k: v for k, v in given.items() if not isinstance(v, torch.Tensor)}
    rows = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
    for picked in (order, *order[:, None]):
        some_tokens, some_masked = decode_step(**rest, **{k: v[picked] for k, v in rows.items()})
        assert torch.equal(some_tokens, tokens[picked]) and torch.equal(some_masked, masked[picked])


def test_results_do_not_depend_on_the_pieces(way, monkeypatch):
    given = problem(3, 20, 30)
    whole = decode_step(**given)
    monkeypatch.setattr(eager, "_CPU_PIECE", 100)
    monkeypatch.setattr(eager, "_GPU_PIECE", 100)
    for ours, expected in zip(decode_step(**given), whole, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_rows_without_a_sample(way, bad):
    given = problem(2, 6, 10)
    given["masked"][:] = torch.tensor([True, False, True, True, False, True])
    given["n_keep_masked"][:] = 2
    row = given["logits"][1, 2]
    row[4 if bad != bad else slice(None)] = bad
    if way == "cpu":
        for function in (decode_step, decode_step_reference):
            with pytest.raises(ValueError, match="logits hold NaN or leave no code possible"):
                function(**given)
    else:
        tokens, masked = decode_step(**given)
        assert ((tokens >= 0) & (tokens <= 10)).all() and (tokens[given["masked"]] < 10).all()
        assert masked.sum(1).tolist() == [2, 2]


def test_nan_at_known_positions_is_ignored(way):
    given = problem(1, 6, 10)
    expected = decode_step(**given)
    given["logits"][~given["masked"]] = torch.nan
    for ours, true in zip(decode_step(**given), expected, strict=True):
        assert torch.equal(ours, true)


@pytest.mark.parametrize("batch, length", [(0, 4), (2, 0)])
def test_nothing_to_do(way, batch, length):
    tokens, masked = decode_step(**problem(batch, length, 3))
    assert tokens.shape == masked.shape == (batch, length)


def test_all_known_is_unchanged(way):
    given = problem(2, 5, 3, share=0.0)
    tokens, masked = decode_step(**given)
    assert torch.equal(tokens, given["tokens"]) and not masked.any()


def test_no_host_sync_off_the_cpu():
    """Tensors without data can't be looked at: any read of a value, or a shape that depends on one, would raise."""
    given = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in problem(2, 5, 8).items()}
    state = State(*(given[name] for name in State._fields))
    for draw, confidence in MODES:
        settings = Settings(3, 1.0, 1.0, draw, confidence, 1.0)
        tokens, masked = eager.decode_step_eager(given["logits"], given["logits"], 8, state, settings)
        assert tokens.shape == masked.shape == (2, 5)


def test_operator_passes_opcheck_and_compiles():
    given = problem(2, 5, 8)
    logits, tokens, *rest = (given[name] for name in ("logits", *State._fields))
    settings = Settings(3, 1.0, 2.0, "categorical", "prob", 0.5)
    for some in (tokens, tokens.t().contiguous().t()):
        arguments = (logits, logits, 8, some, *rest, *settings, None, False)
        torch.library.opcheck(torch.ops.maskgit_kernels.decode_step.default, arguments)
    compiled = torch.compile(decode_step, fullgraph=True, backend="eager")
    for ours, expected in zip(compiled(**given), decode_step(**given), strict=True):
        assert torch.equal(ours, expected)


WRONG = {
    "tokens must be \\[B, N\\], got shape \\(5,\\)": dict(tokens=torch.zeros(5, dtype=torch.int64)),
    "tokens must be torch.int64 of shape \\[2, 5\\], got torch.int32": dict(
        tokens=torch.zeros(2, 5, dtype=torch.int32)
    ),
    "logits must be \\[2, 5, V\\]": dict(logits=torch.zeros(2, 4, 3)),
    "logits must be floating-point": dict(logits=torch.zeros(2, 5, 3, dtype=torch.int64)),
    "masked must be torch.bool": dict(masked=torch.zeros(2, 5)),
    "n_keep_masked must be torch.int64 of shape \\[2\\]": dict(n_keep_masked=torch.zeros(1, dtype=torch.int64)),
    "seeds must be torch.int64 of shape \\[2\\]": dict(seeds=torch.zeros(2, 1, dtype=torch.int64)),
    "seeds is on meta, but logits are on cpu": dict(seeds=torch.zeros(2, dtype=torch.int64, device="meta")),
    "guidance_logits must be torch.float32 of shape": dict(guidance_logits=torch.zeros(2, 5, 3)),
    "guidance_logits is missing": dict(guidance_scale=1.0),
    "guidance_scale must be finite": dict(guidance_scale=float("nan")),
    "num_codes must be in \\[1, 9\\], .* got 10": dict(num_codes=10),
    "num_codes must be .* got 0": dict(num_codes=0),
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
        decode_step(**problem(2, 5, 8) | WRONG[message])
