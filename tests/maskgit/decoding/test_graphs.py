"""CUDA graphs of the decoding loop: on a GPU where there is one, and by a stand-in for `torch.cuda` on a CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskgit.config import Stage, TokenizerConfig, TransformerConfig
from maskgit.decoding import DECODERS, DecodeConfig, graphs
from maskgit.decoding.graphs import Batch, DecodeGraph, GraphCache
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT, networks
from maskgit.tokenizer import VQGAN
from maskgit_kernels import backend

GRID, CODES, CLASSES = 4, 16, 3
N = GRID * GRID
LOOPS = DECODERS | {"re-masking": DecodeConfig(remask=0.6), "reuse": DecodeConfig(reuse=2, remask=0.6)}


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test))


def tiny_model(device: str = "cpu") -> MaskGIT:
    """16x16 pixels, 4x4 tokens, three classes, random weights that make what goes in matter."""
    torch.manual_seed(0)
    stages = (Stage(8, 1, resample=True), Stage(8, 1, resample=True), Stage(8, 1))
    tokenizer = VQGAN(TokenizerConfig(16, CODES, 4, 8, 8, stages, stages, groups=4))
    torch.nn.init.normal_(tokenizer.codebook.weight)
    transformer = Transformer(TransformerConfig(CODES, N, 32, depth=1, heads=2, mlp_dim=32, num_classes=CLASSES))
    for weight in transformer.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return MaskGIT(tokenizer, transformer, ["a", "b", "c"], device=device, precision="float32")


def random_batch(batch: int, seed: int, device: str = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tensors = (
        torch.randint(CODES, (batch, N), generator=generator),
        torch.rand(batch, N, generator=generator) < torch.rand(batch, 1, generator=generator),
        torch.randint(-(2**62), 2**62, (batch,), generator=generator),
        torch.randint(CLASSES, (batch,), generator=generator),
    )
    return Batch(*(x.to(device) for x in tensors))


def eagerly(loop: graphs.Loop, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    with torch.inference_mode():
        return list(loop(batch))


def assert_same(graph: tuple[Tensor, Tensor], steps: list[tuple[Tensor, Tensor]], rows: int | None = None) -> None:
    for part, tensors in zip(graph, zip(*steps, strict=True), strict=True):
        assert torch.equal(part, torch.stack(tensors)[:, :rows])


# --- without a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOOPS)
def test_replays_are_the_loop_with_other_images(stand_in_cuda: None, name: str) -> None:
    loop = tiny_model()._loop(dataclasses.replace(LOOPS[name], steps=4))
    graph = DecodeGraph(loop, random_batch(3, seed=0))
    results = []
    for seed in range(4):
        batch = random_batch(3, seed)
        results.append((graph(batch), eagerly(loop, batch)))
    for replayed, expected in results:  # compared at the end: a later replay must not change earlier results
        assert_same(replayed, expected)
    assert not torch.equal(results[0][0][0], results[1][0][0])


def test_smaller_batches_are_padded(stand_in_cuda: None) -> None:
    loop = tiny_model()._loop(DecodeConfig(steps=3))
    full = random_batch(4, seed=0)
    graph = DecodeGraph(loop, full)
    graph(full)
    for count in (1, 3, 4, 2):
        batch = random_batch(count, seed=count)
        tokens, masked = graph(batch)
        assert tokens.shape == masked.shape == (3, count, N)
        assert_same((tokens, masked), eagerly(loop, batch))
        # In what is left of earlier batches there is nothing to fill.
        assert not graph._batch.masked[count:].any() and not graph._masked[:, count:].any()


def test_callers_tensors_are_not_modified(stand_in_cuda: None) -> None:
    batch = random_batch(3, seed=0)
    copies = [x.clone() for x in batch if x is not None]
    graph = DecodeGraph(tiny_model()._loop(DecodeConfig(steps=3)), batch)
    graph(random_batch(2, seed=1))
    graph(batch)
    assert all(torch.equal(x, copy) for x, copy in zip(batch, copies, strict=True))


def test_a_loop_that_brings_data_from_the_host_is_no_graph(stand_in_cuda: None) -> None:
    """The stand-in refuses what a capture refuses; without it the tests above would prove nothing."""

    def loop(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        yield batch.tokens + torch.tensor(1), batch.masked

    with pytest.raises(AssertionError, match="data from or to the host"):
        DecodeGraph(loop, random_batch(2, seed=0))


@pytest.fixture
def captures(stand_in_cuda: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes captured so far."""
    sizes: list[int] = []

    class Counting(DecodeGraph):
        def __init__(self, loop: graphs.Loop, batch: Batch) -> None:
            sizes.append(len(batch.tokens))
            super().__init__(loop, batch)

    monkeypatch.setattr(graphs, "DecodeGraph", Counting)
    return sizes


