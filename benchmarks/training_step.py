"""A training step of the transformer on a GPU that isn't there, on tensors without data, and what it launches.

PyTorch's autograd asks a driver about tensors that are on a GPU, even if they hold nothing. So the forward and the
backward pass are of tensors on the CPU, with the kernels that a GPU gets; the rest of a step is of tensors on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counting import Count, Counter
from maskgit.config import HaltonConfig, TransformerConfig
from maskgit.data.tokens import TokenSample
from maskgit.network.dropout import Dropout
from maskgit.network.folder import make_transformer
from maskgit.training.engine import Engine
from maskgit.training.loop import _Run
from maskgit.training.optimizer import AveragedWeights, make_optimizer
from maskgit.training.settings import TransformerTraining
from maskgit.training.transformer import TransformerTask
from maskgit_kernels import backend

Sizes = TransformerConfig | HaltonConfig


@contextlib.contextmanager
def kernels_of_a_gpu() -> Iterator[None]:
    """What a GPU runs, on any device: Triton's kernels, PyTorch's dropout in one, norms of all gradients together."""

    def dropout(self: Dropout, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.p, True)[0] if self.training and self.p else x

    with (
        mock.patch.object(backend, "_requested", "triton"),
        mock.patch.object(backend, "why_not_triton", lambda _: None),
        mock.patch.object(Dropout, "forward", dropout),
        mock.patch.object(clip_grad, "_has_foreach_support", lambda *_: True),
        mock.patch.object(nn.init, "trunc_normal_", lambda *_, **__: None),  # it asks for values
    ):
        yield


@contextlib.contextmanager
def autocast_on_a_gpu() -> Iterator[None]:
    """Its rules, in bf16; `torch.autocast` refuses without one."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_cache_enabled(cached)


def gradients(model: Any, tokens: Tensor, masked: Tensor, labels: Tensor, loss_of: Callable[..., Tensor]) -> Any:
    """A forward and a backward pass in bf16; `loss_of(model, held, labels, tokens, masked)` is float []."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        held = tokens.masked_fill(masked, model.config.codebook_size)
        loss = loss_of(model, held, labels if model.config.num_classes else None, tokens, masked)
    return torch.autograd.grad(loss, list(model.parameters()))


def summed_loss(model: nn.Module, held: Tensor, labels: Tensor | None, tokens: Tensor, masked: Tensor) -> Tensor:
    """As the trainer's, but for what it is divided by."""
    loss, _ = model(held, labels, targets=tokens, counted=masked)
    return loss


def rest_of_a_step(
    sizes: Sizes, batch: int, mode: TorchDispatchMode, changes: dict[str, Any], whole: bool = True
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run a step of the loop within `mode`, but for the backward pass and AdamW's own operators.

    Args:
        whole: with the forward pass.

    Returns:
        What is logged, and what each update was told of broken gradients.
    """
    config = TransformerTraining(device="cpu", ema=0.9, **changes)
    engine = Engine(config)
    task = object.__new__(TransformerTask)
    task.config, task.engine, task.device = config, engine, torch.device("cuda")
    updates: list[Any] = []

    def backward(loss: Tensor) -> None:
        assert loss.shape == () and loss.dtype == torch.float32
        for parameter in task.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    with (
        kernels_of_a_gpu(),
        # PyTorch can't run its fused update on tensors without data; that graphs can hold it is in its documentation.
        mock.patch.object(torch.optim.AdamW, "step", lambda self: updates.append(self.found_inf)),
        mock.patch.object(engine, "backward", backward),
        mock.patch.object(engine, "autocast", autocast_on_a_gpu),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: True),
        FakeTensorMode(),
        torch.device("cuda"),
    ):
        task.model = make_transformer(sizes).train()
        task.wrapped = task.model if whole else lambda *_, **__: (torch.empty(()), torch.empty((), dtype=torch.int64))
        task.make_optimizers()
        engine.broken, engine.skipped = torch.zeros((), dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
        averaged = AveragedWeights(nn.Linear(1, 1))
        averaged.module, averaged._started = make_transformer(sizes), True  # tensors without data can't be copied
        run = _Run(config, engine, task, averaged, None)
        tokens = torch.zeros(batch, sizes.num_tokens, dtype=torch.int64)
        shown = TokenSample(tokens, tokens, tokens == 0, tokens[:, 0])
        rate, decay = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        with mode:
            figures = run.step(shown, 7, rate, decay)
    return figures, updates


def count_step(sizes: Sizes, batch: int, muon: float = 0.0) -> dict[str, Count]:
    """What a step in bf16 launches: both passes, AdamW, and all the rest, Muon too."""
    passes, rest, update = Counter(), Counter(), Counter()
    with kernels_of_a_gpu(), FakeTensorMode():
        model = make_transformer(sizes).train()
        tokens = torch.zeros(batch, sizes.num_tokens, dtype=torch.int64)
        masked, labels = tokens == 0, tokens[:, 0]
        with passes:
            gradients(model, tokens, masked, labels, summed_loss)
    rest_of_a_step(sizes, batch, rest, {"muon": muon}, whole=False)
    pair = nn.Linear(2, 2)  # a matrix and a vector: of either kind all are updated together
    optimizer = make_optimizer(pair, TransformerTraining())
    pair(torch.ones(1, 2)).sum().backward()
    optimizer.step()  # which makes its state
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]  # as the engine has it
    with update:
        optimizer.step()
    return {"passes": passes.counted(), "optimizer": update.counted(), "the rest": rest.counted()}
