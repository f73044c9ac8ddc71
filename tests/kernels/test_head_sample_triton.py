"""Triton's two ways of head_sample: what test_head_sample.py, which runs them too, doesn't see.

Where nothing else is said, the product that draws from its tiles.
"""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from maskgit_kernels import backend, launching, philox
from maskgit_kernels.decode_step.settings import Settings, State
from maskgit_kernels.head_sample import choice, head_sample
from maskgit_kernels.head_sample.eager import head_sample_eager
from maskgit_kernels.head_sample.reference import head_sample_reference

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("maskgit_kernels.head_sample.triton_draw")
launch = pytest.importorskip("maskgit_kernels.head_sample.launch")
tl = triton.language

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # NumPy's, when interpreted

MODES = [("categorical", "log_prob"), ("greedy", "log_prob")]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
interpreted = pytest.mark.skipif(not backend.interpreting(), reason="counts what the interpreter does")


@pytest.fixture(autouse=True)
def use_triton(monkeypatch):
    monkeypatch.setattr(backend, "_requested", "triton")
    with choice.impose("fused"):
        yield


def problem(batch, length, codes, width, device, *, dtype=torch.float32, share=0.6, guided=False, seed=0):
    """Random arguments of head_sample: logits of standard deviation 3, and a little bias for each position.

    With guidance the hidden states are such that the guided one is exact in half precision too.
    """
    g = torch.Generator().manual_seed(seed)
    given = dict(
        hidden=torch.randn(batch, length, width, generator=g).to(dtype),
        weight=(3 * torch.randn(codes, width, generator=g) / width**0.5).to(dtype),
        bias=torch.randn(length, codes, generator=g),
        tokens=torch.full((batch, length), codes),
        masked=torch.rand(batch, length, generator=g) < share,
        n_keep_masked=torch.randint(length + 1, (batch,), generator=g),
        seeds=torch.randint(-(2**63), 2**63 - 1, (batch,), generator=g),
    )
    if guided:
        given["guidance_hidden"] = torch.randn(batch, length, width, generator=g).to(dtype)
        for name in ("hidden", "guidance_hidden"):
            given[name] = given[name].mul(8).round().clamp(-16, 16).div(8)
    given = {name: x.to(device) for name, x in given.items()}
    return given | dict(step=3, guidance_scale=1.5 if guided else 0.0)


def assert_is_reference(given):
    ours, expected = head_sample(**given), head_sample_reference(**given)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


# --- the order of columns --------------------------------------------------------------------------------------------


@triton.jit
def columns(codes, block, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, SPAN: tl.constexpr):
    m, v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_V)
    tl.store(codes + v, kernels._codes_as_columns(BLOCK_V, SPAN))
    at = m[:, None] * BLOCK_V + v[None, :]
    tl.store(block + at, kernels._by_columns(at, BLOCK_M, BLOCK_V, SPAN))


@pytest.mark.parametrize("block_v", [64, 128])
@pytest.mark.parametrize("span", [2, 16, 32])
def test_four_adjacent_codes_are_columns_of_one_thread(block_v, span, device):
    codes = torch.empty(block_v, dtype=torch.int32, device=device)
    block = torch.empty(4, block_v, dtype=torch.int32, device=device)
    columns[(1,)](codes, block, BLOCK_M=4, BLOCK_V=block_v, SPAN=span)
    assert sorted(codes.tolist()) == list(range(block_v))
    assert torch.equal(block, codes + block_v * torch.arange(4, dtype=torch.int32, device=device)[:, None])
    column = codes.argsort()  # of each code
    for first in column[::4].tolist():
        assert first % 2 == 0
        assert column[codes[first] : codes[first] + 4].tolist() == [first, first + 1, first + span, first + span + 1]


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("draw, confidence", MODES)
@pytest.mark.parametrize("arithmetic", ["half", "tf32", "ieee"])
@pytest.mark.parametrize("capability", [80, 86, 90, 120])
def test_tiles_of_every_architecture(capability, arithmetic, draw, confidence, guided, monkeypatch, device):
    if arithmetic == "tf32" and not backend.interpreting():
        pytest.skip("rounds products, which the interpreter does not")
    monkeypatch.setattr(launch, "capability_of", lambda device: capability)
    monkeypatch.setattr(launch, "math_for", lambda dtype: arithmetic)
    dtype = torch.bfloat16 if arithmetic == "half" else torch.float32
    given = problem(1, 9, 140, 80, device, dtype=dtype, guided=guided)
    assert_is_reference(given | dict(draw=draw, confidence=confidence, choice_temperature=2.0))


