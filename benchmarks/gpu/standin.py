"""A GPU that isn't there: everything runs on tensors without contents, and kernels are noted instead of compiled.

What Triton would compile is decided by a kernel's constants, the types of its arguments, and which of them are 1 or
divisible by 16. All of that is known without a GPU: PyTorch's FakeTensors carry shapes, strides and dtypes "on cuda",
Triton is told of a device of compute capability 9.0, and its hook before a compilation takes down the kernel and says
that there is nothing to do.

It is a plugin of pytest: `python -O -m pytest --assert=plain -p benchmarks.gpu.standin`, without assertions, because
none about contents can hold. As a program it does what the operators in a step's comparisons launch:

    BENCHMARKS_GPU_COMPILED=FILE.json python -m benchmarks.gpu.standin comparisons
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

if TYPE_CHECKING:
    from benchmarks.setting import Setting

CAPABILITY = (9, 0)
COMPILED_FILE = "BENCHMARKS_GPU_COMPILED"
"""Environment variable: the file for what would have been compiled."""

compiled: set[tuple[str, str]] = set()
"""(kernel, what Triton tells its specializations apart by)."""


class Driver:
    """Of Triton."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int | None = None) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def benchmark(run: Callable[[], object], **_: Any) -> list[float]:
            run()
            return [1.0, 1.0, 1.0]

        return benchmark

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


def _note(*, key: str, fn: Any, **_: Any) -> bool:
    compiled.add((f"{fn.module}.{fn.name}", key))
    return True  # nothing is to be compiled


