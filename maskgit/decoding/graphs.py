"""The decoding loop as a CUDA graph: captured once, replayed with new images and seeds.

A step of a small model is over before the host has launched the next one's kernels. A graph holds the kernels of all
steps with their addresses, so a replay is one launch; what changes from batch to batch is copied into tensors that stay
where they are. See "CUDA Graphs" in PyTorch's notes on CUDA semantics for the rules that a capture obeys.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MOST_GRAPHS = 4  # kept per model; each holds the memory of a whole step


class Batch(NamedTuple):
    """What a decoding loop gets."""

    tokens: Tensor
    """int64 [B, N]."""
    masked: Tensor
    """bool [B, N], True = to be filled."""
    seeds: Tensor
    """int64 [B]."""
    labels: Tensor | None
    """int64 [B] for a model with classes."""


Loop = Callable[[Batch], Iterable[tuple[Tensor, Tensor]]]
"""Gives tokens and masked, [B, N] each, after each step. It must neither read from the device nor copy to it."""


def wanted() -> bool:
    """Whether loops are to be captured: MASKGIT_GRAPHS is 1, the default, or 0. Raises ValueError for anything else."""
    value = os.environ.get("MASKGIT_GRAPHS", "1")
    if value not in ("0", "1"):
        raise ValueError(f"MASKGIT_GRAPHS must be 0 or 1, got {value!r}")
    return value == "1"


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Around a capture: cuBLAS allocates its workspaces in the graph's memory, which goes with the graph.

    It keeps one for each stream it has run on, 32 MiB on Hopper, and captures go round all streams there are. Held by
    address, it would also be shared by graphs that were captured on the same stream and replayed at once. PyTorch's own
    graphs (torch/_inductor/cudagraph_trees.py) forget the workspaces likewise. Where a release of PyTorch has no such
    function, they stay where they are.
    """
    forget = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    forget()
    try:
        yield
    finally:
        forget()


@contextlib.contextmanager
def capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """What is launched within becomes `graph`. What it needs should have run on `stream` before.

    Raises RuntimeError: something can't be captured, or the memory doesn't suffice.
    """
    # relaxed: other threads may use the device meanwhile, and an operator that launches other kernels into a graph than
    # it does outside may still load them. A capture that fails leaves its stream the current one, which the first
    # context undoes.
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        _own_workspaces(),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"),
    ):
        yield


class DecodeGraph:
    """A loop captured for batches of up to B images.

    Results are those of the loop itself. Calls may come from any stream, but from one thread at a time.

    Args:
        loop: what to capture. It must keep every tensor it uses, such as weights, where it is.
        batch: of B images on a GPU, an example of those to come.

    Raises RuntimeError: the loop can't be captured, or the memory doesn't suffice.
    """

    @torch.inference_mode()
    def __init__(self, loop: Loop, batch: Batch) -> None:
        self._loop = loop  # keeps alive what the graph knows by address only
        labels = None if batch.labels is None else batch.labels.clone()
        self._batch = Batch(batch.tokens.clone(), batch.masked.clone(), batch.seeds.clone(), labels)
        self._graph = torch.cuda.CUDAGraph()
        self._idle = torch.cuda.Event()  # after the last use of the tensors that all replays share
        with torch.cuda.device(batch.tokens.device):
            # Libraries are set up and kernels compiled on first use, which should not fall into the capture: run once
            # before, and on the same stream, for which some libraries allocate.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._run()
            torch.cuda.current_stream().wait_stream(stream)
            with capture(self._graph, stream):
                self._tokens, self._masked = self._run()
            self._idle.record()

    def _run(self) -> tuple[Tensor, Tensor]:
        tokens, masked = zip(*self._loop(self._batch), strict=True)
        return torch.stack(tokens), torch.stack(masked)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the loop on b <= B images: tokens int64 [S, b, N] and masked bool [S, b, N] after each of the S steps."""
        count = len(batch.tokens)
        with torch.cuda.device(batch.tokens.device):
            torch.cuda.current_stream().wait_event(self._idle)
            for held, new in zip(self._batch, batch, strict=True):
                if held is not None and new is not None:
                    held[:count].copy_(new)
            self._batch.masked[count:] = False  # with nothing to fill, whatever images are left there do no harm
            self._graph.replay()
            results = self._tokens[:, :count].clone(), self._masked[:, :count].clone()
            self._idle.record()
        return results


class GraphCache:
    """The graphs of one model, made when they are first needed; the least recently used are dropped. Thread-safe."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, DecodeGraph] = OrderedDict()
        self._lock = threading.RLock()  # making a loop may clear the cache

    def run(self, loop: Callable[[], Loop], key: Hashable, batch: Batch, batch_size: int) -> tuple[Tensor, Tensor]:
        """Run a loop by its graph.

        A batch that comes short of the usual size, such as the last of a run, uses the graph of that size if there is
        one, and a smaller one is captured only if there isn't.

        Args:
            loop: makes the loop, if it isn't captured yet.
            key: what the loop depends on besides the batch.
            batch_size: the usual number of images, at least that of this batch.

        Returns and raises what `DecodeGraph` does.
        """
        count = len(batch.tokens)
        with self._lock:
            size = next((size for size in (count, batch_size) if (key, size) in self._graphs), count)
            graph = self._graphs.pop((key, size), None) or DecodeGraph(loop(), batch)
            self._graphs[key, size] = graph
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return graph(batch)

    def clear(self) -> None:
        """Drop all graphs, and with them what they keep alive."""
        with self._lock:
            self._graphs.clear()
