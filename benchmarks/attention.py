"""Attention: ours against PyTorch's SDPA (its choice and each kernel), FlexAttention, and attention written out.

Inputs are the packed projection [B, N, 3, H, D] that the transformer makes, at the shapes of the presets. "Backward" is
the backward pass alone, to the gradient of that projection. Ours writes it at once; "ours_apart" and everybody else
make three, of queries, keys and values, which autograd puts together.

An output is right if its error against float64 is at most twice that of the written-out attention at the same
precision; with dropout, ours is held against the reference with the same seed, and others, which draw other masks, by
what dropout must keep on average.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.hardware import label
from benchmarks.harness import Case, Comparison, WrongResultError
from benchmarks.setting import Setting
from maskgit.config import preset
from maskgit_kernels.attention import attention, attention_packed
from maskgit_kernels.attention.reference import attention_reference

SEED = 20220208  # of dropout
CHECKED = 2  # images that are checked
# Beyond what rounding explains: errors this small against the largest output are not told apart.
TINY = 1e-6

Attend = Callable[[Tensor], Tensor]
"""From the packed projection to the output, [B, N, H, D]."""


@dataclass(frozen=True)
class Job:
    """One comparison's shape."""

    model: str
    batch: int
    heads: int
    tokens: int
    head_dim: int
    dtype: torch.dtype
    dropout: float
    backward: bool

    @property
    def name(self) -> str:
        return f"{self.model}-b{self.batch}-{label(self.dtype)}" + (f"-dropout{self.dropout}" if self.dropout else "")

    @property
    def flops(self) -> float:
        """Two matrix products forward, five backward, of 2 operations per multiply-add."""
        products = 5 if self.backward else 2
        return products * 2 * self.batch * self.heads * self.tokens**2 * self.head_dim

    @property
    def bytes(self) -> float:
        """Forward: q, k, v and the output. Backward: these and their gradients."""
        tensors = 8 if self.backward else 4
        return tensors * self.batch * self.heads * self.tokens * self.head_dim * self.dtype.itemsize


def jobs(setting: Setting) -> Iterator[Job]:
    """The presets' shapes; dropout where a preset trains with it."""
    dtypes = [torch.float32, torch.bfloat16] + ([torch.float16] if setting.on_gpu else [])
    for model, batches in _batches(setting).items():
        config = preset(model).transformer
        tokens = 17 if setting.quick else config.num_tokens + (1 if config.num_classes else 0)
        dropouts = sorted({0.0, config.attention_dropout})
        for batch, dtype, dropout, backward in itertools.product(batches, dtypes, dropouts, (False, True)):
            yield Job(model, batch, config.heads, tokens, config.head_dim, dtype, dropout, backward)


def _batches(setting: Setting) -> dict[str, tuple[int, ...]]:
    if setting.quick:
        return {"lab": (2,)}
    if setting.on_gpu:
        return dict.fromkeys(("embedded", "lab", "maskgit-256", "maskgit-512"), (1, 8, 64))
    return {"embedded": (8,), "lab": (8,), "maskgit-512": (2,)}


def forward_comparisons(setting: Setting) -> Iterator[Comparison]:
    """One for each job."""
    return (comparison(job, setting) for job in jobs(setting) if not job.backward)


def backward_comparisons(setting: Setting) -> Iterator[Comparison]:
    """One for each job."""
    return (comparison(job, setting) for job in jobs(setting) if job.backward)


def comparison(job: Job, setting: Setting) -> Comparison:
    """Ours and everybody else's."""
    flex = _why_not_flex(job, setting)
    return Comparison(
        "attention-backward" if job.backward else "attention-forward",
        job.name,
        {
            "written_out": "",
            "sdpa": "",
            **{f"sdpa_{kernel}": "" for kernel in _sdpa_kernels(setting)},
            "flex": flex,
            "flex_flash": flex or _why_not_flash(setting),
            **(setting.ours("ours_apart") if job.backward else {}),
            **setting.ours(),
        },
        functools.partial(cases, job, setting),
        shape={
            "batch": job.batch,
            "heads": job.heads,
            "tokens": job.tokens,
            "head_dim": job.head_dim,
            "dropout": job.dropout,
        },
        dtype=job.dtype,
        bytes=job.bytes,
        flops=job.flops,
    )


