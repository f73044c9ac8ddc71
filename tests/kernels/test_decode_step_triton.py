"""The Triton kernels of decode_step: held against the reference and against what is promised.

On a GPU, or interpreted, where a program costs some 40 ms however large its blocks are: `wide` gives a program many
rows where how rows are laid out is beside the point.
"""

import functools
import math
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from maskgit_kernels import backend, launching, philox
from maskgit_kernels.decode_step import decode_step
from maskgit_kernels.decode_step.reference import decode_step_reference
from maskgit_kernels.decode_step.settings import Settings, State

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("maskgit_kernels.decode_step.launch")

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # NumPy's, when interpreted

MODES = [("categorical", "log_prob"), ("categorical", "prob"), ("greedy", "log_prob"), ("perturbed", "prob")]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def use_triton(monkeypatch):
    monkeypatch.setattr(backend, "_requested", "triton")


@pytest.fixture(params=[1, 2], ids=["one launch", "two launches"])
def launches(request, monkeypatch):
    monkeypatch.setattr(kernels, "_one_launch", lambda batch, length: request.param == 1)
    return request.param


@pytest.fixture
def wide(monkeypatch):
    def tiles(num_codes, length, one_launch):
        quads = triton.next_power_of_2(triton.cdiv(num_codes, 4))
        return kernels._Tiles(triton.next_power_of_2(length), min(quads, 256), 4)

    if backend.interpreting():
        monkeypatch.setattr(kernels, "_tiles", tiles)


