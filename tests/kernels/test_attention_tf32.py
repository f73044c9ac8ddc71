"""float32 on tensor cores: the attention kernels round every factor of a product to the nearest tf32.

Triton's interpreter multiplies in full float32 whatever it is told, so there the results show the rounding alone. That
compiled kernels round too, and that no warp does it for another, is read from their PTX.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from maskgit_kernels.attention import attention
from maskgit_kernels.attention.reference import drops_in_256, keep_mask
from maskgit_kernels.attention.tiling import fixed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tensor_cores(request):
    """PyTorch's permission to multiply float32 on tensor cores."""
    before = torch.get_float32_matmul_precision()
    request.addfinalizer(lambda: torch.set_float32_matmul_precision(before))
    torch.set_float32_matmul_precision("high")


def to_tf32(x):
    """The nearest number with eleven significant bits, ties away from zero, as float64."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp(torch.sign(mantissa) * torch.floor(mantissa.abs() * 2**11 + 0.5) / 2**11, exponent)


def by_hand(q, k, v, grad, dropout_p, seed, rounded):
    """[out, dq, dk, dv] in float64 of what tensor cores are to be given, where `rounded` says how factors are."""
    scale, c = q.shape[-1] ** -0.5, 1 / (1 - drops_in_256(dropout_p) / 256)
    keep = keep_mask(q, k, dropout_p, seed) if dropout_p else 1
    q, k, v, grad_factor = (rounded(x) for x in (q, k, v, grad))
    scores = q @ k.mT * scale
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))  # as the forward pass has them: the largest is 1
    total = weights.sum(-1, keepdim=True)
    out = c * (rounded(weights * keep) @ v) / total
    weights = weights / total
    delta = (out * grad.double()).sum(-1, keepdim=True) / c
    dscores = rounded(weights * keep * (grad_factor @ v.mT) - weights * delta)
    return [out, scale * c * dscores @ k, scale * c * dscores.mT @ q, c * rounded(weights * keep).mT @ grad_factor]


# No more keys than are taken at a time: so the largest score is found before the first weight is rounded.
@pytest.mark.parametrize("queries, dropout_p", [(81, 0.0), (33, 0.3)])
def test_every_factor_is_rounded(device, tensor_cores, queries, dropout_p):
    q, k, v, grad = (torch.randn(1, 2, n, 48, device=device) for n in (queries, 16, 16, queries))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, dropout_p=dropout_p, seed=5, backend="triton")
    found = [out, *torch.autograd.grad(out, leaves, grad)]
    expected = by_hand(q, k, v, grad, dropout_p, 5, rounded=to_tf32)
    exact = by_hand(q, k, v, grad, dropout_p, 5, rounded=torch.Tensor.double)
    for name, x, y, truth in zip(("out", "dq", "dk", "dv"), found, expected, exact, strict=True):
        error, effect = (torch.linalg.vector_norm(z - y).item() for z in (x, truth))
        assert error < 0.1 * effect, f"{name}: {error:.1e}, where all of the rounding makes {effect:.1e}"


def test_nothing_is_rounded_unless_asked(device):
    q, k, v, _ = (torch.randn(1, 2, 20, 48, device=device) for _ in range(4))
    out = attention(q, k, v, backend="triton")
    assert (out - by_hand(q, k, v, out, 0, 0, rounded=torch.Tensor.double)[0]).abs().max() < 2e-6


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_a_number_stays_one(device, tensor_cores, value):
    q, k, v, _ = (torch.randn(1, 1, 16, 16, device=device) for _ in range(4))
    v[0, 0, 3, 5] = value
    if value != value:  # all of its bits set: the one that GPUs make, which an addition to its bits would wrap around
        v.view(torch.int32)[0, 0, 3, 5] = 0x7FFFFFFF
    out = attention(q, k, v, backend="triton")
    assert not out[..., 5].isfinite().any() and out[..., :5].isfinite().all()


def test_compiled_kernels_round_each_factor_once(tmp_path):
    """Conversions in the code of a thread, of which there are 128: for the rows that a program has of its own, and, in
    each of two loops, for the rows it goes through and for the weights and what else is made of the two."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    }
    command = "-m benchmarks.compiled --capability 80 --kernel".split()
    subprocess.run(
        [sys.executable, *command, "head_dim 48, tf32", "--jobs", "1"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},  # so that it is this that is compiled, and nothing else
        capture_output=True,
        check=True,
    )
    for kernel, own_tensors, made in (("forward", 1, 1), ("dq", 2, 1), ("dk_dv", 2, 2)):
        tiling = fixed(kernel, 80, 48, "tf32", dropout=True, length=256)
        own, others = tiling.block_m, tiling.block_n
        if kernel == "dk_dv":
            own, others = others, own
        factors = own_tensors * own * 48
        for rows in (others, 16):
            factors += 2 * rows * 48 + made * own * rows
        (code,) = tmp_path.rglob(f"attention_{kernel}_kernel.ptx")
        assert code.read_text().count("cvt.rna.tf32.f32") == factors / 128, kernel