def test_factors_are_rounded_to_tf32(request, device):
    """Neither left as they are nor cut off: code 1 wins where its factor rounds up to more than that of code 0, a 1."""
    before = torch.get_float32_matmul_precision()
    request.addfinalizer(lambda: torch.set_float32_matmul_precision(before))
    torch.set_float32_matmul_precision("high")
    unit = 2.0**-10  # the spacing of tf32 from 1 to 2
    factors = torch.tensor([1 + 0.4 * unit, 1 + 0.5 * unit, 1 + 0.6 * unit])
    hidden, weight, bias = torch.zeros(1, 6, 16), torch.zeros(2, 16), torch.zeros(6, 2)
    for n, factor in enumerate(factors):
        hidden[0, n, n], weight[0, n], weight[1, n] = 1, 1, factor  # logits 1 and factor
        hidden[0, 3 + n, 3], bias[3 + n, 0], weight[1, 3] = factor, 1, 1  # the same, the factor on the other side
    given = problem(1, 6, 2, 16, device, share=1.0)
    given |= dict(hidden=hidden.to(device), weight=weight.to(device), bias=bias.to(device))
    tokens, _ = head_sample(**given, draw="greedy")
    assert tokens.tolist() == [[0, 1, 1, 0, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_are_float32(dtype, device):
    """Products of halves are exact in float32: so are the logits, but for the order of the sum."""
    assert_is_reference(problem(2, 70, 140, 256, device, dtype=dtype) | dict(choice_temperature=1.0))


def test_many_codes(device):
    assert_is_reference(problem(1, 3, 2100, 32, device, share=1.0) | dict(choice_temperature=0.1))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.15, 1.0])
def test_many_positions(share, device):
    given = problem(2, 300, 20, 16, device, share=share) | dict(choice_temperature=1.0)
    assert_is_reference(given)


def test_12_000_random_rows(device):
    """Every token is the argmax of log p + Gumbel in float64, unless its two best are within rounding of each other."""
    images, length, codes = 4, 3000, 37
    given = problem(images, length, codes, 16, device, share=1.0)
    tokens, _ = head_sample(**given)

    positions = torch.arange(length, device=device)
    words = philox.random_words(given["seeds"][:, None], positions, 3, philox.STREAM_TOKEN, codes)  # [B, N, V]
    gumbels = -torch.log(-torch.log1p(-philox.uniform(words).double()))
    logits = given["hidden"].double() @ given["weight"].double().T + given["bias"].double()
    best = (logits + gumbels).topk(2)
    undecided = best.values[..., 0] - best.values[..., 1] < 1e-5
    assert (tokens == best.indices[..., 0])[~undecided].all()
    assert undecided.sum() <= 3


@pytest.mark.parametrize("temperature", [1e-39, 1e39])
def test_temperatures_beyond_float32(temperature, device):
    given = problem(1, 60, 40, 16, device, share=1.0) | dict(softmax_temperature=temperature)
    given["n_keep_masked"] = torch.tensor([30], device=device)
    tokens, masked = head_sample(**given)
    if temperature < 1:
        assert torch.equal(tokens, head_sample(**given, draw="greedy")[0])
    else:
        assert len(set(tokens[0].tolist())) > 20  # uniform
    assert masked.sum() == 30


@pytest.mark.parametrize("name", ["hidden", "guidance_hidden", "weight", "bias", "masked"])
def test_offsets_beyond_32_bits(device, far_apart, name):
    """Whichever way the numbers lie far apart."""
    given = problem(2, 6, 40, 16, device, dtype=torch.float16, guided=True)
    given["bias"] = given["bias"].half()
    for dim in range(given[name].dim()):
        assert_is_reference(given | {name: far_apart(given[name], dim)})


