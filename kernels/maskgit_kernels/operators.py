"""Operators whose kernels are launched at once, or by way of PyTorch's dispatcher where something has to see them.

The dispatcher's way through an operator written in Python takes longer than the launch itself: it calls C++ and back
for each of its layers and looks for aliases among the results (pytorch/pytorch#177109). Nothing but a tracer needs it.

`torch.library.triton_op` would show compilers the kernels and let them launch these themselves. But its fake is the
launch: where kernels are interpreted, on memory that fake tensors don't have, it can be neither exported nor compiled
nor pass opcheck, and without a GPU's driver it can't be compiled for a GPU. `torch.library.wrap_triton` takes nothing
that is interpreted in PyTorch 2.11 (pytorch/pytorch#152868).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Launch = TypeVar("Launch", bound=Callable[..., Any])


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    differentiate: Callable[..., tuple[Tensor | None, ...]] | None = None,
) -> Callable[[Launch], Launch]:
    """Decorator that makes an operator of a function that launches kernels.

    The function takes its arguments by position, annotated as `torch.library.custom_op` needs, which is what tracers
    see: `torch.ops.NAMESPACE.NAME`. It allocates its results; no argument is changed, no result shares its memory.

    Args:
        name: "namespace::name".
        fake: gives empty results of the right shape, strides and dtype for the function's arguments.
        save: keeps what the backward pass needs: (ctx, inputs, output), which are the arguments and the results, as
            `setup_context` of `torch.library.register_autograd`. Without, the operator has no gradient.
        differentiate: (ctx, the results' gradients) to those of the arguments, by another operator: without a gradient
            of its own, that makes second derivatives an error.
    """

    def make(launch: Launch) -> Launch:
        traced = torch.library.custom_op(name, launch, mutates_args=())
        traced.register_fake(fake)
        recorded: Callable[..., Any] = traced  # without a gradient, it says so in the backward pass
        if save is not None and differentiate is not None:
            traced.register_autograd(differentiate, setup_context=save)
            recorded = _function(name.rpartition(":")[2], launch, save, differentiate).apply

        @functools.wraps(launch)
        def call(*arguments: Any) -> Any:
            if not nothing_traces(arguments):
                return traced(*arguments)
            if torch.is_grad_enabled() and any(map(_requires_grad, arguments)):
                return recorded(*arguments)
            return launch(*arguments)

        return cast(Launch, call)

    return make


def nothing_traces(arguments: Iterable[Any]) -> bool:
    """Whether the tensors among these are what they seem and nothing but autograd wants to know what is done to them.

    Not so for compilers, export, dispatch and function modes (FakeTensor, counters), functorch's transforms, forward
    derivatives, subclasses (DTensor), tensors without memory and lazy negations.
    """
    if torch.compiler.is_compiling():  # first: to compilers it is a constant, and they look no further
        return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ) and all(
        (type(x) is Tensor or type(x) is nn.Parameter) and not x.is_meta and not x.is_neg()
        for x in arguments
        if isinstance(x, Tensor)
    )


def _requires_grad(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _function(name: str, launch: Callable[..., Any], save: Callable[..., None], differentiate: Any) -> Any:
    """The autograd.Function around a launch. Its forward sets up its context itself: a `setup_context` of its own
    would have PyTorch inspect the signature at every call."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        results = launch(*arguments)
        save(ctx, arguments, results)
        return results

    members = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    return type(name, (torch.autograd.Function,), members)