def test_cache(captures: list[int]) -> None:
    model, cache = tiny_model(), GraphCache()

    def run(count: int, batch_size: int, steps: int = 2) -> None:
        batch, config = random_batch(count, seed=count), DecodeConfig(steps=steps)
        assert_same(
            cache.run(lambda: model._loop(config), config, batch, batch_size), eagerly(model._loop(config), batch)
        )

    run(3, 3)
    run(2, 3)  # the last of a run: no graph of its own
    run(3, 3)
    assert captures == [3]
    run(2, 2)  # the usual size of another run
    run(2, 3)  # and now there is one that fits
    assert captures == [3, 2]
    run(3, 3, steps=1)
    run(1, 4)
    assert captures == [3, 2, 3, 1] and len(cache._graphs) == graphs.MOST_GRAPHS
    run(3, 3)  # used again, so the next one to go is that of 2
    run(4, 4)
    run(3, 3)
    assert captures == [3, 2, 3, 1, 4]
    run(2, 2)
    assert captures == [3, 2, 3, 1, 4, 2] and len(cache._graphs) == graphs.MOST_GRAPHS


def pictures(count: int) -> tuple[list[Image.Image], list[np.ndarray]]:
    rng = np.random.default_rng(count)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
    return images, [rng.random((16, 16)) < 0.03 for _ in range(count)]


def everything(model: MaskGIT, **options: Any) -> list[np.ndarray]:
    """Pictures and steps of inpaint and generate, for a run whose last batch is short."""
    images, masks = pictures(5)
    found = model.inpaint(
        images, masks, save_steps=True, batch_size=2, paste=False, labels=[0, 1, None, 2, 0], **options
    )
    made = model.generate(3, batch_size=2, **options)
    steps = [part for result in found for step in result.steps for part in (step.image, step.masked)]
    return [np.asarray(x) for x in (*(result.image for result in found), *steps, *made)]


