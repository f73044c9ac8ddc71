"""One decoding step: from logits, and from the hidden states before the LM head.

`decode-step`: ours against the eager chain of public MaskGIT code, that with torch.multinomial, and the chain compiled.
`head-sample`: the fused operator against a matrix product and then a step, the eager chain or our `decode_step`. With
guidance these need two products, where the fused operator needs one. On a GPU it is timed as it chooses, and each of
its two ways by itself: what its choice (`maskgit_kernels.head_sample.choice`) is to be held against.

Every implementation gets the same inputs. Ours is right if the first image's tokens and mask are the reference's; the
others, which draw other noise, are right if they change only what is masked, draw only valid codes, draw the certain
ones where the logits leave no choice, and leave the promised number masked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.hardware import label
from benchmarks.harness import Case, Comparison, WrongResultError
from benchmarks.naive_decode import eager_decode_step, multinomial_decode_step
from benchmarks.setting import Setting
from maskgit.config import preset
from maskgit_kernels.decode_step import decode_step
from maskgit_kernels.decode_step.reference import decode_step_reference
from maskgit_kernels.head_sample import head_sample
from maskgit_kernels.head_sample.choice import WAYS, impose
from maskgit_kernels.head_sample.reference import head_sample_reference

CHOICE_TEMPERATURE = 4.5
GUIDANCE_SCALE = 3.0
STEP = 3
# Share of the first image's tokens and mask that must be the reference's: near ties, rounding decides.
SAME = {torch.float32: 0.99, torch.float16: 0.95, torch.bfloat16: 0.95}

Result = tuple[Tensor, Tensor]
"""Tokens int64 [B, N], masked bool [B, N]."""
StepFunction = Callable[..., Result]
CHAINS: dict[str, StepFunction] = {"eager_chain": eager_decode_step, "multinomial": multinomial_decode_step}


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
    dim: int = 0
    """Of the hidden states; 0 where a step begins with logits."""

    @property
    def name(self) -> str:
        dim = f"-d{self.dim}" if self.dim else ""
        share = f"-masked{100 * self.masked_share:.0f}" if self.masked_share < 1 else ""
        shape = f"b{self.batch}-n{self.tokens}-v{self.codes}{dim}"
        return f"{shape}-{label(self.dtype)}{share}{'-guided' if self.guided else ''}"

    @property
    def rows(self) -> int:
        """Masked positions in all images."""
        return self.batch * round(self.masked_share * self.tokens)

    @property
    def bytes(self) -> float:
        """That have to move: of masked positions the logits or hidden states, twice if guided; with these the head's
        weight and bias; tokens and masks in and out, counts and seeds.
        """
        head = self.dim * self.codes * self.dtype.itemsize + 4 * self.tokens * self.codes if self.dim else 0
        rows = (1 + self.guided) * self.rows * (self.dim or self.codes) * self.dtype.itemsize
        return rows + head + 2 * self.batch * self.tokens * (8 + 1) + 2 * 8 * self.batch

    @property
    def flops(self) -> float:
        """Of one product: the head is linear, so guidance needs no second one."""
        return 2.0 * self.rows * self.dim * self.codes


@dataclass(frozen=True)
class Inputs:
    """What a step works on, in the middle of decoding."""

    logits: Tensor
    """[B, N, V], or hidden states [B, N, D] in their place."""
    guidance_logits: Tensor | None
    """As these, where the job is guided."""
    tokens: Tensor
    """int64 [B, N]."""
    masked: Tensor
    """bool [B, N], as many True in each image."""
    n_keep_masked: Tensor
    """int64 [B], half of these."""
    seeds: Tensor
    """int64 [B]."""
    weight: Tensor | None = None
    """[V, D], with hidden states."""
    bias: Tensor | None = None
    """float32 [N, V], as the tied head has it."""

    @property
    def codes(self) -> int:
        return self.logits.shape[-1] if self.weight is None else len(self.weight)

    def first(self) -> Inputs:
        """Those of the first image."""
        head = ("weight", "bias")
        return Inputs(**{name: x if x is None or name in head else x[:1] for name, x in vars(self).items()})


def jobs(setting: Setting, *, heads: bool = False) -> Iterator[Job]:
    """The presets' grids and codebooks, and heads if wanted, in the dtype that autocast gives, and float32."""
    if setting.quick:
        yield Job(2, 16, 64, torch.float32, 0.25, dim=32 if heads else 0)
        yield Job(2, 16, 64, torch.bfloat16, 1.0, guided=True, dim=32 if heads else 0)
        return
    lab, large = preset("lab").transformer, preset("maskgit-512").transformer
    dim, large_dim = (lab.dim, large.dim) if heads else (0, 0)
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (1, 8, 64) if setting.on_gpu else (1, 8):
            for share in (0.25, 1.0):
                yield Job(batch, lab.num_tokens, lab.codebook_size, dtype, share, dim=dim)
        yield Job(8, lab.num_tokens, lab.codebook_size, dtype, 1.0, guided=True, dim=dim)
        if setting.on_gpu:
            yield Job(8, large.num_tokens, large.codebook_size, dtype, 1.0, dim=large_dim)
            yield Job(8, lab.num_tokens, 16384, dtype, 1.0, dim=dim)


