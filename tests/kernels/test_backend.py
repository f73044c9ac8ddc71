import subprocess
import sys

import pytest
import torch

from maskgit_kernels import backend
from maskgit_kernels.attention import attention

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    monkeypatch.setattr(backend, "_requested", "auto")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend._why_not_triton.cache_clear()
    yield
    backend._why_not_triton.cache_clear()


def test_auto_and_torch_run_on_a_cpu():
    assert backend.resolve(device=CPU) == backend.resolve("torch", CPU) == "torch"
    backend.use("torch")
    assert backend.resolve(device=CPU) == "torch"


def test_triton_on_a_cpu_is_an_error_and_changes_nothing():
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU, and the tensors are on cpu .*: use 'auto' or 'torch'"):
        backend.resolve("triton", CPU)
    q = torch.zeros(1, 1, 2, 16)
    with pytest.raises(RuntimeError, match="'auto' or 'torch'"):
        attention(q, q, q, backend="triton")
    assert backend.resolve(device=CPU) == "torch"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so triton is possible")
def test_use_triton_without_a_gpu():
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
        backend.use("triton")
    assert backend.resolve() == "torch"


def test_the_interpreter_runs_triton_on_a_cpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.resolve("triton", CPU) == "triton"
    assert backend.resolve("auto", CPU) == "torch"  # too slow to be chosen unasked


def test_triton_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        backend.resolve("triton", CPU)
    assert backend.resolve("auto", CPU) == "torch"


def test_old_gpus(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "capability_of", lambda device: 75)
    with pytest.raises(RuntimeError, match="compute capability 8.0 or later, and cuda:0 has 7.5"):
        backend.resolve("triton", torch.device("cuda:0"))
    assert backend.resolve("auto", torch.device("cuda:0")) == "torch"
    backend._why_not_triton.cache_clear()
    monkeypatch.setattr(backend, "capability_of", lambda device: 90)
    assert backend.resolve("auto", torch.device("cuda:0")) == "triton"


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch, got 'cuda'"):
        backend.use("cuda")
    monkeypatch.setattr(backend, "_requested", "fast")
    with pytest.raises(ValueError, match="MASKGIT_KERNELS must be one of .* got 'fast'"):
        backend.resolve()


def test_importing_the_package_does_not_import_triton():
    code = "import sys, maskgit_kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