def problem(batch, length, codes, device, *, dtype=torch.float32, share=0.6, seed=0):
    """Random arguments of decode_step, with a column for the mask token that would win if it could."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(batch, length, codes + 1, generator=g) * 3).to(dtype)
    logits[:, :, codes] = 99
    masked = torch.rand(batch, length, generator=g) < share
    given = dict(
        logits=logits,
        tokens=torch.randint(codes, (batch, length), generator=g).masked_fill(masked, codes),
        masked=masked,
        n_keep_masked=torch.randint(length + 1, (batch,), generator=g),
        seeds=torch.randint(-(2**63), 2**63 - 1, (batch,), generator=g),
    )
    return {name: x.to(device) for name, x in given.items()} | dict(step=3, num_codes=codes)


def row_of_draws(logits, draws, **options):
    """Sample one token at each of `draws` positions of one image, all with the same logits [V]: int64 [draws]."""
    tokens, masked = decode_step(
        logits.expand(1, draws, -1),
        torch.full((1, draws), -1, device=logits.device),
        torch.ones(1, draws, dtype=torch.bool, device=logits.device),
        torch.zeros(1, dtype=torch.int64, device=logits.device),
        seeds=torch.tensor([12345], device=logits.device),
        **{"step": 0, **options},
    )
    assert not masked.any()
    return tokens[0]


def assert_is_reference(given):
    ours, expected = decode_step(**given), decode_step_reference(**given)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("draw, confidence", MODES)
@pytest.mark.parametrize("batch, length, codes", [(3, 17, 5), (1, 3, 1000), (2, 2, 1025), (2, 9, 1)])
def test_equals_reference(batch, length, codes, draw, confidence, guided, device):
    given = problem(batch, length, codes, device)
    given |= dict(draw=draw, confidence=confidence, softmax_temperature=0.7, choice_temperature=2.0)
    if guided:
        given |= dict(guidance_logits=given["logits"].flip(1) / 2, guidance_scale=1.5)
    assert_is_reference(given)


@pytest.mark.parametrize("draw, confidence", [MODES[0], MODES[3]])
def test_one_launch_and_two_are_the_same(launches, draw, confidence, device):
    for length, codes in ((40, 9), (3, 300)):
        given = problem(2, length, codes, device)
        assert_is_reference(given | dict(draw=draw, confidence=confidence, choice_temperature=2.0))
    assert all((counters == 0).all() for counters in kernels._counters_of_stream.values())


@pytest.mark.parametrize("codes, one_launch", [(256, False), (4096, True), (16384, False)])
def test_long_rows(codes, one_launch, monkeypatch, device):
    monkeypatch.setattr(kernels, "_one_launch", lambda batch, length: one_launch)
    assert_is_reference(problem(1, 2, codes, device, share=1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precisions(wide, dtype, device):
    given = problem(2, 33, 100, device, dtype=dtype)
    assert_is_reference(given)
    assert_is_reference(given | dict(guidance_logits=given["logits"].flip(1), guidance_scale=-0.5, draw="greedy"))


def test_strided_inputs(wide, device):
    given = problem(2, 9, 40, device) | dict(guidance_scale=2.0, choice_temperature=1.0)
    codes_first = torch.randn(2, 41, 9, device=device).transpose(1, 2)
    every_other = torch.randn(2, 18, 50, device=device)[:, ::2, 3:44]
    for logits in (codes_first, every_other, torch.randn(9, 41, device=device).expand(2, 9, 41)):
        assert_is_reference(given | dict(logits=logits, guidance_logits=every_other))
    transposed = {name: given[name].t().contiguous().t() for name in ("tokens", "masked")}
    shared = {name: given[name][:1].expand(2) for name in ("seeds", "n_keep_masked")}
    assert_is_reference(given | transposed | shared | dict(logits=every_other, guidance_logits=codes_first))


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["images", "positions", "codes"])
def test_offsets_beyond_32_bits(wide, device, far_apart, dim):
    given = problem(2, 6, 40, device, dtype=torch.float16)
    given["logits"][:, ::2, 39] = 20  # which is drawn, then, and looked up again
    logits = far_apart(given["logits"][:, :, :40], dim)
    assert_is_reference(given | dict(logits=logits, draw="greedy"))
    assert_is_reference(given | dict(logits=logits.contiguous(), guidance_logits=logits, guidance_scale=0.5))
    masks = {"masked": far_apart(given["masked"], dim)} if dim < 2 else {}
    assert_is_reference(given | masks | dict(logits=logits))


def test_large_logits_with_small_differences(wide, device):
    """Softmax does not mind an offset: neither may its rounding."""
    given = problem(1, 64, 50, device, share=1.0) | dict(choice_temperature=0.0)
    given["logits"] = (given["logits"] * 8).round() / 8 + 2.0**15  # exact in float32
    assert_is_reference(given)


@pytest.mark.parametrize("step", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_every_step_has_its_own_noise(wide, step, device):
    given = problem(1, 30, 20, device, share=1.0) | dict(step=step, choice_temperature=3.0)
    assert_is_reference(given)


@pytest.mark.parametrize("codes, images", [(16, 10), (37, 15)])
def test_100_000_random_rows(wide, codes, images, device):
    """Every token is the argmax of log p + Gumbel in float64, unless its two best are within rounding of each other."""
    length = 4000
    given = problem(images, length, codes, device, share=1.0, seed=codes) | dict(
        n_keep_masked=torch.zeros(images, dtype=torch.int64, device=device)
    )
    tokens, _ = decode_step(**given)

    positions = torch.arange(length, device=device)
    words = philox.random_words(given["seeds"][:, None], positions, 3, philox.STREAM_TOKEN, codes)  # [B, N, V]
    gumbels = -torch.log(-torch.log1p(-philox.uniform(words).double()))
    keys = torch.log_softmax(given["logits"][..., :codes].double(), -1) + gumbels
    best = keys.topk(2)
    undecided = best.values[..., 0] - best.values[..., 1] < 1e-5
    assert (tokens == best.indices[..., 0])[~undecided].all()
    assert undecided.sum() <= 5
    some = {name: given[name][:1, :500] for name in ("logits", "tokens", "masked")}
    some |= {name: given[name][:1] for name in ("seeds", "n_keep_masked")}
    assert torch.equal(tokens[:1, :500], decode_step_reference(**given | some)[0])


# --- the draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_distribution(wide, temperature, device):
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf, 0.5, -3.0], device=device)
    draws = 20000
    codes = row_of_draws(logits, draws, softmax_temperature=temperature)
    p = torch.softmax(logits.double() / temperature, 0)
    counts = torch.bincount(codes, minlength=7)
    assert counts[4] == 0
    possible = p > 0
    chi2 = ((counts - draws * p) ** 2 / (draws * p))[possible].sum()
    assert chi2 < 22.5  # 5 degrees of freedom: beyond it once in 2000


@pytest.mark.parametrize("draw, confidence", MODES)
def test_near_one_hot_is_exact(wide, draw, confidence, device):
    codes = torch.arange(150, device=device)
    logits = torch.full((1, 150, 150), -60.0, device=device)
    logits[0, codes, codes] = 60.0
    given = problem(1, 150, 150, device, share=1.0) | dict(logits=logits)
    tokens, _ = decode_step(**given, draw=draw, confidence=confidence)
    assert torch.equal(tokens[0], codes)


@pytest.mark.parametrize("draw, confidence", MODES)
def test_impossible_codes_are_never_drawn(wide, draw, confidence, device):
    logits = torch.full((50,), -torch.inf, device=device)
    logits[[3, 17, 49]] = torch.tensor([-1e30, 0.0, 0.1], device=device)
    codes = row_of_draws(logits, 2000, draw=draw, confidence=confidence, choice_temperature=100.0)
    assert set(codes.tolist()) <= {3, 17, 49}


@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, -1e30])
@pytest.mark.parametrize("draw, confidence", MODES)
def test_the_only_possible_code(wide, draw, confidence, lowest, device):
    logits = torch.full((9,), -torch.inf, device=device)
    logits[6] = lowest
    codes = row_of_draws(logits, 50, draw=draw, confidence=confidence, choice_temperature=1.0)
    assert set(codes.tolist()) == {6}


def test_greedy_takes_the_lower_code_of_equals(device):
    logits = torch.tensor([0.0, 2.0, 1.0] * 200, device=device)  # in several passes of the loop
    assert set(row_of_draws(logits, 2, draw="greedy").tolist()) == {1}
    assert set(row_of_draws(-logits.flip(0), 2, draw="greedy").tolist()) == {2}


@pytest.mark.parametrize("draw, confidence", MODES)
def test_infinite_logits_share_the_probability(wide, draw, confidence, device):
    logits = torch.tensor([5.0, torch.inf, -torch.inf, torch.inf], device=device)
    codes = row_of_draws(logits, 2000, draw=draw, confidence=confidence)
    assert set(codes.tolist()) == ({1} if draw in ("greedy", "perturbed") else {1, 3})
    if draw == "categorical":
        assert abs((codes == 1).double().mean() - 0.5) < 0.06
    if draw == "perturbed":
        codes = row_of_draws(logits, 500, draw=draw, confidence=confidence, choice_temperature=100.0)
        assert set(codes.tolist()) == {1, 3}


def test_infinities_under_guidance(wide, device):
    inf = torch.inf
    logits = torch.tensor([-inf, 0.0, 0.0, 0.0, -inf], device=device)
    unguided = torch.tensor([-inf, -inf, inf, 0.0, 0.0], device=device)
    codes = row_of_draws(logits, 200, guidance_logits=unguided.expand(1, 200, 5), guidance_scale=2.0)
    assert set(codes.tolist()) == {3}


@pytest.mark.parametrize("draw, confidence", MODES)
@pytest.mark.parametrize("temperature", [1e-39, 1e-30, 1e30, 1e39])
def test_extreme_temperatures(wide, temperature, draw, confidence, device):
    logits = torch.tensor([1.0, 3.0, -torch.inf, 2.0], device=device)
    codes = row_of_draws(logits, 300, draw=draw, confidence=confidence, softmax_temperature=temperature)
    if draw == "categorical":
        assert set(codes.tolist()) == ({1} if temperature < 1 else {0, 1, 3})
    elif draw == "greedy" or temperature < 1:
        assert set(codes.tolist()) == {1}
    else:
        assert 2 not in set(codes.tolist())


# --- the selection ---------------------------------------------------------------------------------------------------


def select(scores, keep):
    """Run the selection alone: bool [B, N] for float32 scores [B, N] and int64 keep [B]."""
    batch, length = scores.shape
    still_masked = torch.empty(batch, length, dtype=torch.bool, device=scores.device)
    kernels.select_positions[(batch,)](
        scores,
        keep,
        keep,  # in place of seeds, which are not looked at without noise
        still_masked,
        length,
        0,
        0.0,
        NOISY=False,
        BLOCK_N=triton.next_power_of_2(length),
    )
    return still_masked


def selected(scores, keep):
    """What it must be: sorted by score, then by index, known positions (+inf) left out."""
    expected = torch.zeros_like(scores, dtype=torch.bool)
    for b, row in enumerate(scores.tolist()):
        is_open = [i for i, score in enumerate(row) if score < math.inf]
        for i in sorted(is_open, key=lambda i: (row[i], i))[: max(0, int(keep[b]))]:
            expected[b, i] = True
    return expected


INF = math.inf
SCORES = {
    "distinct": lambda n: torch.randn(n),
    "ties": lambda n: torch.randint(-2, 3, (n,)).float(),
    "zeros of both signs": lambda n: torch.tensor([0.0, -0.0, 1e-45, -1e-45])[torch.randint(4, (n,))],
    "infinities": lambda n: torch.tensor([-INF, 3.4e38, -3.4e38, 0.0])[torch.randint(4, (n,))],
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("length", [1, 21])
def test_selection_is_exact_for_every_count(kind, length, device):
    keep = torch.arange(-1, length + 2, device=device)
    scores = SCORES[kind](len(keep) * length).view(len(keep), length).to(device)
    scores[torch.rand(scores.shape, device=device) < 0.3] = torch.inf
    assert torch.equal(select(scores, keep), selected(scores, keep))


def test_selection_of_many_positions(device):
    keep = torch.tensor([0, 1, 333, 512, 1000, 2**40, -(2**40)], device=device)
    scores = (torch.randn(len(keep), 1000) * 20).round().div(20).to(device)
    scores[:, ::5] = torch.inf
    assert torch.equal(select(scores, keep), selected(scores, keep))


@pytest.mark.parametrize("draw, confidence", MODES)
def test_exactly_the_promised_number_stays_masked(wide, draw, confidence, device):
    given = problem(13, 11, 6, device, share=0.5) | dict(draw=draw, confidence=confidence, choice_temperature=3.0)
    given["n_keep_masked"] = torch.arange(-1, 12, device=device)
    _, masked = decode_step(**given)
    assert torch.equal(masked.sum(1), given["n_keep_masked"].clamp(min=0).minimum(given["masked"].sum(1)))
    assert not (masked & ~given["masked"]).any()
    assert torch.equal(masked, decode_step_reference(**given)[1])


@pytest.mark.parametrize("choice_temperature", [0.0, 3e38])
def test_ties_leave_the_lower_index_masked(wide, choice_temperature, device):
    """All confidences are equal without noise; with a huge one many overflow, and are then below the known ones."""
    given = problem(2, 12, 4, device) | dict(logits=torch.zeros(2, 12, 5, device=device), draw="greedy")
    _, masked = decode_step(**given, choice_temperature=choice_temperature)
    keep = given["n_keep_masked"].minimum(given["masked"].sum(1))
    assert torch.equal(masked.sum(1), keep) and not (masked & ~given["masked"]).any()
    if choice_temperature == 0:
        first = given["masked"] & (given["masked"].cumsum(1) <= keep[:, None])
        assert torch.equal(masked, first)


# --- the contract ----------------------------------------------------------------------------------------------------


def test_one_launch_is_for_few_rows_and_positions_that_few_warps_can_select_among():
    assert kernels._one_launch(16, 256) and kernels._one_launch(4, 1024)
    assert not kernels._one_launch(17, 256) and not kernels._one_launch(1, 2048)


def test_results_do_not_depend_on_the_batch(wide, device):
    given = problem(5, 40, 77, device) | dict(choice_temperature=2.0)
    tokens, masked = decode_step(**given)
    for picked in (torch.tensor([4, 0, 2]), torch.tensor([3])):
        some = {name: x[picked.to(device)] for name, x in given.items() if isinstance(x, torch.Tensor)}
        some_tokens, some_masked = decode_step(**given | some)
        assert torch.equal(some_tokens, tokens[picked]) and torch.equal(some_masked, masked[picked])


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("draw, confidence", MODES)
def test_rows_without_a_sample_get_some_code(launches, draw, confidence, bad, device):
    given = problem(2, 6, 10, device) | dict(draw=draw, confidence=confidence, choice_temperature=1.0)
    given["masked"][:] = torch.tensor([True, False, True, True, False, True])
    given["n_keep_masked"][:] = 2
    row = given["logits"][1, 2]
    row[4 if bad != bad else slice(None)] = bad
    given["logits"][0, 0] = bad
    tokens, masked = decode_step(**given)
    assert ((tokens >= 0) & (tokens <= 10)).all() and (tokens[given["masked"]] < 10).all()
    assert masked.sum(1).tolist() == [2, 2] and not (masked & ~given["masked"]).any()


def test_known_positions_are_unchanged_and_their_logits_ignored(launches, device):
    given = problem(2, 6, 10, device)
    tokens, masked = decode_step(**given)
    given["logits"][~given["masked"]] = torch.nan
    assert torch.equal(decode_step(**given)[0], tokens) and torch.equal(decode_step(**given)[1], masked)
    assert torch.equal(tokens[~given["masked"]], given["tokens"][~given["masked"]])
    given["masked"][:] = False
    tokens, masked = decode_step(**given)
    assert torch.equal(tokens, given["tokens"]) and not masked.any()


@pytest.mark.parametrize("batch, length", [(0, 4), (2, 0)])
def test_nothing_to_do(batch, length, device):
    tokens, masked = decode_step(**problem(batch, length, 3, device))
    assert tokens.shape == masked.shape == (batch, length)


def test_float64_is_left_to_pytorch(device):
    given = problem(1, 4, 5, device, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="backend 'triton' was asked for, but it does not take float64 logits"):
        decode_step(**given)
    for ours, expected in zip(decode_step(**given, backend="auto"), decode_step_reference(**given), strict=True):
        assert torch.equal(ours, expected)


class Step(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, logits, tokens, masked, n_keep_masked, seeds):
        return decode_step(logits, tokens, masked, n_keep_masked, seeds=seeds, step=3, num_codes=7, **self.options)


@pytest.mark.parametrize("requested", ["triton", "torch"])
def test_operator_checks_compiles_and_exports(wide, requested, device):
    given = problem(2, 5, 7, device)
    arguments = tuple(x for x in given.values() if isinstance(x, torch.Tensor))
    expected = decode_step_reference(**given, choice_temperature=2.0)
    transposed = (arguments[0], None, 7, arguments[1].t().contiguous().t(), *arguments[2:])
    options = (*Settings(3, 1.0, 2.0), requested, True)
    torch.library.opcheck(torch.ops.maskgit_kernels.decode_step.default, (*transposed, *options))

    step = Step(choice_temperature=2.0, backend=requested)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(step, arguments)
    (call,) = (n for n in exported.graph.nodes if n.target is torch.ops.maskgit_kernels.decode_step.default)
    assert call.args[-1] is True  # keeps no memory beyond the call
    for function in (compiled, exported.module()):
        tokens, masked = function(*arguments)
        assert torch.equal(tokens, expected[0]) and torch.equal(masked, expected[1])


# --- what it costs ---------------------------------------------------------------------------------------------------


class Traffic:
    """Launches, and bytes that loads and stores move, as the interpreter runs them."""

    def __init__(self, monkeypatch):
        from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

        monkeypatch.undo()  # poisoning what torch.empty returns would count
        monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2])  # the benchmarks are not installed
        from benchmarks.counting import count

        self.count = count
        self.launches = self.bytes = 0
        launch = GridExecutor.__call__
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def counted_launch(executor, *args, **options):
            self.launches += 1
            with _disable_current_modes():  # what the interpreter itself does with tensors is none of the kernel's
                return launch(executor, *args, **options)

        def counted_load(builder, pointers, mask, *rest):
            self.bytes += int(mask.data.sum()) * max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            return load(builder, pointers, mask, *rest)

        def counted_store(builder, pointers, value, mask, *rest):
            self.bytes += int(mask.data.sum()) * max(1, value.dtype.scalar.primitive_bitwidth // 8)
            return store(builder, pointers, value, mask, *rest)

        monkeypatch.setattr(GridExecutor, "__call__", counted_launch)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)

    def of(self, run):
        """(launches, bytes) of one call, PyTorch's own operations included."""
        self.launches = self.bytes = 0
        operations = self.count(run)
        return self.launches + operations.launches, self.bytes + operations.bytes


