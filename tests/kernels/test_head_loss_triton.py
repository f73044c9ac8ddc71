"""The Triton kernels of head_loss: what test_head_loss.py, which runs them too, doesn't see."""

import functools
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from maskgit_kernels import backend
from maskgit_kernels.head_loss import head_loss
from maskgit_kernels.head_loss.eager import head_loss_eager
from maskgit_kernels.head_loss.reference import head_loss_reference

triton = pytest.importorskip("triton")
launch = importlib.import_module("maskgit_kernels.head_loss.launch")
plan = importlib.import_module("maskgit_kernels.head_loss.plan")

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # NumPy's, when interpreted

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
interpreted = pytest.mark.skipif(not backend.interpreting(), reason="counts what the interpreter does")
KERNELS = (
    "pack_rows",
    "weigh_tiles",
    "join_tiles",
    "differentiate_logits",
    "differentiate_hidden",
    "differentiate_weight",
    "sum_rows",
)


@pytest.fixture(autouse=True)
def use_triton(monkeypatch):
    monkeypatch.setattr(backend, "_requested", "triton")


def problem(batch, length, codes, width, device, *, dtype=torch.float32, bias="position", share=0.6):
    """Random arguments of head_loss; NaN where nothing is counted."""
    g = torch.Generator().manual_seed(batch + length + codes + width)
    biases = {"position": (length, codes), "code": (codes,)}
    counted = torch.rand(batch, length, generator=g) < share
    hidden = torch.randn(batch, length, width, generator=g).masked_fill(~counted[..., None], torch.nan)
    given = dict(
        hidden=hidden.to(dtype),
        weight=(3 * torch.randn(codes, width, generator=g) / width**0.5).to(dtype),
        bias=torch.randn(biases[bias], generator=g) if bias else None,
        targets=torch.randint(codes, (batch, length), generator=g),
        counted=counted,
    )
    return {name: x if x is None else x.to(device) for name, x in given.items()}


def with_gradients(function, given, **options):
    """[loss, hits, gradients of the loss by hidden, weight and bias]."""
    leaves = {
        name: given[name].detach().clone().requires_grad_()
        for name in ("hidden", "weight", "bias")
        if given[name] is not None
    }
    loss, hits = function(**given | leaves, **options)
    return [loss.detach(), hits, *torch.autograd.grad(loss, list(leaves.values()))]


def exact(given, **options):
    wide = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in given.items()}
    return with_gradients(head_loss_reference, wide, **options)


def assert_is_close(results, expected, tolerance=1e-5):
    assert results[1] == expected[1]
    for x, y in zip(results, expected, strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=tolerance, atol=tolerance * y.abs().max().item())


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["position", "code", None])
@pytest.mark.parametrize("math", ["half", "tf32", "ieee"])
def test_whatever_multiplies(math, bias, monkeypatch, device):
    if math == "tf32" and not backend.interpreting():
        pytest.skip("rounds products, which the interpreter does not")
    monkeypatch.setattr(launch, "math_for", lambda dtype: math)
    dtype = torch.float16 if math == "half" else torch.float32
    given = problem(3, 30, 140, 150, device, dtype=dtype, bias=bias)
    results = with_gradients(head_loss, given, label_smoothing=0.1)
    assert_is_close(results, exact(given, label_smoothing=0.1), 1e-5 if math == "ieee" else 4e-3)


@pytest.mark.parametrize("batch, length", [(70, 3), (2, 110)])
@pytest.mark.parametrize("bias", ["position", "code", None])
def test_a_chunk_at_a_time(bias, batch, length, monkeypatch, device):
    """Positions have rows in two chunks."""
    given = problem(batch, length, 40, 32, device, bias=bias, share=0.8)
    monkeypatch.setattr(plan, "_SCRATCH", 0)
    whole = plan.Plan("ieee", batch, length, 32, 40, bias or "none", True)
    assert whole.chunk < whole.num_rows / 3
    assert_is_close(with_gradients(head_loss, given, label_smoothing=0.1), exact(given, label_smoothing=0.1))


