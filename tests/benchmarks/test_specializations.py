"""What Triton compiles for which inputs, counted without a GPU: as a program this file prints how many kernels are new.

A specialization is told by a kernel's constants, the types of its arguments, and which of them are 1 or divisible by
16. All of that is known beforehand: PyTorch's FakeTensors carry shapes, strides and dtypes "on cuda", Triton is told of
a device of compute capability 9.0, and its hook before a compilation takes down the kernel and says that there is
nothing to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

GPU = torch.device("cuda", 0)


def test_only_what_changes_the_code_is_compiled_anew() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels"), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {
        "attention": 3,  # forward, dq, dk and dv
        "another length that 128 divides": 0,
        "a short one": 1,  # all gradients by one kernel
        "packed": 0,
        "another dtype": 3,
        "another head_dim": 3,
        "no gradients": 1,
        "decode_step": 1,
        "its scalars": 0,
        "head_sample": 3,
        "whose scalars": 0,
    }


def count_new() -> dict[str, int]:
    """Kernels that each call would compile which those before it have not."""
    from maskgit_kernels.attention import attention, attention_packed
    from maskgit_kernels.decode_step import decode_step
    from maskgit_kernels.head_sample import head_sample

    compiled = replace_the_gpu()
    counts = {}

    def count(name: str, run: Callable[..., object], *arguments: Any, **options: Any) -> None:
        before = len(compiled)
        run(*arguments, **options)
        counts[name] = len(compiled) - before

    def attend_packed(head_dim: int, length: int) -> None:
        attention_packed(torch.empty(2, length, 3, 4, head_dim, dtype=torch.bfloat16, device=GPU))

    def attend(head_dim: int, length: int, dtype: torch.dtype = torch.bfloat16) -> None:
        x = torch.empty(2, 4, length, head_dim, dtype=dtype, device=GPU)
        attention(x, x, x)

    with FakeTensorMode():
        count("attention", attend, 48, 512)
        count("another length that 128 divides", attend, 48, 640)
        count("a short one", attend, 48, 256)
        count("packed", attend_packed, 48, 256)
        count("another dtype", attend, 48, 64, torch.float16)
        count("another head_dim", attend, 96, 64)
        torch.set_grad_enabled(False)
        count("no gradients", attend, 112, 64)
        tokens = torch.zeros(2, 64, dtype=torch.int64, device=GPU)
        numbers, masked = torch.zeros(2, dtype=torch.int64, device=GPU), tokens == 0
        state = (tokens, masked, numbers)
        options: dict[str, Any] = {"seeds": numbers, "step": 0, "choice_temperature": 0.5}
        logits = torch.empty(2, 64, 512, dtype=torch.bfloat16, device=GPU)
        count("decode_step", decode_step, logits, *state, **options)
        options |= {"step": 16, "choice_temperature": 3.5}
        count("its scalars", decode_step, logits, *state, **options)
        hidden, weight = (torch.empty(*shape, dtype=torch.bfloat16, device=GPU) for shape in ((2, 64, 128), (512, 128)))
        count("head_sample", head_sample, hidden, weight, None, *state, **options)
        options |= {"step": 17, "choice_temperature": 4.5}
        count("whose scalars", head_sample, hidden, weight, None, *state, **options)
    return counts


def replace_the_gpu() -> set[tuple[str, str]]:
    """For the rest of the process; returns where kernels are noted: (name, what Triton tells specializations by)."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from maskgit_kernels import backend
    from maskgit_kernels.attention import op, triton_op

    compiled = set()

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        compiled.add((f"{fn.module}.{fn.name}", key))
        return True  # nothing is to be compiled

    def forward_and_backward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
        """Where gradients are recorded, at once: autograd itself needs a device."""
        out, lse = triton_op.attention_forward(q, k, v, *rest)
        if torch.is_grad_enabled():
            triton_op.attention_backward(torch.empty_like(out), q, k, v, out, lse, *rest)
        return out, lse

    device = mock.Mock(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
    )
    driver.set_active(cast(Any, device))
    knobs.runtime.jit_cache_hook = note
    for owner, name, value in [
        (torch.cuda, "_exchange_device", lambda _: 0),
        (torch.cuda, "_maybe_exchange_device", lambda _: 0),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "is_current_stream_capturing", lambda: False),
        (torch.cuda, "current_stream", lambda _: mock.Mock(cuda_stream=0)),
        (torch.cuda, "get_device_capability", lambda _: (9, 0)),
        (torch.cuda, "get_device_name", lambda _: "a stand-in"),
        (torch.cuda, "get_device_properties", lambda _: mock.Mock(multi_processor_count=132)),
        (backend, "why_not_triton", lambda _: None),
        (fake_tensor, "init_gpu_context", lambda _: None),
        # Without PyTorch's dispatcher, which would compute the shapes of the results and launch nothing.
        (torch.library.CustomOpDef, "__call__", lambda self, *arguments: self._init_fn(*arguments)),
        (op, "attention_forward", forward_and_backward),
    ]:
        assert hasattr(owner, name), name
        setattr(owner, name, value)
    # Memory begins at round numbers.
    cast(Any, FakeTensor).data_ptr = lambda self: 2**20 + self.storage_offset() * self.element_size()
    return compiled


if __name__ == "__main__":
    print(json.dumps(count_new()))