def make_inputs(job: Job, setting: Setting) -> Inputs:
    """Random logits of size 3, or hidden states and weights that give such, over a random state."""
    device = setting.device

    def normal(seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=setting.generator(seed), device=device)

    draw, masked_count = setting.generator(), job.rows // job.batch
    order = torch.rand(job.batch, job.tokens, generator=draw, device=device).argsort(1)  # [B, N], each a permutation
    shape, scale = (job.batch, job.tokens, job.dim or job.codes), 1 if job.dim else 3
    weight = bias = None
    if job.dim:
        weight = (normal(3, job.codes, job.dim) * 3 / job.dim**0.5).to(job.dtype)
        bias = normal(4, job.tokens, job.codes)
    return Inputs(
        normal(1, *shape).mul_(scale).to(job.dtype),
        normal(2, *shape).mul_(scale).to(job.dtype) if job.guided else None,
        torch.randint(job.codes, (job.batch, job.tokens), generator=draw, device=device),
        order < masked_count,
        torch.full((job.batch,), masked_count // 2, device=device),
        torch.arange(job.batch, device=device) - 1,
        weight,
        bias,
    )


# --- implementations --------------------------------------------------------------------------------------------------


@torch.no_grad()
def run_step(function: StepFunction, inputs: Inputs, **options: Any) -> Result:
    """One step from logits; the eager chains' options are a part of ours."""
    if inputs.guidance_logits is not None:
        options |= {"guidance_logits": inputs.guidance_logits, "guidance_scale": GUIDANCE_SCALE}
    state = inputs.tokens, inputs.masked, inputs.n_keep_masked
    return function(inputs.logits, *state, choice_temperature=CHOICE_TEMPERATURE, **options)


@torch.no_grad()
def product_then(step: StepFunction, inputs: Inputs) -> Result:
    """The logits of every position, written out, and then a step."""

    def logits(hidden: Tensor) -> Tensor:
        assert inputs.weight is not None and inputs.bias is not None
        return F.linear(hidden, inputs.weight) + inputs.bias  # float32 [B, N, V], as autocast adds the bias

    guidance_logits = None if inputs.guidance_logits is None else logits(inputs.guidance_logits)
    return run_step(step, dataclasses.replace(inputs, logits=logits(inputs.logits), guidance_logits=guidance_logits))


@torch.no_grad()
def run_fused(function: StepFunction, inputs: Inputs, **options: Any) -> Result:
    """The fused operator, or its reference, on hidden states."""
    if inputs.guidance_logits is not None:
        options |= {"guidance_hidden": inputs.guidance_logits, "guidance_scale": GUIDANCE_SCALE}
    options = {"seeds": inputs.seeds, "step": STEP, "choice_temperature": CHOICE_TEMPERATURE} | options
    state = inputs.tokens, inputs.masked, inputs.n_keep_masked
    return function(inputs.logits, inputs.weight, inputs.bias, *state, **options)


def imposed(way: str, run: Callable[[], Result]) -> Result:
    """The fused operator, one of its two ways."""
    with impose(way):
        return run()


@functools.cache
def _compiled() -> StepFunction:
    # With fullgraph a shape beyond the limit is an error; without, it would silently run uncompiled.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(eager_decode_step, dynamic=False, fullgraph=True)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_state(result: Result, before: Inputs) -> None:
    """Known tokens stay, drawn ones are codes, and the promised number stays masked."""
    tokens, masked = result
    if not torch.equal(tokens[~before.masked], before.tokens[~before.masked]):
        raise WrongResultError("a known token was changed")
    if int(tokens.min()) < 0 or int(tokens.max()) >= before.codes:
        raise WrongResultError("a token is not a code")
    if bool((masked & ~before.masked).any()) or not torch.equal(masked.sum(1), before.n_keep_masked):
        raise WrongResultError("the wrong number of tokens stays masked")


def check_ours(run: Callable[[], Result], inputs: Inputs) -> None:
    """All states are right, and of the first image, whose result depends on no other's, it is the reference's."""
    result, first = run(), inputs.first()
    check_state(result, inputs)
    if inputs.weight is None:
        expected = run_step(decode_step_reference, first, seeds=first.seeds, step=STEP)
    else:
        expected = run_fused(head_sample_reference, first)
    for name, got, wanted in zip(("tokens", "mask"), result, expected, strict=True):
        same = float((got[0] == wanted[0]).float().mean())
        if same < SAME[inputs.logits.dtype]:
            raise WrongResultError(f"only {same:.1%} of the first image's {name} are the reference's")


def check_chain(chain: StepFunction, inputs: Inputs) -> None:
    """What any decoding step must keep, whatever its noise."""
    check_state(run_step(chain, inputs), inputs)
    wanted = torch.randint(inputs.codes, inputs.tokens.shape, device=inputs.logits.device)
    certain = torch.zeros_like(inputs.logits).scatter_(-1, wanted[..., None], 200.0)
    guidance_logits = None if inputs.guidance_logits is None else certain
    tokens, _ = run_step(chain, dataclasses.replace(inputs, logits=certain, guidance_logits=guidance_logits))
    if not torch.equal(tokens[inputs.masked], wanted[inputs.masked]):
        raise WrongResultError("draws a token that has no probability")


# --- comparisons ------------------------------------------------------------------------------------------------------


def step_comparisons(setting: Setting) -> Iterator[Comparison]:
    """From logits."""
    return (comparison(job, setting) for job in jobs(setting))


def head_comparisons(setting: Setting) -> Iterator[Comparison]:
    """From hidden states."""
    return (comparison(job, setting) for job in jobs(setting, heads=True))


def comparison(job: Job, setting: Setting) -> Comparison:
    """All implementations of a job."""
    if job.dim:
        group, make = "head-sample", head_cases
        ours = setting.ours()
        ways = {f"ours_triton_{way}": ours["ours_triton"] for way in WAYS}
        names = {"product_eager_chain": "", **setting.ours("product_ours"), **ours, **ways}
    else:
        group, make = "decode-step", step_cases
        names = {**dict.fromkeys(CHAINS, ""), "compiled": _why_not_compiled(job, setting), **setting.ours()}
    return Comparison(
        group,
        job.name,
        names,
        functools.partial(make, job, setting),
        shape={name: value for name, value in vars(job).items() if name != "dtype"},
        dtype=job.dtype,
        bytes=job.bytes,
        flops=job.flops,
    )


def _why_not_compiled(job: Job, setting: Setting) -> str:
    if setting.quick:
        return "a quick run compiles nothing"
    if not setting.on_gpu and (job.batch != 8 or job.guided or job.dtype != torch.bfloat16):
        return "slow to compile: done for eight images in bfloat16 only"
    return ""


def step_cases(job: Job, setting: Setting) -> dict[str, Case]:
    """All that begin with logits."""
    inputs, chains = make_inputs(job, setting), dict(CHAINS)
    if not _why_not_compiled(job, setting):
        chains["compiled"] = _compiled()
    cases = {}
    for name, chain in chains.items():
        run = functools.partial(run_step, chain, inputs)
        cases[name] = Case(run, functools.partial(check_chain, chain, inputs), optional=name == "compiled")
    for backend in setting.backends():
        options = {"seeds": inputs.seeds, "step": STEP, "backend": backend}
        run = functools.partial(run_step, decode_step, inputs, **options)
        cases[f"ours_{backend}"] = Case(run, functools.partial(check_ours, run, inputs))
    return cases


def head_cases(job: Job, setting: Setting) -> dict[str, Case]:
    """All that begin with hidden states."""
    inputs = make_inputs(job, setting)
    chain = functools.partial(product_then, eager_decode_step, inputs)
    # The chain's draws are checked where it begins with logits.
    cases = {"product_eager_chain": Case(chain, lambda: check_state(chain(), inputs))}
    for backend in setting.backends():
        step = functools.partial(decode_step, seeds=inputs.seeds, step=STEP, backend=backend)
        ours = functools.partial(run_fused, head_sample, inputs, backend=backend)
        runs = {f"product_ours_{backend}": functools.partial(product_then, step, inputs), f"ours_{backend}": ours}
        if backend == "triton":
            runs |= {f"ours_triton_{way}": functools.partial(imposed, way, ours) for way in WAYS}
        for name, run in runs.items():
            cases[name] = Case(run, functools.partial(check_ours, run, inputs))
    return cases