def cases(job: Job, setting: Setting) -> dict[str, Case]:
    """All implementations of a job that can be timed here."""
    shape = (job.batch, job.tokens, 3, job.heads, job.head_dim)
    packed = torch.randn(shape, generator=setting.generator(), device=setting.device).to(job.dtype)
    gradient = torch.randn(shape[:2] + shape[3:], generator=setting.generator(1), device=setting.device)
    gradient = gradient.to(job.dtype)
    # On the device: where it isn't, reading it stops a GPU's host.
    seed = torch.tensor(SEED, device=setting.device) if job.dropout else None
    options: dict[str, Any] = {"dropout_p": job.dropout, "seed": seed}
    exact = _results(_apart(attention_reference, **options), packed.double(), gradient.double(), job, CHECKED)
    largest = float(exact.abs().max())
    # Dropout scales what is kept by 1 / (1 - p), and its rounding with it.
    allowed = 2 * _rounding(job, packed, gradient) / (1 - job.dropout) + TINY * largest

    def case(
        attend: Attend,
        *,
        same_dropout: bool = False,
        optional: bool = True,
        bound: float = allowed,
        kernel: str = "",
    ) -> Case:
        run = _timed(attend, packed, gradient, job)

        def verify() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SDPA explains at length which of its kernels don't apply
                if job.dropout and not same_dropout:
                    _check_dropout(attend, packed, gradient, job)
                else:
                    _check(_results(attend, packed, gradient, job), exact, bound)
                run()  # the first call backward builds the graph, and must not be the one that is timed

        return Case(run, verify, optional, kernel=kernel)

    written_out = _apart(_written_out, dropout=job.dropout)
    made = {"written_out": case(written_out, optional=False, bound=16 * torch.finfo(job.dtype).eps * largest)}
    made["sdpa"] = case(_apart(_sdpa, kernel=None, dropout=job.dropout), kernel=_choice(packed, job))
    for name, kernel in _sdpa_kernels(setting).items():
        made[f"sdpa_{name}"] = case(_apart(_sdpa, kernel=kernel, dropout=job.dropout))
    if not _why_not_flex(job, setting):
        made["flex"] = case(_apart(_flex()))
        if not _why_not_flash(setting):
            made["flex_flash"] = case(_apart(_flex("FLASH")))
    for name in setting.backends():
        ours: dict[str, Attend] = {"ours": functools.partial(attention_packed, backend=name, **options)}
        if job.backward:
            ours["ours_apart"] = _apart(attention, backend=name, **options)
        made |= {f"{which}_{name}": case(attend, same_dropout=True, optional=False) for which, attend in ours.items()}
    return made


# --- implementations --------------------------------------------------------------------------------------------------


