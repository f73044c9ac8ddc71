"""The LM head and the step behind it: the fused operator against a matrix product and then a decoding step.

The step is the eager chain of public MaskGIT code, or our `decode_step`. With guidance both need two products, where
the fused operator needs one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.decode_state import (
    CHOICE_TEMPERATURE,
    GUIDANCE_SCALE,
    STEP,
    State,
    check_first_image,
    check_state,
    make_state,
)
from benchmarks.decode_step import Inputs as StepInputs
from benchmarks.decode_step import StepFunction, run_step
from benchmarks.hardware import short
from benchmarks.harness import Case, Comparison, Maker
from benchmarks.naive_decode import eager_decode_step
from benchmarks.setting import Setting
from maskgit.config import preset
from maskgit_kernels import decode_step
from maskgit_kernels.head_sample import head_sample
from maskgit_kernels.head_sample.reference import head_sample_reference


@dataclass(frozen=True)
class Job:
    """One comparison's shape."""

    batch: int
    tokens: int
    codes: int
    dim: int
    dtype: torch.dtype
    masked_share: float
    guided: bool = False

    @property
    def name(self) -> str:
        guided = ", guided" if self.guided else ""
        shape = f"B={self.batch} N={self.tokens} D={self.dim} V={self.codes}"
        return f"{shape}, {short(self.dtype)}, {self.masked_share:.0%} masked{guided}"

    @property
    def rows(self) -> int:
        """Masked positions in all images."""
        return self.batch * round(self.masked_share * self.tokens)

    @property
    def flops(self) -> float:
        """Of one product: the head is linear, so guidance needs no second one."""
        return 2.0 * self.rows * self.dim * self.codes


@dataclass(frozen=True)
class Inputs:
    """What a step works on."""

    hidden: Tensor
    """[B, N, D]."""
    guidance_hidden: Tensor | None
    """[B, N, D], where the job is guided."""
    weight: Tensor
    """[V, D]."""
    bias: Tensor
    """float32 [N, V], as the tied head has it."""
    state: State

    @property
    def bytes(self) -> float:
        """The masked positions' hidden states, the weight, the bias and the state, each once."""
        masked_share = float(self.state.masked.float().mean())
        hidden = self.hidden.nbytes + (0 if self.guidance_hidden is None else self.guidance_hidden.nbytes)
        return masked_share * hidden + self.weight.nbytes + self.bias.nbytes + self.state.bytes


def jobs(setting: Setting) -> Iterator[Job]:
    """The presets' heads."""
    if setting.quick:
        yield Job(2, 16, 64, 32, torch.float32, 0.25)
        yield Job(2, 16, 64, 32, torch.bfloat16, 1.0, guided=True)
        return
    lab, large = preset("lab").transformer, preset("maskgit-512").transformer
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (1, 8, 64) if setting.on_gpu else (1, 8):
            for share in (0.25, 1.0):
                yield Job(batch, lab.num_tokens, lab.codebook_size, lab.dim, dtype, share)
        yield Job(8, lab.num_tokens, lab.codebook_size, lab.dim, dtype, 1.0, guided=True)
        if setting.on_gpu:
            yield Job(8, large.num_tokens, large.codebook_size, large.dim, dtype, 1.0)
            yield Job(8, lab.num_tokens, 16384, lab.dim, dtype, 1.0)


def comparisons(setting: Setting) -> Iterator[Maker]:
    """One for each job."""
    for job in jobs(setting):
        yield functools.partial(comparison, job, setting)


def comparison(job: Job, setting: Setting) -> Comparison:
    """All implementations of a job."""
    inputs = make_inputs(job, setting)
    chain = functools.partial(product_then, eager_decode_step, inputs)
    cases = [Case("product, eager chain", chain, functools.partial(check_chain, chain, inputs))]
    for backend in setting.backends():
        step = functools.partial(decode_step, seeds=inputs.state.seeds, step=STEP, backend=backend)
        ours = {
            f"product, our step ({backend})": functools.partial(product_then, step, inputs),
            f"ours ({backend})": functools.partial(run_fused, head_sample, inputs, backend=backend),
        }
        for name, run in ours.items():
            cases.append(Case(name, run, functools.partial(check_ours, run, inputs)))
    return Comparison(
        "head-sample",
        job.name,
        cases,
        "product, eager chain",
        bytes=inputs.bytes,
        flops=job.flops,
        dtype=job.dtype,
        left_out=setting.left_out(),
    )


def make_inputs(job: Job, setting: Setting) -> Inputs:
    """Random hidden states and weights that give logits of size 3."""

    def normal(seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=setting.generator(seed), device=setting.device)

    return Inputs(
        normal(1, job.batch, job.tokens, job.dim).to(job.dtype),
        normal(2, job.batch, job.tokens, job.dim).to(job.dtype) if job.guided else None,
        (normal(3, job.codes, job.dim) * 3 / job.dim**0.5).to(job.dtype),
        normal(4, job.tokens, job.codes),
        make_state(job.batch, job.tokens, job.codes, job.masked_share, setting),
    )


@torch.no_grad()
def product_then(step: StepFunction, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The logits of every position, written out, and then a step."""

    def logits(hidden: Tensor) -> Tensor:
        return F.linear(hidden, inputs.weight) + inputs.bias  # float32 [B, N, V], as autocast adds the bias

    guidance_logits = None if inputs.guidance_hidden is None else logits(inputs.guidance_hidden)
    return run_step(step, StepInputs(logits(inputs.hidden), guidance_logits, inputs.state))


@torch.no_grad()
def run_fused(function: StepFunction, inputs: Inputs, **options: object) -> tuple[Tensor, Tensor]:
    """The fused operator, or its reference."""
    if inputs.guidance_hidden is not None:
        options |= {"guidance_hidden": inputs.guidance_hidden, "guidance_scale": GUIDANCE_SCALE}
    state = inputs.state
    return function(
        inputs.hidden,
        inputs.weight,
        inputs.bias,
        state.tokens,
        state.masked,
        state.n_keep_masked,
        seeds=state.seeds,
        step=STEP,
        choice_temperature=CHOICE_TEMPERATURE,
        **options,
    )


def check_chain(run: Callable[[], tuple[Tensor, Tensor]], inputs: Inputs) -> None:
    """The state is right; the chain's draws are checked in the suite of the decoding step."""
    check_state(*run(), inputs.state, len(inputs.weight))


def check_ours(run: Callable[[], tuple[Tensor, Tensor]], inputs: Inputs) -> None:
    """The first image's result is the reference's, and all states are right."""
    state = State(**{name: tensor[:1] for name, tensor in vars(inputs.state).items()})
    guidance_hidden = None if inputs.guidance_hidden is None else inputs.guidance_hidden[:1]
    first = Inputs(inputs.hidden[:1], guidance_hidden, inputs.weight, inputs.bias, state)
    expected = run_fused(head_sample_reference, first)
    check_first_image(run(), expected, inputs.state, len(inputs.weight), inputs.hidden.dtype)