def kernel_step(given, guidance=None, scale=0.0, kept=True):
    """A step without the operator around it, ready to run."""
    state = State(*(given[name] for name in State._fields))
    settings = Settings(given["step"], choice_temperature=4.5, guidance_scale=scale)
    arguments = given["logits"], guidance, given["num_codes"], state, settings
    return functools.partial(kernels.decode_step_triton, *arguments, counters_may_outlive=kept)


@pytest.mark.skipif(not backend.interpreting(), reason="looks into the interpreter")
def test_launches_on_the_device_of_the_tensors(launches, launched_under):
    given = problem(1, 3, 5, "cpu")
    decode_step(**given)
    assert [guard is given["logits"] for guard in launched_under] == [True] * launches


@pytest.mark.skipif(not backend.interpreting(), reason="counts what the interpreter does")
def test_launches_and_bytes_per_logit(monkeypatch):
    """bf16 logits of 1024 codes, all positions masked: the eager chain against the kernels."""
    traffic = Traffic(monkeypatch)
    from benchmarks.naive_decode import eager_decode_step

    batch, length, codes = 1, 6, 1024
    logits = batch * length * codes
    given = problem(batch, length, codes, "cpu", dtype=torch.bfloat16, share=1.0)
    given["logits"] = given["logits"][..., :codes].contiguous()
    state = [given[name] for name in ("logits", "tokens", "masked", "n_keep_masked")]
    kernels._counters(batch, given["logits"].device, True)  # made at a stream's first step, and kept
    rows = []
    for sets, guidance, scale in ((1, None, 0.0), (2, given["logits"].flip(1), 3.0)):
        chain = traffic.count(
            functools.partial(eager_decode_step, *state, guidance_logits=guidance, guidance_scale=scale)
        )
        assert chain.launches > 20 and chain.bytes / logits > 70
        rows.append(("eager chain", sets, chain.launches, chain.bytes / logits))
        least = 2 * sets * logits + batch * length * 2 * (8 + 1)  # logits once, tokens and masks in and out
        for name, one, kept, expected in (
            ("one launch", True, True, 1),
            ("one launch and fresh counters", True, False, 2),
            ("two launches", False, True, 2),
        ):
            monkeypatch.setattr(kernels, "_one_launch", lambda batch, length, one=one: one)
            launches, moved = traffic.of(kernel_step(given, guidance, scale, kept))
            rows.append((name, sets, launches, moved / logits))
            assert launches == expected
            assert moved <= 1.05 * least and moved / logits <= 2.1 * sets

    print("\n| | sets of logits | launches | bytes per logit |\n|---|---|---|---|")
    for row in rows:
        print("| {} | {} | {} | {:.2f} |".format(*row))


