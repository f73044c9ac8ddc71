"""A training step as a graph of operators, at the sizes that a GPU meets, on tensors without data.

Both passes as they are on a GPU, and a step but for the backward pass, which makes every copy and every wait that it
would make on one (see `benchmarks.training_step`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.training_step import count_step, gradients, kernels_of_a_gpu, rest_of_a_step
from maskgit.config import HaltonConfig, preset
from maskgit.network.folder import make_transformer

BATCH, DEPTH = 64, 2

WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "bincount"}
"""Operators that read a value back, or give a shape that depends on values."""


def sizes_of(name: str) -> Any:
    """A preset's transformer of two blocks that drops everywhere, or Halton-MaskGIT's.

    Its codebook has the size of the latter's, so that nothing is as large as logits are.
    """
    if name == "halton":
        return HaltonConfig(depth=DEPTH)
    changes = {"codebook_size": 16384, "depth": DEPTH, "dropout": 0.1, "attention_dropout": 0.1}
    return dataclasses.replace(preset(name).transformer, tied=name == "lab", **changes)


@pytest.fixture
def kernels() -> Iterator[None]:
    with kernels_of_a_gpu():
        yield


def exported(model: Any, loss_of: Callable[..., Tensor]) -> list[Node]:
    """The operators of a forward and a backward pass in bf16."""
    tokens = torch.zeros(BATCH, model.config.num_tokens, dtype=torch.int64)
    graph = make_fx(lambda *batch: gradients(model, *batch, loss_of))(tokens, tokens == 0, tokens[:, 0]).graph
    return [node for node in graph.nodes if node.op == "call_function"]


def fused(model: nn.Module, held: Tensor, labels: Tensor | None, tokens: Tensor, masked: Tensor) -> Tensor:
    loss, _ = model(held, labels, targets=tokens, counted=masked, label_smoothing=0.1)
    return loss / masked.sum()


def on_logits(model: nn.Module, held: Tensor, labels: Tensor | None, tokens: Tensor, masked: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(held, labels).float().transpose(1, 2), tokens)


def name_of(node: Node) -> str:
    return node.target.overloadpacket.__name__ if hasattr(node.target, "overloadpacket") else str(node.target)


def results(node: Node) -> list[Tensor]:
    return [x for x in tree_leaves(node.meta["val"]) if isinstance(x, Tensor)]


def of_logits(nodes: list[Node], config: Any) -> list[str]:
    """Operators with a result of as many elements as the logits of the batch have."""
    size = BATCH * config.num_tokens * config.codebook_size
    return [name_of(node) for node in nodes if any(x.numel() >= size for x in results(node))]


def put_together(nodes: list[Node], config: Any) -> list[tuple[int, ...]]:
    """Shapes of what is copied from several tensors into one, at least as large as the hidden states of the batch."""
    size = BATCH * config.num_tokens * config.dim
    found = [x for node in nodes if name_of(node) in ("stack", "cat") for x in results(node)]
    return [tuple(x.shape) for x in found if x.numel() >= size]


@pytest.mark.parametrize("name", ["lab", "maskgit-256", "halton"])
def test_a_step(name: str, kernels: None) -> None:
    with FakeTensorMode():
        model: Any = make_transformer(sizes_of(name)).train()
        nodes = exported(model, fused)
    names, config = [name_of(node) for node in nodes], model.config
    assert (names.count("head_loss"), names.count("attention_forward")) == (1, DEPTH)
    assert names.count("attention_backward") == DEPTH
    assert not WAITS & set(names) and not of_logits(nodes, config)
    # Halton's registers come behind the image's tokens.
    registers = [(BATCH, config.num_tokens + 1, config.dim)] if name == "halton" else []
    assert put_together(nodes, config) == registers
    indices = [x for node in nodes if name_of(node).startswith("index") for x in tree_leaves(node.args)]
    assert not any(x.meta["val"].dtype == torch.bool for x in indices if isinstance(x, Node))


def test_what_would_be_found(kernels: None) -> None:
    """Logits, and gradients of queries, keys and values that are put together."""
    with FakeTensorMode():
        model: Any = make_transformer(sizes_of("lab")).train()
        nodes = exported(model, on_logits)
        assert "native_layer_norm" not in of_logits(nodes, model.config)
        assert {"_log_softmax", "_log_softmax_backward_data"} <= set(of_logits(nodes, model.config))
        project = model.blocks[0].attention.project
        model.blocks[0].attention.project = lambda x: torch.stack(project(x).unbind(2), 2)
        heads = model.config.heads
        shape = (BATCH, model.config.num_tokens, 3, heads, model.config.dim // heads)
        assert put_together(exported(model, fused), model.config) == [shape] * 2


# --- without the backward pass, on a GPU ------------------------------------------------------------------------------


class NothingWaits(TorchDispatchMode):
    """Refuses operators that read a value, give a shape that depends on values, or bring data from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        places = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        by_mask = name.startswith("index") and any(
            x.dtype == torch.bool for x in tree_leaves(args[1:2]) if x is not None
        )
        assert name not in WAITS | {"lift_fresh"} and places <= {"cuda"} and not by_mask, f"{name} makes the host wait"
        self.called.append(name)
        return result


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", ["lab", "maskgit-256", "halton"])
@pytest.mark.parametrize(
    "changes", [{}, {"loss_on": "all", "mask_per": "batch", "muon": 4.0}, {"mask_count": "bernoulli"}], ids=str
)
def test_a_step_stays_on_a_gpu(name: str, changes: Any) -> None:
    """Masks, loss, clipping, update, average, counts: all that a CUDA graph holds."""
    guard = NothingWaits()
    figures, updates = rest_of_a_step(sizes_of(name), BATCH, guard, changes)
    assert figures.keys() == {"loss", "accuracy", "gradient_norm"}
    assert all(x.shape == () and x.device.type == "cuda" for x in figures.values())
    assert [x.device.type for x in updates] == ["cuda"]
    assert {"head_loss", "attention_forward", "_foreach_add_", "_foreach_norm", "maximum"} <= set(guard.called)


READS: dict[str, Callable[[Tensor], Any]] = {
    "a value": lambda x: float(x.sum()),
    "a shape": lambda x: x[x > 0],
    "a number from the host": lambda x: x + torch.tensor(1.0, device="cpu"),
}


@pytest.mark.parametrize("read", READS)
def test_what_would_wait(read: str) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.zeros(3)
        with NothingWaits(), pytest.raises((AssertionError, DataDependentOutputException, DynamicOutputShapeException)):
            READS[read](x)


# --- how much it is ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_what_a_step_launches() -> None:
    """All weights are clipped, updated and averaged together, however many there are."""
    blocks = [count_step(dataclasses.replace(sizes_of("maskgit-256"), depth=depth), BATCH) for depth in (1, 2, 3)]
    for part in ("optimizer", "the rest"):
        assert len({counts[part].launches for counts in blocks}) == 1
    with_muon = [
        count_step(dataclasses.replace(sizes_of("embedded"), depth=depth), BATCH, muon=4.0) for depth in (1, 2)
    ]
    assert len({counts["the rest"].launches for counts in with_muon}) == 1
    one, two, three = (counts["passes"] for counts in blocks)
    assert two.launches - one.launches == three.launches - two.launches
    # Of a block: the weights and biases of four layers and their gradients; the results of two norms and their
    # gradients; the gradients of two branches that are added to float32.
    assert two.casts - one.casts == three.casts - two.casts == 16 + 4 + 2
    assert 0 < one.cast_bytes < one.bytes
