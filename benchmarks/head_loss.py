"""The LM head with the training loss behind it, forward and backward, from hidden states to gradients.

`head-loss`: ours against the logits of all positions written out, PyTorch's cross-entropy of them, and the guesses, as
a training step without the fused operator has it; and that compiled. A part of the positions count, as many as masks of
the cosine schedule hide on average, or all do, as some recipes have it.

An implementation is right if its loss and gradients are those of the reference in float64, within twice the error of
the written-out one at the same precision: of the first image's hidden states in the call that is timed, and of the
rest in a call with that image alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.hardware import label
from benchmarks.harness import Case, Comparison, WrongResultError
from benchmarks.setting import Setting
from maskgit.config import HaltonConfig, preset
from maskgit_kernels.head_loss import head_loss
from maskgit_kernels.head_loss.reference import head_loss_reference

COSINE_SHARE = 2 / math.pi  # the mean of cos(pi r / 2)
LABEL_SMOOTHING = 0.1
# Beyond what rounding explains: errors this small against the size of a result are not told apart.
TINY = 1e-6

Loss = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Job:
    """One comparison's shape."""

    model: str
    batch: int
    tokens: int
    codes: int
    dim: int
    bias: str
    """ "position" or "code": what has a bias of its own."""
    dtype: torch.dtype
    counted_share: float

    @property
    def name(self) -> str:
        share = "" if self.counted_share < 1 else "-all"
        return f"{self.model}-b{self.batch}-{label(self.dtype)}{share}"

    @property
    def rows(self) -> int:
        """Positions that count."""
        return self.batch * round(self.counted_share * self.tokens)

    @property
    def flops(self) -> float:
        """Three products of what counts, 2 operations for each multiply-add."""
        return 3 * 2.0 * self.rows * self.dim * self.codes

    @property
    def bytes(self) -> float:
        """That have to move: hidden states, weight and bias, and the gradient of each."""
        biases = self.codes * (self.tokens if self.bias == "position" else 1)
        head = self.dim * self.codes * self.dtype.itemsize + 4 * biases
        return 2 * (self.rows * self.dim * self.dtype.itemsize + head)


@dataclass(frozen=True)
class Inputs:
    """Of `head_loss`."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor
    counted: Tensor

    def first(self) -> Inputs:
        """Those of the first image."""
        return Inputs(self.hidden[:1], self.weight, self.bias, self.targets[:1], self.counted[:1])

    def in_float64(self) -> Inputs:
        return Inputs(*(x.double() if x.is_floating_point() else x for x in vars(self).values()))


def jobs(setting: Setting) -> Iterator[Job]:
    """The lab's head and Halton-MaskGIT's, in the dtype that autocast gives, and float32."""
    if setting.quick:
        for bias, dtype in (("position", torch.float32), ("code", torch.bfloat16)):
            yield Job("quick", 2, 16, 64, 32, bias, dtype, COSINE_SHARE)
        return
    lab, halton = preset("lab").transformer, HaltonConfig()
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (8, 64) if setting.on_gpu else (8,):
            for share in (COSINE_SHARE, 1.0):
                yield Job("lab", batch, lab.num_tokens, lab.codebook_size, lab.dim, "position", dtype, share)
        for batch in (8, 64) if setting.on_gpu else (1,):
            size = halton.num_tokens, halton.codebook_size, halton.dim
            yield Job("halton", batch, *size, "code", dtype, COSINE_SHARE)


def make_inputs(job: Job, setting: Setting) -> Inputs:
    """Random hidden states and weights that give logits of size 3; as many positions count in each image."""
    device = setting.device

    def normal(seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=setting.generator(seed), device=device)

    draw = setting.generator()
    order = torch.rand(job.batch, job.tokens, generator=draw, device=device).argsort(1)  # [B, N], each a permutation
    return Inputs(
        normal(1, job.batch, job.tokens, job.dim).to(job.dtype),
        (normal(2, job.codes, job.dim) * 3 / job.dim**0.5).to(job.dtype),
        normal(3, *((job.tokens,) if job.bias == "position" else ()), job.codes),
        torch.randint(job.codes, (job.batch, job.tokens), generator=draw, device=device),
        order < job.rows // job.batch,
    )


# --- implementations --------------------------------------------------------------------------------------------------


def written_out(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, counted: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits of all positions, [B, N, V] in float32, and what is wanted of them."""
    logits = (F.linear(hidden, weight) + bias).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=LABEL_SMOOTHING)
    hits = ((logits.argmax(-1) == targets) & counted).sum()
    return (losses * counted.flatten()).sum(), hits