@pytest.mark.skipif(not backend.interpreting(), reason="counts what the interpreter does")
def test_known_rows_are_skipped(monkeypatch):
    traffic = Traffic(monkeypatch)
    given = problem(1, 8, 512, "cpu", share=1.0)
    step = kernel_step(given)
    _, everything = traffic.of(step)
    given["masked"][0, 2:] = False
    _, quarter = traffic.of(step)
    assert quarter < 0.3 * everything


# --- on real hardware ------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch, length, codes", [(8, 256, 1024), (64, 256, 1024), (2, 1024, 16384), (3, 257, 1025)])
def test_large_steps_equal_pytorch(batch, length, codes, dtype):
    given = problem(batch, length, codes, "cuda", dtype=dtype) | dict(choice_temperature=4.5)
    for options in (
        {},
        dict(guidance_logits=given["logits"].flip(1), guidance_scale=1.0),
        dict(draw="greedy"),
        dict(draw="perturbed", confidence="prob"),
    ):
        tokens, masked = decode_step(**given, **options)
        expected_tokens, expected_masked = decode_step(**given, **options, backend="torch")
        # Two float32 implementations: of half a million races a few may end within rounding.
        assert (tokens != expected_tokens).sum() <= 1 + 1e-5 * batch * length * len(options)
        assert torch.equal(masked.sum(1), expected_masked.sum(1))
        assert (masked != expected_masked).sum() <= 2 + 1e-3 * batch * length