def test_chunks_of_which_some_are_empty(monkeypatch, device):
    given = problem(4, 100, 40, 32, device, share=0.2)
    monkeypatch.setattr(plan, "_SCRATCH", 0)
    assert_is_close(with_gradients(head_loss, given), exact(given))


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_rows_are_shared_out_for_the_weight(share, device):
    given = problem(4, 100, 9, 16, device, share=share)
    assert plan.Plan("ieee", 4, 100, 16, 9, "position", True).slices > 2
    assert_is_close(with_gradients(head_loss, given), exact(given))


def test_more_tiles_of_codes_than_are_joined_at_once(device):
    given = problem(1, 4, 150 * 64, 16, device, bias="code", share=1.0)
    given["bias"][5] = given["bias"][9000] = 50  # equally good, to a rounding of the product
    given["weight"][5] = given["weight"][9000]
    given["targets"][:] = torch.tensor([5, 9000, 5, 7], device=device)
    assert plan.Plan("ieee", 1, 4, 16, 9600, "code", True).tiles > 128
    results = with_gradients(head_loss, given, label_smoothing=0.2)
    assert results[1] == 2
    assert_is_close(results, exact(given, label_smoothing=0.2))


@pytest.mark.parametrize("batch, length", [(2, 6000), (6000, 2), (1, 1), (3, 1366)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rows_are_packed_in_the_order_of_positions(batch, length, share, device):
    counted = torch.rand(batch, length, device=device) < share
    rows = torch.full((batch * length + 1,), -7, dtype=torch.int32, device=device)
    starts = torch.full((length + 2,), -7, dtype=torch.int32, device=device)
    block = 4096
    launch.pack_rows[(triton.cdiv(batch * length, block),)](counted, rows, starts, batch, length, BLOCK=block)
    positions, images = counted.T.nonzero(as_tuple=True)
    count = len(positions)
    assert torch.equal(rows[:count].long(), images * length + positions) and (rows[count:] == -7).all()
    assert starts[:-1].tolist() == [0, *counted.sum(0).cumsum(0).tolist()] and starts[-1] == -7


def test_many_rows_are_summed(device):
    losses = torch.rand(10_000, device=device)
    hits = torch.randint(2, (10_000,), dtype=torch.int32, device=device)
    for count in (0, 1, 4096, 9_999):
        starts = torch.tensor([0, count], dtype=torch.int32, device=device)
        loss, hit_count = torch.empty((), device=device), torch.empty((), dtype=torch.int64, device=device)
        launch.sum_rows[(1,)](losses, hits, starts, loss, hit_count, 1, BLOCK=4096)
        torch.testing.assert_close(loss, losses[:count].double().sum().float(), rtol=1e-6, atol=0)
        assert hit_count == hits[:count].sum()


def to_tf32(x):
    """The nearest number with eleven significant bits, ties away from zero, as float64."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp(torch.sign(mantissa) * torch.floor(mantissa.abs() * 2**11 + 0.5) / 2**11, exponent)


def test_every_factor_is_rounded_to_tf32(request, device):
    before = torch.get_float32_matmul_precision()
    request.addfinalizer(lambda: torch.set_float32_matmul_precision(before))
    torch.set_float32_matmul_precision("high")
    given = problem(3, 20, 40, 48, device, bias=None, share=1.0)
    _, _, dhidden, dweight = with_gradients(head_loss, given, label_smoothing=0.1)
    hidden, weight = to_tf32(given["hidden"]), to_tf32(given["weight"])
    logits = hidden @ weight.T
    target = F.one_hot(given["targets"], 40) * 0.9 + 0.1 / 40
    dlogits = to_tf32((logits.softmax(-1) - target).float())
    for x, expected, close in ((dhidden, dlogits @ weight, 1e-5), (dweight, (dlogits.mT @ hidden).sum(0), 1e-5)):
        error = (x.double() - expected).square().mean().sqrt()
        assert error < close * expected.square().mean().sqrt()  # unrounded factors differ by 1e-4


@pytest.mark.parametrize("name", ["hidden", "weight", "bias", "targets", "counted"])
def test_offsets_beyond_32_bits(device, far_apart, name):
    """Whichever way the numbers lie far apart."""
    given = problem(2, 6, 40, 16, device, dtype=torch.float16)
    given["bias"] = given["bias"].half()
    expected = with_gradients(head_loss, given)
    for dim in range(given[name].dim()):
        leaves = {x: given[x].requires_grad_() for x in ("hidden", "weight", "bias")}
        moved = leaves | {name: far_apart(given[name].detach(), dim)}
        loss, hits = head_loss(**given | moved)
        assert torch.equal(loss, expected[0]) and torch.equal(hits, expected[1])


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_auto_leaves_exact_float32_to_pytorch(monkeypatch, device):
    monkeypatch.setattr(backend, "why_not_triton", lambda device: None)
    assert backend.resolve("auto", "cuda", slower=False) == "triton"
    assert backend.resolve("auto", "cuda", slower=True) == "torch"
    assert backend.resolve("triton", "cuda", slower=True) == "triton"
    operator = importlib.import_module("maskgit_kernels.head_loss.operator")
    asked = []
    monkeypatch.setattr(operator, "resolve", lambda *_, slower: asked.append(slower) or "torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        head_loss(**problem(1, 4, 5, 16, device, dtype=dtype))
    assert asked == [True, False, False]


class Memory(TorchDispatchMode):
    """Bytes of all tensors that operations have made and that are still there: their most, and the largest tensor's."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.alive[StorageWeakRef(x.untyped_storage())] = x.untyped_storage().nbytes()
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        self.alive = {storage: size for storage, size in self.alive.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


class Nothing:
    """A kernel that is launched on tensors without memory."""

    def __init__(self, name):
        self.__name__ = name

    def __getitem__(self, grid):
        return lambda *args, **options: None


@pytest.fixture
def no_kernels(monkeypatch):
    for name in KERNELS:
        monkeypatch.setattr(launch, name, Nothing(name))


def meta_problem(batch, length, codes, width):
    """The tensors of head_loss in bfloat16, without memory: any look at a value would raise."""
    meta = functools.partial(torch.zeros, device="meta")
    hidden, weight = (meta(*shape, dtype=torch.bfloat16) for shape in ((batch, length, width), (codes, width)))
    targets, counted = meta(batch, length, dtype=torch.int64), meta(batch, length, dtype=torch.bool)
    return hidden, weight, meta(codes), targets, counted


def unfused(hidden, weight, bias, targets, counted):
    """What training does without head_loss: logits of all positions, in float32 for the loss."""
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    logits = (F.linear(hidden, weight) + bias).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    hits = ((logits.argmax(-1) == targets) & counted).sum()
    loss = (losses * counted.flatten()).sum()
    return loss, hits, *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("function", [launch.head_loss_triton, head_loss_eager], ids=["triton", "torch"])
def test_memory_and_no_host_sync_at_full_size(function, no_kernels):
    """V = 16384, N = 576, batch 64: 8 GB less at the peak than logits, and no tensor of their size."""
    batch, length, codes, width = 64, 576, 16384, 768
    tensors = meta_problem(batch, length, codes, width)
    with Memory() as theirs:
        unfused(*tensors)
    tensors = meta_problem(batch, length, codes, width)
    with Memory() as ours:
        results = function(*tensors, tensors[-1], 0.0, True)
    assert theirs.peak > 9.6e9 and theirs.largest == 4 * batch * length * codes
    assert theirs.peak - ours.peak > 8e9
    assert ours.largest <= 2**28  # bytes
    assert [x.shape for x in results[2:]] == [(batch, length, width), (codes, width), (codes,)]


def test_memory_does_not_grow_with_the_batch_but_by_rows(no_kernels):
    """Twice the images add their hidden states' gradients and a few numbers a row."""
    peaks = []
    for batch in (64, 128):
        tensors = meta_problem(batch, 576, 16384, 768)
        with Memory() as ours:
            launch.head_loss_triton(*tensors, tensors[-1], 0.1, True)
        peaks.append(ours.peak)
    rows = 64 * 576
    assert peaks[1] - peaks[0] <= rows * (2 * 768 + 4 * 16384 / 64 + 16)


def test_logits_are_never_in_memory(monkeypatch, device):
    """Without gradients nothing of rows x codes; with them never more than the scratch."""
    if backend.interpreting():
        from triton.runtime.interpreter import GridExecutor

        original = GridExecutor.__call__

        def unseen_launch(*args, **options):
            with _disable_current_modes():  # the interpreter makes tensors of its own
                return original(*args, **options)

        monkeypatch.setattr(GridExecutor, "__call__", unseen_launch)
    monkeypatch.setattr(plan, "_SCRATCH", 0)
    given = problem(2, 200, 500, 16, device, bias="code", dtype=torch.bfloat16)
    arguments = *given.values(), given["counted"], 0.1
    for gradients, rows in ((False, 400 // 16), (True, 128)):
        with Memory() as ours:
            launch.head_loss_triton(*arguments, gradients)
        assert 0 < ours.largest <= rows * 512 * 2


@interpreted
def test_what_is_not_counted_is_not_multiplied(monkeypatch, device):
    from triton.runtime.interpreter import InterpreterBuilder

    dot, counted = InterpreterBuilder.create_dot, []

    def counting_dot(self, a, b, *rest):
        counted.append(a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting_dot)
    given = problem(4, 128, 128, 128, device, dtype=torch.float16)
    given["hidden"] = given["hidden"].nan_to_num()
    for rows, gradients in ((0, True), (128, True), (129, True), (256, True), (256, False)):
        counted.clear()
        mask = (torch.arange(512) * 37 % 512 < rows).view(4, 128).to(device)
        arguments = *list(given.values())[:4], mask, mask, 0.0, gradients
        launch.head_loss_triton(*arguments)
        products = sum(counted) / (128 * 128)
        blocks, small = 128 * -(-rows // 128), 64 * -(-rows // 64)
        assert products == (blocks * 2 + small if gradients else blocks)


@interpreted
@pytest.mark.parametrize("gradients, launches", [(False, 4), (True, 7)])
def test_launches_on_the_device_of_the_tensors(gradients, launches, launched_under, device):
    given = problem(1, 5, 9, 16, device)
    given["weight"].requires_grad_(gradients)
    head_loss(**given)
    assert [guard is given["hidden"] for guard in launched_under] == [True] * launches


class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("bias", ["position", "code", None])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("shape", [(8, 256, 1024, 768), (3, 576, 16384, 768), (5, 257, 1025, 200)], ids=str)
    def test_large(self, shape, dtype, bias, device):
        given = problem(*shape, device, dtype=dtype, bias=bias)
        found = with_gradients(head_loss, given, label_smoothing=0.1)
        theirs = with_gradients(functools.partial(head_loss, backend="torch"), given, label_smoothing=0.1)
        truth = exact(given, label_smoothing=0.1)
        for x, y, z in zip(found[2:], theirs[2:], truth[2:], strict=True):
            ours, plain = ((a.double() - z).square().mean().sqrt() for a in (x, y))
            assert ours <= 2 * plain + 3e-7 * z.square().mean().sqrt()
        torch.testing.assert_close(found[0].double(), truth[0], rtol=1e-5 if dtype == torch.float32 else 1e-3, atol=0)

    def test_on_a_side_stream(self, device):
        given = problem(8, 256, 1024, 768, device, dtype=torch.bfloat16)
        expected = with_gradients(head_loss, given)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = with_gradients(head_loss, given)
        stream.synchronize()
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))

    @pytest.mark.parametrize("implementation", ["triton", "torch"])
    def test_in_a_cuda_graph_with_other_positions(self, implementation, device):
        given = problem(8, 256, 1024, 768, device, dtype=torch.bfloat16)
        given["hidden"] = given["hidden"].nan_to_num()
        run = functools.partial(with_gradients, functools.partial(head_loss, backend=implementation), given)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for share in (0.1, 0.9, 0.0):
            given["counted"].copy_(torch.rand(8, 256, device=device) < share)
            graph.replay()
            assert all(torch.equal(x, y) for x, y in zip(captured, run(), strict=True))

    @pytest.mark.parametrize("implementation", ["triton", "torch"])
    def test_the_host_never_waits(self, implementation, device, request):
        given = problem(3, 100, 300, 64, device, dtype=torch.bfloat16)
        run = functools.partial(with_gradients, functools.partial(head_loss, backend=implementation), given)
        run(label_smoothing=0.1)  # compiles
        request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
        torch.cuda.set_sync_debug_mode("error")
        run(label_smoothing=0.1)

    def test_memory(self, device):
        given = problem(64, 576, 16384, 768, device, dtype=torch.bfloat16, bias="code")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with_gradients(head_loss, given)
        assert torch.cuda.max_memory_allocated() - before < 1e9
