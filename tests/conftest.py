"""Fixtures shared by all tests: one thread, models of a few thousand parameters, the golden files where they exist."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported; kernels then run on the CPU

from maskgit.config import Stage, TokenizerConfig, TransformerConfig  # noqa: E402
from maskgit.tokenizer import VQGAN  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures that tests have recorded, such as how many hostile inputs there were."""
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {value} {name}")


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run: a GPU, or the CPU under the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny operations are much slower on several threads, and tests may run side by side."""
    torch.set_num_threads(1)


@pytest.fixture
def cpp_compiler() -> None:
    """For tests of compiled code on a CPU; skips them where TorchInductor has nothing to compile with."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        pytest.skip(f"TorchInductor needs a C++ compiler, and there is no {compiler}")


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer_config() -> TokenizerConfig:
    """16x16 pixels, 4x4 tokens, 16 codes, with every kind of layer in it."""
    return TokenizerConfig(
        image_size=16,
        codebook_size=16,
        codebook_dim=4,
        latent_channels=8,
        stem_channels=8,
        encoder=(Stage(8, 0, resample=True), Stage(16, 1, resample=True), Stage(16, 1, attention=True)),
        decoder=(Stage(16, 1, attention=True, resample=True), Stage(8, 1, resample=True), Stage(8, 0)),
        groups=4,
    )


@pytest.fixture(scope="session")
def tiny_transformer_config() -> TransformerConfig:
    """Fits the tiny tokenizer."""
    return TransformerConfig(codebook_size=16, num_tokens=16, dim=16, depth=2, heads=2, mlp_dim=32)


@pytest.fixture
def tiny_tokenizer(tiny_tokenizer_config: TokenizerConfig, fixed_seed: None) -> VQGAN:
    """A tiny tokenizer with random weights that uses several of its codes."""
    tokenizer = VQGAN(tiny_tokenizer_config).eval()
    with torch.no_grad():
        latents = tokenizer.latents(torch.rand(16, 3, 16, 16) * 2 - 1)  # [16, D, 4, 4]
    tokenizer.codebook.weight.copy_(latents[:, :, 1, 2])
    return tokenizer


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of reference checkpoints with the outputs of their original code; tests that need it skip without it."""
    folder = Path(os.environ.get("MASKGIT_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden files in {folder} (set MASKGIT_GOLDEN)")
    return folder