@pytest.mark.gpu
@on_gpu
def test_no_host_sync():
    given = problem(4, 256, 1024, "cuda")
    decode_step(**given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decode_step(**given)
        decode_step(**given, backend="torch")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@on_gpu
def test_scalars_do_not_recompile():
    given = problem(2, 64, 512, "cuda")
    for step, temperature in ((0, 0.5), (1, 1.0), (16, 2.0), (17, 3.5)):
        decode_step(**given | dict(step=step, softmax_temperature=temperature, choice_temperature=temperature))
        compiled = len(launching._started)
        if step == 0:
            first = compiled
    assert compiled == first


@pytest.mark.gpu
@on_gpu
def test_cuda_graph_is_replayed_with_new_inputs():
    first, second = (problem(4, 256, 1024, "cuda", seed=seed) | dict(choice_temperature=2.0) for seed in (1, 2))
    decode_step(**first)  # compiles
    inputs = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in first.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = decode_step(**inputs)
    for given in (second, first, second):
        for name, x in given.items():
            if isinstance(x, torch.Tensor):
                inputs[name].copy_(x)
        graph.replay()
        for ours, expected in zip(results, decode_step(**given), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.gpu
@on_gpu
def test_streams_do_not_disturb_each_other():
    problems = [problem(8, 256, 1024, "cuda", seed=seed) | dict(choice_temperature=2.0) for seed in range(4)]
    expected = [decode_step(**given) for given in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    results = []
    for _ in range(50):
        for stream, given in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                results.append(decode_step(**given))
    torch.cuda.synchronize()
    for n, (tokens, masked) in enumerate(results):
        assert torch.equal(tokens, expected[n % 4][0]) and torch.equal(masked, expected[n % 4][1])