@functools.cache
def _compiled() -> Loss:
    # With fullgraph a shape beyond the limit is an error; without, it would silently run uncompiled.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(written_out, dynamic=False, fullgraph=True)


def run_loss(function: Loss, inputs: Inputs) -> list[Tensor]:
    """[loss, hits, gradients of hidden, weight and bias]."""
    leaves = [x.detach().requires_grad_() for x in (inputs.hidden, inputs.weight, inputs.bias)]
    loss, hits = function(*leaves, inputs.targets, inputs.counted)
    return [loss.detach(), hits, *torch.autograd.grad(loss, leaves)]


# --- checks and comparisons -------------------------------------------------------------------------------------------


def check(function: Loss, inputs: Inputs, exact: list[Tensor], allowed: list[float]) -> None:
    """Against the reference's results of the first image, and how far each may be from them."""
    found = run_loss(function, inputs.first())
    for name, x, truth, most in zip(
        ("loss", "hits", "dhidden", "dweight", "dbias"), found, exact, allowed, strict=True
    ):
        _compare(name, x, truth, most)
    # What a hidden state's gradient is depends on no other image.
    _compare("dhidden of all images", run_loss(function, inputs)[2][:1], exact[2], allowed[2])


def _compare(name: str, found: Tensor, exact: Tensor, allowed: float) -> None:
    error = _rms(found, exact)
    if not error <= allowed:
        raise WrongResultError(f"{name} is off by {error:.3g}, and may be by {allowed:.3g}")


def _rms(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).square().mean().sqrt())


def comparisons(setting: Setting) -> Iterator[Comparison]:
    """One for each job."""
    return (comparison(job, setting) for job in jobs(setting))


def comparison(job: Job, setting: Setting) -> Comparison:
    """All implementations of a job."""
    return Comparison(
        "head-loss",
        job.name,
        {"written_out": "", "compiled": _why_not_compiled(job, setting), **setting.ours()},
        functools.partial(cases, job, setting),
        shape={name: value for name, value in vars(job).items() if name != "dtype"},
        dtype=job.dtype,
        bytes=job.bytes,
        flops=job.flops,
        weighed=not setting.quick,
    )


def _why_not_compiled(job: Job, setting: Setting) -> str:
    if setting.quick:
        return "a quick run compiles nothing"
    if not setting.on_gpu and (job.model != "lab" or job.dtype != torch.bfloat16):
        return "slow to compile: done for the lab's shape in bfloat16 only"
    return ""


def cases(job: Job, setting: Setting) -> dict[str, Case]:
    """All implementations of a job that can be timed here."""
    inputs = make_inputs(job, setting)
    smoothed = functools.partial(head_loss_reference, label_smoothing=LABEL_SMOOTHING)
    exact = run_loss(smoothed, inputs.first().in_float64())
    plain = run_loss(written_out, inputs.first())
    # Rounding errors of losses add up as the square root of their number, to nothing where they happen to cancel.
    rounding = torch.finfo(job.dtype).eps * 10 * (job.rows / job.batch) ** 0.5
    allowed = [2 * _rms(x, y) + TINY * _rms(y, torch.zeros_like(y)) for x, y in zip(plain, exact, strict=True)]
    allowed[0] += rounding
    allowed[1] += 0.02 * job.tokens  # near ties

    def case(function: Loss, optional: bool = False) -> Case:
        run = functools.partial(run_loss, function, inputs)
        return Case(run, functools.partial(check, function, inputs, exact, allowed), optional)

    found = {"written_out": case(written_out)}
    if not _why_not_compiled(job, setting):
        found["compiled"] = case(_compiled(), optional=True)
    for name in setting.backends():
        found[f"ours_{name}"] = case(functools.partial(head_loss, label_smoothing=LABEL_SMOOTHING, backend=name))
    return found