def _split(packed: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, [B, H, N, D] each."""
    return tuple(part.transpose(1, 2) for part in packed.unbind(2))


def _apart(attend: Callable[..., Tensor], **options: Any) -> Attend:
    """By a function of queries, keys and values."""
    return lambda packed: attend(*_split(packed), **options).transpose(1, 2)


def _written_out(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)  # [B, H, N, N]
    return F.dropout(weights, dropout) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, kernel: SDPBackend | None, dropout: float) -> Tensor:
    """By one of its kernels, or as it is called by everybody: by the one that it chooses."""
    with sdpa_kernel([kernel]) if kernel is not None else contextlib.nullcontext():
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def _choice(packed: Tensor, job: Job) -> str:
    """The kernel that plain SDPA chooses for these inputs."""
    q, k, v = (x.detach().requires_grad_(job.backward) for x in _split(packed))
    choice = torch._fused_sdp_choice(q, k, v, dropout_p=job.dropout)
    names = {kernel.value: name.lower() for name, kernel in SDPBackend.__members__.items()}
    return names.get(choice, str(choice))


def _sdpa_kernels(setting: Setting) -> dict[str, SDPBackend]:
    kernels = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}
    if setting.on_gpu:
        kernels |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return kernels


def _why_not_flex(job: Job, setting: Setting) -> str:
    if setting.quick:
        return "a quick run compiles nothing"
    if job.dropout:
        return "it has no dropout"
    if not setting.on_gpu and job.backward:
        return "it has no backward pass on a CPU"
    # It is compiled for each shape: a minute or two on a CPU, several seconds on a GPU.
    if job.dtype != torch.bfloat16 or not (setting.on_gpu or job.model == "lab"):
        return "slow to compile: done in bfloat16 only, on a CPU for the lab's shape only"
    return ""


def _why_not_flash(setting: Setting) -> str:
    """Why FlexAttention can't use flash-attn-4; empty if it can."""
    from torch.nn.attention import flex_attention

    if "BACKEND" not in getattr(flex_attention.FlexKernelOptions, "__annotations__", {}):
        return "this PyTorch does not offer it"
    if not setting.on_gpu:
        return "there is no GPU here"
    try:
        found = importlib.util.find_spec("flash_attn.cute")
    except ModuleNotFoundError:
        found = None
    return "" if found else "flash-attn-4 is not installed"


@functools.cache
def _flex(backend: str | None = None) -> Callable[..., Tensor]:
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch
    from torch.nn.attention.flex_attention import flex_attention

    # Only its backward pass is timed, again and again on one graph, so its buffers must survive.
    functorch.donated_buffer = False
    # With fullgraph a shape beyond the limit is an error; without, it would silently run uncompiled.
    dynamo.recompile_limit = 64
    options: Any = None if backend is None else {"BACKEND": backend}
    return functools.partial(torch.compile(flex_attention, dynamic=False, fullgraph=True), kernel_options=options)


# --- running and checking ---------------------------------------------------------------------------------------------


def _timed(attend: Attend, packed: Tensor, gradient: Tensor, job: Job) -> Callable[[], object]:
    if not job.backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return attend(packed)

        return forward
    graph: list[tuple[Tensor, Tensor]] = []

    def backward() -> object:
        if not graph:
            leaf = packed.clone().requires_grad_()
            graph.append((attend(leaf), leaf))
        out, leaf = graph[0]
        return torch.autograd.grad(out, leaf, gradient, retain_graph=True)

    return backward


def _results(attend: Attend, packed: Tensor, gradient: Tensor, job: Job, images: int | None = None) -> Tensor:
    """What the job computes: the output [B, N, H, D], or the gradient of the packed projection; of some images."""
    packed = packed[:images]
    if not job.backward:
        with torch.no_grad():
            return attend(packed)
    leaf = packed.clone().requires_grad_()
    return torch.autograd.grad(attend(leaf), leaf, gradient[:images])[0]


def _rounding(job: Job, packed: Tensor, gradient: Tensor) -> float:
    """The written-out attention's largest error against float64, without dropout."""
    plain = dataclasses.replace(job, dropout=0.0)
    exact = _results(_apart(attention_reference), packed.double(), gradient.double(), plain, CHECKED)
    written_out = _apart(_written_out, dropout=0.0)
    return float((_results(written_out, packed, gradient, plain, CHECKED).double() - exact).abs().max())


def _check(result: Tensor, exact: Tensor, allowed: float) -> None:
    if not torch.isfinite(result).all():
        raise WrongResultError("the result is not finite")
    error = float((result[:CHECKED].double() - exact).abs().max())
    if not error <= allowed:
        raise WrongResultError(f"off by {error:.3g}, {error / allowed:.1f} times what is allowed")


def _check_dropout(attend: Attend, packed: Tensor, gradient: Tensor, job: Job) -> None:
    """With values of one, an output is the sum of the weights that were kept: 1 on average, and not everywhere."""
    ones = packed.clone()
    ones[:, :, 2] = 1
    with torch.no_grad():
        kept = attend(ones).float()[..., 0]  # [B, N, H]
    # One weight may hold nearly all of a row, so the mean of n rows strays by at most sqrt(p / (1 - p) / n), sigma.
    sigma = (job.dropout / (1 - job.dropout) / kept.numel()) ** 0.5
    if not abs(float(kept.mean()) - 1) < 6 * sigma + 0.01:
        raise WrongResultError(f"dropout keeps {float(kept.mean()):.3f} of the weight instead of all on average")
    if float(kept.std()) < 1e-3:
        raise WrongResultError("nothing is dropped")
    if job.backward and not torch.isfinite(_results(attend, packed, gradient, job)).all():
        raise WrongResultError("the gradient is not finite")
