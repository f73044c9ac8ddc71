"""The tilings of the attention kernels: whole blocks of what there is, and what is left over costs little."""

import functools
import importlib.util
import itertools

import pytest
import torch
from attention_checks import inputs, with_gradients

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from maskgit_kernels.attention import attention as any_attention
from maskgit_kernels.attention import triton_one_pass
from maskgit_kernels.attention.tiling import HEAD_DIMS, KERNELS, MATH, candidates, fixed
from maskgit_kernels.attention.triton_tiles import programs

attention = functools.partial(any_attention, backend="triton")

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SETTINGS = (KERNELS, ARCHITECTURES, HEAD_DIMS, MATH, (False, True))


def test_tilings():
    for setting in itertools.product(*SETTINGS, (16, 192, 256)):
        kernel, capability, head_dim, *_ = setting
        choice, tilings = fixed(*setting), candidates(*setting)
        assert choice == tilings[0]
        assert len(set(tilings)) == len(tilings) <= 8
        for tiling in tilings:
            parts = tiling.parts(head_dim)
            assert parts[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(parts))
            widths = [end - start for start, end in parts]
            assert all(width >= 16 and width & (width - 1) == 0 for width in widths)
            assert sum(widths) == (1 << (head_dim - 1).bit_length() if tiling.padded else head_dim)
            assert tiling.block_m % 16 == tiling.block_n % 16 == 0
        if capability < 90:
            assert not choice.padded


@pytest.mark.parametrize("tokens, limit", [(256, 1.0), (257, 1.15), (1024, 1.0), (1025, 1.05)])
def test_ragged_lengths_cost_little(tokens, limit):
    """Query-key pairs that the programs of a kernel cover, against those that there are."""
    for setting in itertools.product(*SETTINGS):
        tiling = fixed(*setting, tokens)
        rows, columns = tiling.block_m, tiling.block_n
        if setting[0] == "dk_dv":
            rows, columns = columns, rows
        whole, few = tokens // rows, programs(tokens, rows) - tokens // rows
        covered = whole * rows * (tokens // columns * columns + round_up(tokens % columns, 16))
        covered += few * 16 * round_up(tokens, 32)
        assert covered <= limit * tokens**2, setting


def test_one_token_more_costs_little(device, monkeypatch):
    """Multiply-adds that the interpreter is asked for, forward and by two backward kernels, for each query-key pair."""
    if device.type == "cuda":
        pytest.skip("counted in the interpreter")
    from triton.runtime.interpreter import InterpreterBuilder

    dot, counted = InterpreterBuilder.create_dot, []

    def counting_dot(self, a, b, *rest):
        counted.append(a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting_dot)
    monkeypatch.setattr(triton_one_pass, "takes", lambda *_: False)
    costs = []
    for tokens in (256, 257):
        counted.clear()
        with_gradients(attention, inputs((1, 1, tokens, tokens, 32), torch.bfloat16, device))
        costs.append(sum(counted) / tokens**2)
    assert costs[0] == (2 + 3 + 4) * 32  # forward, dq, dk and dv
    assert costs[1] < 1.15 * costs[0]


def round_up(x, step):
    return -(-x // step) * step