# --- what it costs ---------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("draw, confidence", MODES)
def test_logits_are_never_in_memory(draw, confidence, monkeypatch, device):
    if backend.interpreting():
        from triton.runtime.interpreter import GridExecutor

        call = GridExecutor.__call__

        def unseen_launch(*args, **options):
            with _disable_current_modes():  # the interpreter makes tensors of its own
                return call(*args, **options)

        monkeypatch.setattr(GridExecutor, "__call__", unseen_launch)
    rows, codes, width = 80, 500, 16
    given = problem(2, rows // 2, codes, width, device, share=1.0)
    head = launch.Head(given["hidden"], None, given["weight"], given["bias"][0])
    state = State(*(given[name] for name in State._fields))
    settings = Settings(3, choice_temperature=1.0, draw=draw, confidence=confidence)
    with Largest() as eager:
        head_sample_eager(*head, state, settings)
    assert eager.elements >= rows * codes
    with Largest() as ours:
        launch.head_sample_triton(head, state, settings, counters_may_outlive=True)
    assert 0 < ours.elements <= rows * codes // 16


@pytest.fixture
def count(monkeypatch):
    """Counts launches and products of tiles."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    counts = dict(launches=0, products=0)

    def counted(owner, name, key):
        original = getattr(owner, name)

        def call(*args, **options):
            counts[key] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, name, call)

    counted(GridExecutor, "__call__", "launches")
    counted(InterpreterBuilder, "create_dot", "products")

    def run(given):
        counts.update(launches=0, products=0)
        head_sample(**given)
        return counts["launches"], counts["products"]

    return run


@interpreted
@pytest.mark.parametrize("draw, confidence", MODES)
def test_three_launches_and_one_product(count, draw, confidence, device):
    """Guidance adds no product."""
    for guided in (False, True):
        given = problem(1, 20, 200, 128, device, guided=guided, dtype=torch.float16)
        products = 2 * 2  # tiles of 128 codes, blocks of 64 columns of the hidden state
        assert count(given | dict(draw=draw, confidence=confidence)) == (3, products)


@interpreted
def test_launches_on_the_device_of_the_tensors(launched_under, device):
    given = problem(1, 5, 9, 16, device)
    head_sample(**given)
    with choice.impose("product"):
        head_sample(**given)
    assert [guard is given["hidden"] for guard in launched_under] == [True] * 4


@interpreted
@pytest.mark.parametrize("masked, tiles", [([0, 0, 0], 0), ([1, 0, 0], 1), ([40, 0, 88], 1), ([43, 43, 43], 2)])
def test_products_are_made_for_masked_rows_only(count, masked, tiles, device):
    """Of all images together."""
    given = problem(3, 130, 100, 64, device, dtype=torch.float16, share=0.0)
    for image, number in zip(given["masked"], masked, strict=True):
        image[torch.randperm(130)[:number]] = True
    assert count(given) == (3, tiles)


# --- rows of several images in a tile --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 100, 1500])
def test_masked_positions_are_listed(length, device):
    for share in (0.0, 0.1, 1.0):
        masked = torch.rand(5, length, device=device) < share
        threads = launch._listing_threads(length)
        listed = torch.empty(5 * length + 1, dtype=torch.int32, device=device)
        kernels.list_masked[(5,)](masked, listed, length, BLOCK=threads, num_warps=threads // 32)
        expected = masked.flatten().nonzero()[:, 0]
        assert listed[-1] == len(expected)
        assert torch.equal(listed[: len(expected)].long(), expected)


@pytest.fixture
def partials(monkeypatch):
    """What tiles have found: int32 [B, tiles, N, 4] of the last call."""
    found = []
    start = launch.start

    def noted(kernel, grid, tensors, *rest):
        start(kernel, grid, tensors, *rest)
        if kernel is launch.draw_from_tiles:
            found[:] = [tensors[-1]]

    monkeypatch.setattr(launch, "start", noted)
    return found


@pytest.mark.parametrize("arithmetic", ["half", "ieee"])
def test_bits_of_a_row_do_not_depend_on_what_shares_its_tile(arithmetic, partials, monkeypatch, device):
    """Rows of a batch of three images, of the same image with fewer masked, of others around it, one alone."""
    monkeypatch.setattr(launch, "math_for", lambda dtype: arithmetic)
    dtype = torch.bfloat16 if arithmetic == "half" else torch.float32
    given = problem(3, 50, 140, 48, device, dtype=dtype)
    head_sample(**given)
    whole = partials[0][1]  # [tiles, N, 4]
    per_image = ("hidden", "tokens", "masked", "n_keep_masked", "seeds")
    for images, place in (([1], 0), ([2, 1], 1), ([1, 0, 0], 0)):
        some = {name: given[name][images].clone() for name in per_image}
        some["masked"][place] &= torch.rand(50, device=device) < 0.7
        neighbours = torch.arange(len(images), device=device) != place
        some["hidden"][neighbours] = torch.nan
        head_sample(**given | some)
        rows = some["masked"][place]
        assert rows.sum() > 10
        assert torch.equal(partials[0][place][:, rows], whole[:, rows])


# --- a product and a step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw, confidence", [*MODES, ("perturbed", "prob")])
def test_logits_are_made_in_pieces(draw, confidence, monkeypatch, device):
    given = problem(5, 9, 40, 32, device, guided=True)
    given |= dict(draw=draw, confidence=confidence, choice_temperature=2.0)
    largest = []
    product = launch._product
    monkeypatch.setattr(launch, "_product", lambda *factors: largest.append(product(*factors)) or largest[-1])
    with choice.impose("product"):
        whole = head_sample(**given)
        for piece, rows in ((2 * 9 * 40, [18, 18, 9]), (1, [9] * 5)):
            largest.clear()
            monkeypatch.setattr(launch, "_PIECE", piece)
            for ours, expected in zip(head_sample(**given), whole, strict=True):
                assert torch.equal(ours, expected)
            assert [len(logits) for logits in largest] == rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_both_ways_give_the_same(dtype, device):
    """Logits are summed in float32 and rounded to nothing less, so that only the order of the sums differs."""
    given = problem(3, 60, 140, 256, device, dtype=dtype, guided=True) | dict(choice_temperature=2.0)
    fused = head_sample(**given)
    with choice.impose("product"):
        for ours, expected in zip(head_sample(**given), fused, strict=True):
            assert torch.equal(ours, expected)


def wins(rows, width, *, codes=1024, arithmetic="half", guided=False, capability=90, multiprocessors=132):
    tile = (128, 128, 1) if arithmetic != "ieee" else (64, 128, 2)
    return choice.fused_wins(rows, codes, width, arithmetic, guided, tile, capability, multiprocessors)


def test_fused_where_it_was_timed_to_win():
    """On an H200, bfloat16, D = 768: 26.8 us against 38.6 us, and 254 us against 347 us for 16 times the codes."""
    assert wins(8 * 256, 768)
    assert wins(8 * 256, 768, codes=16384)


def test_the_product_where_tiles_load_too_much():
    assert not wins(64 * 256, 2048) and not wins(64 * 256, 768, guided=True)
    assert wins(64 * 256, 256, guided=True)
    assert not wins(64 * 256, 768, capability=100, multiprocessors=148)  # a library's products are twice as fast
    assert wins(64 * 256, 2048, capability=80, multiprocessors=108)  # half as fast
    for settings in (dict(), dict(arithmetic="tf32"), dict(guided=True), dict(capability=100)):
        ways = [wins(64 * 256, width, **settings) for width in range(16, 4096, 16)]
        assert ways == sorted(ways, reverse=True)  # once the product wins, it does for everything wider


def test_the_choice_is_made_by_shape(monkeypatch, device):
    given = problem(2, 5, 9, 16, device)
    state, settings = State(*(given[name] for name in State._fields)), Settings(0)
    head = launch.Head(given["hidden"], None, given["weight"], given["bias"])
    taken = []
    monkeypatch.setattr(launch, "imposed", lambda: None)
    monkeypatch.setattr(launch, "_fused", lambda *_: taken.append("fused"))
    monkeypatch.setattr(launch, "_product_and_step", lambda *_: taken.append("product"))
    for fused in (True, False):
        launch._faster.cache_clear()
        monkeypatch.setattr(launch, "fused_wins", lambda *shape, fused=fused: fused)
        for some in (settings, settings._replace(draw="perturbed", confidence="prob")):
            launch.head_sample_triton(head, state, some, counters_may_outlive=True)
    launch._faster.cache_clear()
    assert taken == ["fused", "product", "product", "product"]


# --- on real hardware ------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "batch, length, codes, width", [(8, 256, 1024, 768), (2, 1024, 16384, 768), (3, 257, 1025, 200), (1, 16, 512, 48)]
)
def test_large_steps_equal_pytorch(batch, length, codes, width, dtype):
    for guided in (False, True):
        given = problem(batch, length, codes, width, "cuda", dtype=dtype, guided=guided) | dict(choice_temperature=4.5)
        wide = {name: given[name].float() for name in ("hidden", "weight", "guidance_hidden") if name in given}
        for way, options in itertools.product(
            choice.WAYS, ({}, dict(draw="greedy"), dict(draw="perturbed", confidence="prob"))
        ):
            with choice.impose(way):
                tokens, masked = head_sample(**given, **options)
            expected_tokens, expected_masked = head_sample(**given | wide, **options, backend="torch")
            # Two ways to sum float32: of half a million races a few may end within rounding.
            assert (tokens != expected_tokens).sum() <= 2 + 1e-3 * batch * length
            assert torch.equal(masked.sum(1), expected_masked.sum(1))
            assert (masked != expected_masked).sum() <= 4 + 2e-3 * batch * length


@pytest.mark.gpu
@on_gpu
def test_images_of_a_large_batch_are_the_same_alone():
    given = problem(16, 256, 1024, 768, "cuda", dtype=torch.bfloat16) | dict(choice_temperature=4.5)
    tokens, masked = head_sample(**given)
    for b in (0, 7, 15):
        alone = {name: given[name][b : b + 1] for name in ("hidden", "tokens", "masked", "n_keep_masked", "seeds")}
        some_tokens, some_masked = head_sample(**given | alone)
        assert torch.equal(some_tokens[0], tokens[b]) and torch.equal(some_masked[0], masked[b])


@pytest.mark.gpu
@on_gpu
def test_no_host_sync():
    given = problem(4, 256, 1024, 256, "cuda", dtype=torch.bfloat16, guided=True)
    ways = [("fused", "triton"), ("product", "triton"), ("product", "torch")]

    def run():
        for way, implementation in ways:
            with choice.impose(way):
                head_sample(**given, backend=implementation)

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@on_gpu
def test_memory_is_that_of_the_partial_results():
    batch, length, codes = 8, 256, 16384
    given = problem(batch, length, codes, 64, "cuda", dtype=torch.bfloat16, share=1.0)
    head_sample(**given)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    head_sample(**given)
    assert torch.cuda.max_memory_allocated() - before < batch * length * codes  # half of the logits in bfloat16


@pytest.mark.gpu
@on_gpu
def test_scalars_do_not_recompile():
    given = problem(2, 64, 512, 128, "cuda", dtype=torch.bfloat16)
    for step, temperature in ((0, 0.5), (1, 1.0), (16, 2.0), (17, 3.5)):
        head_sample(**given | dict(step=step, softmax_temperature=temperature, choice_temperature=temperature))
        compiled = len(launching._started)
        if step == 0:
            first = compiled
    assert compiled == first


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("way", choice.WAYS)
def test_cuda_graph_is_replayed_with_new_inputs(way, request):
    imposed = choice.impose(way)
    imposed.__enter__()
    request.addfinalizer(lambda: imposed.__exit__(None, None, None))
    first, second = (
        problem(4, 256, 1024, 256, "cuda", dtype=torch.bfloat16, seed=seed) | dict(choice_temperature=2.0)
        for seed in (1, 2)
    )
    head_sample(**first)  # compiles
    inputs = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in first.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = head_sample(**inputs)
    for given in (second, first, second):
        for name, x in given.items():
            if isinstance(x, torch.Tensor):
                inputs[name].copy_(x)
        graph.replay()
        for ours, expected in zip(results, head_sample(**given), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.gpu
@on_gpu
def test_streams_do_not_disturb_each_other():
    problems = [problem(8, 256, 1024, 256, "cuda", dtype=torch.bfloat16, seed=seed) for seed in range(4)]
    expected = [head_sample(**given) for given in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream, given in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                results.append(head_sample(**given))
    torch.cuda.synchronize()
    for n, (tokens, masked) in enumerate(results):
        assert torch.equal(tokens, expected[n % 4][0]) and torch.equal(masked, expected[n % 4][1])
