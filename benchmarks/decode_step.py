"""One decoding step: ours against the eager chain of public MaskGIT code, torch.multinomial, and the chain compiled.

Every implementation gets the same logits, tokens and masks. Ours is right if the first image's tokens and mask are the
reference's; the others, which draw other noise, are right if they change only what is masked, draw only valid codes,
draw the certain ones where the logits leave no choice, and leave the promised number masked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
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
from benchmarks.hardware import short
from benchmarks.harness import Case, Comparison, Maker, WrongResultError
from benchmarks.naive_decode import eager_decode_step, multinomial_decode_step
from benchmarks.setting import Setting
from maskgit.config import preset
from maskgit_kernels import decode_step
from maskgit_kernels.decode_step.reference import decode_step_reference

StepFunction = Callable[..., tuple[Tensor, Tensor]]
CHAINS: dict[str, StepFunction] = {"eager chain": eager_decode_step, "torch.multinomial": multinomial_decode_step}


@dataclass(frozen=True)
class Job:
    """One comparison's shape."""

    batch: int
    tokens: int
    codes: int
    dtype: torch.dtype
    masked_share: float
    """1 when an image is generated, a quarter for a hole of half the image's sides."""
    guided: bool = False

    @property
    def name(self) -> str:
        guided = ", guided" if self.guided else ""
        shape = f"B={self.batch} N={self.tokens} V={self.codes}"
        return f"{shape}, {short(self.dtype)}, {self.masked_share:.0%} masked{guided}"


@dataclass(frozen=True)
class Inputs:
    """What a step works on."""

    logits: Tensor
    """[B, N, V]."""
    guidance_logits: Tensor | None
    """[B, N, V], where the job is guided."""
    state: State

    @property
    def bytes(self) -> float:
        """Each masked position's logits once, twice if guided, and the state."""
        masked_share = float(self.state.masked.float().mean())
        logits = self.logits.nbytes + (0 if self.guidance_logits is None else self.guidance_logits.nbytes)
        return masked_share * logits + self.state.bytes


def jobs(setting: Setting) -> Iterator[Job]:
    """The presets' grids and codebooks, in the dtype of the logits that autocast gives, and float32."""
    if setting.quick:
        yield Job(2, 16, 64, torch.float32, 0.25)
        yield Job(2, 16, 64, torch.bfloat16, 1.0, guided=True)
        return
    lab, large = preset("lab").transformer, preset("maskgit-512").transformer
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (1, 8, 64) if setting.on_gpu else (1, 8):
            for share in (0.25, 1.0):
                yield Job(batch, lab.num_tokens, lab.codebook_size, dtype, share)
        yield Job(8, lab.num_tokens, lab.codebook_size, dtype, 1.0, guided=True)
        if setting.on_gpu:
            yield Job(8, large.num_tokens, large.codebook_size, dtype, 1.0)
            yield Job(8, lab.num_tokens, 16384, dtype, 1.0)


def comparisons(setting: Setting) -> Iterator[Maker]:
    """One for each job."""
    for job in jobs(setting):
        yield functools.partial(comparison, job, setting)


def comparison(job: Job, setting: Setting) -> Comparison:
    """All implementations of a job."""
    inputs = make_inputs(job, setting)
    chains = dict(CHAINS)
    left_out = setting.left_out()
    reason = _why_not_compiled(job, setting)
    if reason:
        left_out["torch.compile"] = reason
    else:
        chains["torch.compile"] = _compiled()
    cases = []
    for name, chain in chains.items():
        run = functools.partial(run_step, chain, inputs)
        cases.append(Case(name, run, functools.partial(check_chain, chain, inputs), optional=name == "torch.compile"))
    for backend in setting.backends():
        options = {"seeds": inputs.state.seeds, "step": STEP, "backend": backend}
        run = functools.partial(run_step, decode_step, inputs, **options)
        cases.append(Case(f"ours ({backend})", run, functools.partial(check_ours, run, inputs)))
    return Comparison("decode-step", job.name, cases, "eager chain", bytes=inputs.bytes, left_out=left_out)


def make_inputs(job: Job, setting: Setting) -> Inputs:
    """Random logits over a random state."""

    def logits(seed: int) -> Tensor:
        shape = (job.batch, job.tokens, job.codes)
        return torch.randn(shape, generator=setting.generator(seed), device=setting.device).mul_(3).to(job.dtype)

    state = make_state(job.batch, job.tokens, job.codes, job.masked_share, setting)
    return Inputs(logits(1), logits(2) if job.guided else None, state)


@torch.no_grad()
def run_step(function: StepFunction, inputs: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    """One step; the eager chains' options are a part of ours."""
    if inputs.guidance_logits is not None:
        options |= {"guidance_logits": inputs.guidance_logits, "guidance_scale": GUIDANCE_SCALE}
    state = inputs.state
    return function(
        inputs.logits,
        state.tokens,
        state.masked,
        state.n_keep_masked,
        choice_temperature=CHOICE_TEMPERATURE,
        **options,
    )


def _why_not_compiled(job: Job, setting: Setting) -> str | None:
    if setting.quick:
        return "a quick run compiles nothing"
    if not setting.on_gpu and (job.batch != 8 or job.guided or job.dtype != torch.bfloat16):
        return "slow to compile: done for eight images in bfloat16 only"
    return None


@functools.cache
def _compiled() -> StepFunction:
    # With fullgraph a shape beyond the limit is an error; without, it would silently run uncompiled.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(eager_decode_step, dynamic=False, fullgraph=True)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_ours(run: Callable[[], tuple[Tensor, Tensor]], inputs: Inputs) -> None:
    """The first image's result is the reference's, and all states are right."""
    state = State(**{name: tensor[:1] for name, tensor in vars(inputs.state).items()})
    guidance_logits = None if inputs.guidance_logits is None else inputs.guidance_logits[:1]
    first = Inputs(inputs.logits[:1], guidance_logits, state)
    expected = run_step(decode_step_reference, first, seeds=state.seeds, step=STEP)
    check_first_image(run(), expected, inputs.state, inputs.logits.shape[-1], inputs.logits.dtype)


def check_chain(chain: StepFunction, inputs: Inputs) -> None:
    """What any decoding step must keep, whatever its noise."""
    check_state(*run_step(chain, inputs), inputs.state, inputs.logits.shape[-1])
    wanted = torch.randint(inputs.logits.shape[-1], inputs.state.tokens.shape, device=inputs.logits.device)
    certain = torch.zeros_like(inputs.logits).scatter_(-1, wanted[..., None], 200.0)
    guidance_logits = None if inputs.guidance_logits is None else certain
    tokens, _ = run_step(chain, dataclasses.replace(inputs, logits=certain, guidance_logits=guidance_logits))
    if not torch.equal(tokens[inputs.state.masked], wanted[inputs.state.masked]):
        raise WrongResultError("draws a token that has no probability")
