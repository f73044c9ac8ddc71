import pytest
import torch

from maskgit_kernels import attention, backend


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    monkeypatch.setattr(backend, "_requested", "auto")


def test_auto_and_torch_run():
    assert backend.resolve() == backend.resolve("torch") == "torch"
    backend.use("torch")
    assert backend.resolve() == "torch"


def test_triton_is_an_error_and_changes_nothing():
    with pytest.raises(RuntimeError, match="no Triton kernels"):
        backend.use("triton")
    assert backend.resolve() == "torch"
    q = torch.zeros(1, 1, 2, 16)
    with pytest.raises(RuntimeError, match="'auto' or 'torch'"):
        attention(q, q, q, backend="triton")


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch, got 'cuda'"):
        backend.use("cuda")
    monkeypatch.setattr(backend, "_requested", "fast")
    with pytest.raises(ValueError, match="MASKGIT_KERNELS must be one of .* got 'fast'"):
        backend.resolve()