@pytest.mark.parametrize("name", ["maskgit", "valeo", "halton"])
def test_pipeline(captures: list[int], name: str) -> None:
    model = tiny_model()
    assert model.graphs is None  # on a CPU
    options = dict(config=dataclasses.replace(DECODERS[name], steps=3))
    expected = everything(model, **options)
    model.graphs = GraphCache()
    for _ in range(2):
        for x, y in zip(everything(model, **options), expected, strict=True):
            assert np.array_equal(x, y)
    assert captures == [2, 2]  # with labels and without
    monitored: list[float] = []
    model.generate(3, batch_size=2, progress=monitored.append, **options)
    assert sum(monitored) == pytest.approx(3) and captures == [2, 2]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_changed_weights_are_captured_anew(
    captures: list[int], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """In a graph the copies that it was captured with live on, and the places of weights that were replaced."""
    monkeypatch.setattr(networks, "can_pack", lambda: False)  # so that the CPU runs what a GPU runs
    model = tiny_model()
    model.precision, model.graphs = precision, GraphCache()
    weight = model.transformer.blocks[0].attention.qkv.weight
    with torch.no_grad():
        for change in (lambda: None, weight.neg_, lambda: setattr(weight, "data", weight.data / 2)):
            change()
            found = [model.generate(2, steps=3) for _ in range(2)]
            assert len(model.graphs._graphs) == 1
            graphs_then, model.graphs = model.graphs, None
            expected = model.generate(2, steps=3)
            model.graphs = graphs_then
            for pictures in found:
                assert all(np.array_equal(x, y) for x, y in zip(pictures, expected, strict=True))
    assert captures == [2, 2, 2]


def test_implementations_have_their_own_graphs(captures: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.graphs = GraphCache()
    model.generate(2, steps=2)
    monkeypatch.setattr(backend, "resolve", lambda *args: "another")
    model.generate(2, steps=2)
    model.generate(2, steps=2)
    assert captures == [2, 2]


@pytest.fixture
def workspaces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened: "forget" cuBLAS' workspaces, a "run" of the loop outside of a capture or in one ("captured")."""
    events: list[str] = []
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: events.append("forget"), raising=False)
    return events


def recorded_loop(events: list[str], error: Exception | None = None) -> graphs.Loop:
    """Gives back what it gets; in a capture it raises the error."""

    def loop(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        captured = torch.utils._python_dispatch._get_current_dispatch_mode() is not None
        events.append("captured" if captured else "run")
        if captured and error is not None:
            raise error
        yield batch.tokens, batch.masked

    return loop


def test_a_graph_has_workspaces_of_its_own(stand_in_cuda: None, workspaces: list[str]) -> None:
    """None is there when the capture begins, so it is allocated in the graph; and nobody else uses it afterwards."""
    DecodeGraph(recorded_loop(workspaces), random_batch(2, seed=0))
    assert workspaces == ["run", "forget", "captured", "forget"]


def test_a_failed_capture_leaves_no_workspaces(stand_in_cuda: None, workspaces: list[str]) -> None:
    with pytest.raises(RuntimeError, match="not permitted"):
        DecodeGraph(recorded_loop(workspaces, RuntimeError("not permitted")), random_batch(2, seed=0))
    assert workspaces == ["run", "forget", "captured", "forget"]


def test_a_failed_capture_gives_the_stream_back(stand_in_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    current = ["the caller's"]

    @contextlib.contextmanager
    def stream(name: str) -> Iterator[None]:
        before, current[0] = current[0], name
        try:
            yield
        finally:
            current[0] = before

    class Capture:
        def __init__(self, graph: object, *, stream: str, capture_error_mode: str) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream

        def __exit__(self, *args: object) -> None:
            raise RuntimeError("invalidated")  # as PyTorch's does, before it has given the stream back

    class Stream(str):
        def wait_stream(self, other: str) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(current[0]))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream("of the capture"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    with pytest.raises(RuntimeError, match="invalidated"):
        DecodeGraph(recorded_loop([]), random_batch(2, seed=0))
    assert current == ["the caller's"]


def test_workspaces_that_can_not_be_forgotten(stand_in_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces", raising=False)
    batch = random_batch(2, seed=0)
    tokens, _ = DecodeGraph(recorded_loop([]), batch)(batch)
    assert torch.equal(tokens[0], batch.tokens)


class Uncapturable(DecodeGraph):
    """As where something can't be captured: after the warm-up, in which the loop runs."""

    error: Exception = RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")

    def __init__(self, loop: graphs.Loop, batch: Batch) -> None:
        eagerly(loop, batch)
        raise self.error


@pytest.mark.parametrize("error", [Uncapturable.error, torch.OutOfMemoryError("CUDA out of memory.")], ids=type)
def test_a_failed_capture_falls_back(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(graphs, "DecodeGraph", Uncapturable)
    monkeypatch.setattr(Uncapturable, "error", error)
    model = tiny_model()
    options = dict(config=DecodeConfig(steps=3, reuse=1))
    expected = everything(model, **options)
    model.graphs = GraphCache()
    said = re.escape(str(error).splitlines()[0]) + r" \(MASKGIT_GRAPHS=0 "
    with pytest.warns(RuntimeWarning, match=said) as warned:
        found = everything(model, **options)
    assert len(warned) == 1 and "more of it" not in str(warned[0].message) and model.graphs is None
    for x, y in zip(found, expected, strict=True):
        assert np.array_equal(x, y)


def test_an_error_of_the_loop_is_no_failed_capture(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(graphs, "DecodeGraph", Uncapturable)
    model = tiny_model()
    model.graphs = GraphCache()

    def broken(*args: object, **kwargs: object) -> Tensor:
        raise RuntimeError("of the network")

    monkeypatch.setattr(Transformer, "forward", broken)
    with pytest.raises(RuntimeError, match="of the network"):
        model.generate(2, steps=2)
    assert model.graphs is not None and not recwarn.list


def test_graphs_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskgit.pipeline.model.resolve_device", lambda device: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(backend, "resolve", lambda *args: "torch")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: self)
    assert isinstance(tiny_model().graphs, GraphCache)
    monkeypatch.setenv("MASKGIT_GRAPHS", "0")
    assert tiny_model().graphs is None
    monkeypatch.setenv("MASKGIT_GRAPHS", "off")
    with pytest.raises(ValueError, match="MASKGIT_GRAPHS must be 0 or 1, got 'off'"):
        tiny_model()


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["torch", "triton"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton" and (reason := backend.why_not_triton(torch.device("cuda"))):
        pytest.skip(reason)
    monkeypatch.setattr(backend, "_requested", request.param)
    return request.param


@on_gpu
@pytest.mark.parametrize("name", LOOPS)
def test_replays_on_a_gpu(implementation: str, name: str) -> None:
    loop = tiny_model("cuda")._loop(dataclasses.replace(LOOPS[name], steps=5))
    graph = DecodeGraph(loop, random_batch(6, seed=0, device="cuda"))
    results = []
    for seed in range(5):
        batch = random_batch(6, seed, "cuda")
        results.append((graph(batch), eagerly(loop, batch)))
    for replayed, expected in results:
        assert_same(replayed, expected)


@on_gpu
def test_bf16_on_a_gpu(implementation: str) -> None:
    model = tiny_model("cuda")
    model.precision = "bf16"
    loop = model._loop(DecodeConfig())
    graph = DecodeGraph(loop, random_batch(4, seed=0, device="cuda"))
    batch = random_batch(4, 1, "cuda")
    assert_same(graph(batch), eagerly(loop, batch))


@on_gpu
def test_padding_on_a_gpu(implementation: str) -> None:
    loop = tiny_model("cuda")._loop(DecodeConfig())
    full = random_batch(5, seed=0, device="cuda")
    graph = DecodeGraph(loop, full)
    for count in (2, 5, 1):
        batch = random_batch(count, count, "cuda")
        # The eager loop on a batch of five as well: another size may round differently.
        padded = Batch(*(torch.cat([new, old[count:]]) for new, old in zip(batch, full, strict=True)))
        padded.masked[count:] = False
        assert_same(graph(batch), eagerly(loop, padded), rows=count)


@on_gpu
@pytest.mark.parametrize("name", LOOPS)
def test_the_eager_loop_never_synchronizes(implementation: str, name: str) -> None:
    loop, batch = tiny_model("cuda")._loop(LOOPS[name]), random_batch(3, 0, "cuda")
    expected = eagerly(loop, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = eagerly(loop, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (tokens, masked), (other_tokens, other_masked) in zip(found, expected, strict=True):
        assert torch.equal(tokens, other_tokens) and torch.equal(masked, other_masked)


@on_gpu
def test_decoding_a_batch_never_synchronizes(implementation: str) -> None:
    model, batch = tiny_model("cuda"), random_batch(4, 0, "cuda")
    model.precision = "bf16"

    def decode() -> list[tuple[Tensor, Tensor]]:
        return list(model._decode(batch.tokens, batch.masked, DecodeConfig(), [5, -6, 7, 8], batch.labels, 4))

    captured = decode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = decode()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for states in zip(found, captured, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(*states, strict=True))


@on_gpu
def test_other_streams_and_threads(implementation: str) -> None:
    model = tiny_model("cuda")
    config, cache = DecodeConfig(), GraphCache()
    batches = [random_batch(4, seed, "cuda") for seed in range(12)]
    expected = [eagerly(model._loop(config), batch) for batch in batches]
    torch.cuda.synchronize()
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def work(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for index in range(first, len(batches), 3):
                found[index] = cache.run(lambda: model._loop(config), "key", batches[index], 4)
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, steps in enumerate(expected):
        assert_same(found[index], steps)


@on_gpu
def test_pipeline_on_a_gpu(implementation: str) -> None:
    model = tiny_model("cuda")
    assert isinstance(model.graphs, GraphCache)
    images, masks = pictures(4)
    for options in (dict(), dict(labels=[0, 1, 2, None], config=DECODERS["valeo"])):
        model.graphs = GraphCache()
        captured = [model.inpaint(images, masks, batch_size=2, **options) for _ in range(2)]
        model.graphs = None
        eager = model.inpaint(images, masks, batch_size=2, **options)
        for results in captured:
            for a, b in zip(results, eager, strict=True):
                assert np.array_equal(np.asarray(a.image), np.asarray(b.image))


@on_gpu
def test_graphs_give_their_memory_back(implementation: str) -> None:
    model, cache = tiny_model("cuda"), GraphCache()
    used = []
    for steps in range(1, 13):
        config = DecodeConfig(steps=steps)
        cache.run(lambda config=config: model._loop(config), config, random_batch(8, 0, "cuda"), 8)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        used.append(torch.cuda.memory_reserved())
    assert len(cache._graphs) == graphs.MOST_GRAPHS
    assert used[-1] <= 1.5 * used[graphs.MOST_GRAPHS - 1]  # the last have more steps, but are no more