def install() -> FakeTensorMode:
    """Put it in the place of a GPU, for the rest of the process; returns the mode in which tensors have no contents."""
    from triton import knobs
    from triton.runtime import driver

    from maskgit_kernels import backend
    from maskgit_kernels.attention import op, triton_op
    from maskgit_kernels.decode_step import op as decode_step_op
    from maskgit_kernels.head_sample import op as head_sample_op

    nothing, stream = mock.MagicMock(), mock.MagicMock(return_value=mock.MagicMock(cuda_stream=0))
    cuda: dict[str, Any] = {
        **dict.fromkeys(
            ("synchronize", "set_sync_debug_mode", "reset_peak_memory_stats", "empty_cache", "_lazy_init"), nothing
        ),
        **dict.fromkeys(
            ("_exchange_device", "_maybe_exchange_device", "current_device", "memory_allocated", "memory_reserved"),
            lambda *_: 0,
        ),
        **dict.fromkeys(("Stream", "Event", "CUDAGraph", "graph", "stream", "current_stream"), stream),
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": lambda _=None: CAPABILITY,
        "get_device_name": lambda _=None: "a stand-in",
        "mem_get_info": lambda _=None: (2**36, 2**36),
        "max_memory_allocated": lambda _=None: 0,
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    _replace(torch.cuda, cuda)
    driver.set_active(cast(Any, Driver()))
    _replace(knobs.runtime, {"jit_cache_hook": _note})
    _replace(backend, {"why_not_triton": lambda _: None})
    _replace(fake_tensor, {"init_gpu_context": lambda _: None})
    _replace(torch.autograd, {"grad": _grad, "backward": lambda *_, **__: None})
    # Without PyTorch's dispatcher, which would compute the shapes of the results and launch nothing.
    _replace(torch.library.CustomOpDef, {"__call__": lambda self, *arguments: self._init_fn(*arguments)})
    _replace(op, {"attention_forward": _launch_both(triton_op.attention_forward, triton_op.attention_backward)})
    # What PyTorch would do in the kernels' place needs contents.
    _replace(decode_step_op, {"decode_step_eager": _state_of})
    _replace(head_sample_op, {"head_sample_eager": _state_of})
    _give_contents()
    return FakeTensorMode(allow_non_fake_inputs=True)


def _replace(owner: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if not hasattr(owner, name):
            raise AttributeError(f"{owner} has no {name} that could be replaced")
        setattr(owner, name, value)


def _give_contents() -> None:
    """To tensors without contents, where the host reads them: zeros, an address, and everything is true."""
    fake: Any = FakeTensor
    fake.data_ptr = lambda self: 2**20 + self.storage_offset() * self.element_size()  # memory begins at round numbers
    fake.item = lambda self: self.new_zeros(()).dtype.is_floating_point and 0.0 or 0
    to = Tensor.to
    fake.to = lambda self, *where, **options: to(self, *map(_numbered, where), **{**options, **_device_of(options)})
    fake.cuda = lambda self, *_, **__: to(self, _GPU)
    fake.requires_grad_ = lambda self, _=True: self
    fake.__bool__ = lambda self: True
    fake.__float__ = lambda self: 0.0
    fake.__int__ = lambda self: 0
    fake.__index__ = lambda self: 0
    fake.tolist = lambda self: torch.zeros(self.shape).tolist()
    makers = {"tensor": _made_of_zeros(torch.tensor), "as_tensor": _made_of_zeros(torch.as_tensor)}
    _replace(torch, {**makers, "equal": lambda *_: True, "allclose": lambda *_, **__: True})


_GPU = torch.device("cuda", 0)


def _numbered(where: Any) -> Any:
    """cuda:0 for "cuda", which PyTorch would ask the driver about."""
    return _GPU if where == "cuda" or where == torch.device("cuda") else where


def _device_of(options: dict[str, Any]) -> dict[str, Any]:
    return {"device": _numbered(options["device"])} if "device" in options else {}


def _launch_both(attention_forward: Any, attention_backward: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """attention_forward, and where gradients are recorded the backward pass at once: autograd itself needs a device."""

    def forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        out, lse = attention_forward(q, k, v, *rest)
        if torch.is_grad_enabled():
            attention_backward(torch.empty_like(out), q, k, v, out, lse, *rest)
        return out, lse

    return forward


def _state_of(*arguments: Any) -> tuple[Tensor, ...]:
    """Tokens and masks among the arguments of a decoding step, which are like its results."""
    tensors = (x for x in arguments if isinstance(x, Tensor) and x.dim() == 2)
    return tuple(x for x in tensors if x.dtype in (torch.int64, torch.bool))[:2]


def _made_of_zeros(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor or torch.as_tensor: the copy to the device without contents."""

    def made(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        tensor = make(data, dtype=dtype)
        return torch.zeros_like(tensor, device=_numbered(device)) if device is not None else tensor

    return made


def _grad(_: Any, inputs: Any, *__: Any, **___: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) for x in ([inputs] if isinstance(inputs, Tensor) else inputs))


# --- what is counted --------------------------------------------------------------------------------------------------


def save() -> None:
    """Write down what was noted so far."""
    Path(os.environ[COMPILED_FILE]).write_text(json.dumps(sorted(compiled)))


def count(step: str) -> None:
    """Launch once what our operators launch in a step's comparisons of operators and of models."""
    with install():
        # Not before: these import Triton, and read what is here.
        from benchmarks import attention, decode_step, head_sample
        from benchmarks.gpu import comparisons, figures
        from benchmarks.setting import Setting

        _replace(Setting, {"generator": lambda self, seed=0: None})
        setting = Setting(_GPU, quick=False)
        plan = {"comparisons": comparisons.plan, "figures": figures.plan}[step]
        for planned in plan(setting):
            assert isinstance(planned.make, functools.partial)
            job, *rest = planned.make.args
            if isinstance(job, attention.Job):
                _attend(job)
            elif isinstance(job, decode_step.Job):
                inputs = decode_step.make_inputs(job, setting)
                seeds = inputs.state.seeds
                decode_step.run_step(decode_step.decode_step, inputs, seeds=seeds, step=1, backend="triton")
            elif isinstance(job, head_sample.Job):
                _sample(job, setting)
            else:  # the name of a model, its batch, and the setting
                *_, batch, _ = rest
                _launch_model(job, batch, "training" in planned.make.func.__name__, setting)
    save()


def _attend(job: Any) -> None:
    from maskgit_kernels import attention

    packed = torch.empty(job.batch, job.tokens, 3, job.heads, job.head_dim, dtype=job.dtype, device=_GPU)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    with torch.set_grad_enabled(job.backward):
        attention(q, k, v, dropout_p=job.dropout, seed=torch.zeros((), dtype=torch.int64, device=_GPU))


def _sample(job: Any, setting: Any) -> None:
    from benchmarks import head_sample
    from maskgit_kernels import decode_step

    inputs = head_sample.make_inputs(job, setting)
    head_sample.run_fused(head_sample.head_sample, inputs, backend="triton")
    step = functools.partial(decode_step, seeds=inputs.state.seeds, step=1, backend="triton")
    head_sample.product_then(step, inputs)


def _launch_model(name: str, batch: int, training: bool, setting: Setting) -> None:
    """What a preset's transformer launches, at both precisions."""
    from benchmarks import attention, head_sample
    from maskgit.config import preset

    config = preset(name).transformer
    tokens, dropout = config.num_tokens, config.attention_dropout if training else 0.0
    for dtype in (torch.float32, torch.bfloat16):
        _attend(attention.Job(name, batch, config.heads, tokens, config.head_dim, dtype, dropout, training))
        if not training:
            _sample(head_sample.Job(batch, tokens, config.codebook_size, config.dim, dtype, 1.0), setting)


# --- as a plugin of pytest --------------------------------------------------------------------------------------------


def pytest_load_initial_conftests() -> None:
    """Before anything of the tests is imported, so that tests that need a GPU believe in this one."""
    install().__enter__()


def pytest_runtest_logfinish() -> None:
    """Write down what was noted so far: a test that never ends costs its own kernels only."""
    save()


if __name__ == "__main__":
    # As the module that pytest knows by name, with what it has noted.
    from benchmarks.gpu import standin

    standin.count(sys.argv[1])
