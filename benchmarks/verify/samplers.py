"""Checks of decode_step and head_sample: tokens and masks against the reference, frequencies against the softmax.

A sampler's results are whole numbers, which rounding changes only where two candidates nearly tie. Such positions are
found in float64 and excused; of all others none may differ from the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.verify.measure import (
    DTYPES,
    Measurement,
    chi_square,
    chi_square_limit,
    multiplying,
    poisoned,
    rounded_to_tf32,
)
from maskgit_kernels.decode_step.op import decode_step
from maskgit_kernels.decode_step.reference import decode_step_reference
from maskgit_kernels.head_sample.choice import impose
from maskgit_kernels.head_sample.op import head_sample
from maskgit_kernels.philox import STREAM_CONFIDENCE, STREAM_TOKEN, random_words, uniform

# Closer scores than this may come out either way: noise up to 23, to 1e-6 of its size, and logits of size 10, exact or
# summed up by tensor cores.
_TIE = {"decode_step": 3e-5, "head_sample": 1e-4}

Step = tuple[Tensor, Tensor]
"""Tokens and mask, both [B, N]."""


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn, and from what."""

    draw: str
    confidence: str
    arithmetic: str
    num_codes: int
    size: tuple[int, int]  # images, positions
    guided: bool = False
    softmax_temperature: float = 1.0
    choice_temperature: float = 2.0
    share: float = 0.6  # of positions that are masked

    def __str__(self) -> str:
        parts = [self.draw, self.confidence, self.arithmetic, f"V={self.num_codes}", "B={}, N={}".format(*self.size)]
        return ", ".join(parts + ["guided"] * self.guided)

    @property
    def settings(self) -> dict[str, Any]:
        return dict(
            draw=self.draw,
            confidence=self.confidence,
            softmax_temperature=self.softmax_temperature,
            choice_temperature=self.choice_temperature,
            guidance_scale=1.5 if self.guided else 0.0,
            step=3,
        )


def check_decode_step(drawing: Drawing, codes_first: bool, device: torch.device) -> Iterator[Measurement]:
    """With codes_first the logits of a position lie apart in memory. A column for the mask token must never win."""
    generator = torch.Generator().manual_seed(drawing.num_codes)
    given: dict[str, Any] = _state(drawing, generator)
    columns = drawing.num_codes + 1
    for name in ("logits", "guidance_logits") if drawing.guided else ("logits",):
        logits = 3 * torch.randn(*drawing.size, columns, generator=generator)
        logits[..., -1] = 99
        given[name] = logits.to(DTYPES[drawing.arithmetic])
    options = drawing.settings | dict(num_codes=drawing.num_codes)
    expected = decode_step_reference(**given, **options)
    there: dict[str, Any] = {name: x.to(device) for name, x in given.items()}
    if codes_first:
        there |= {name: x.mT.contiguous().mT for name, x in there.items() if x.dim() == 3}
    with poisoned():
        ours = decode_step(**there, **options, backend="triton")
    plain = decode_step(**there, **options, backend="torch")

    z = given["logits"][..., : drawing.num_codes].float()
    if drawing.guided:
        z = z + 1.5 * (z - given["guidance_logits"][..., : drawing.num_codes].float())
    case = f"{drawing}, codes first" if codes_first else str(drawing)
    yield from _compare("decode_step", case, drawing, given, z, ours, plain, expected)


def check_head_sample(drawing: Drawing, width: int, bias: str, way: str, device: torch.device) -> Iterator[Measurement]:
    """`bias` is "none", "code" or "position", `way` one of `head_sample.choice.WAYS`. In tf32 the reference gets the
    factors as a tensor core should."""
    generator = torch.Generator().manual_seed(width)
    given: dict[str, Any] = _state(drawing, generator)
    dtype, (batch, length) = DTYPES[drawing.arithmetic], drawing.size
    weight = (3 * torch.randn(drawing.num_codes, width, generator=generator) / width**0.5).to(dtype)
    biases = torch.randn(length, drawing.num_codes, generator=generator)
    head: dict[str, Any] = dict(
        hidden=torch.randn(batch, length, width, generator=generator).to(dtype),
        weight=weight,
        bias={"none": None, "code": biases[0], "position": biases}[bias],
    )
    if drawing.guided:  # such numbers that hidden + 1.5 * (hidden - guidance_hidden) is exact in half precision too
        for name in ("hidden", "guidance_hidden"):
            steps = torch.randn(batch, length, width, generator=generator).mul(8).round().clamp(-16, 16)
            head[name] = steps.div(8).to(dtype)
    there: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in (given | head).items()}
    with multiplying(drawing.arithmetic):
        with poisoned(), impose(way):
            ours = head_sample(**there, **drawing.settings, backend="triton")
        plain = head_sample(**there, **drawing.settings, backend="torch")

    h, w = head["hidden"].float(), weight.float()
    if drawing.guided:
        h = h + 1.5 * (h - head["guidance_hidden"].float())
    if drawing.arithmetic == "tf32":
        h, w = rounded_to_tf32(h), rounded_to_tf32(w)
    z = F.linear(h.double(), w.double())  # [B, N, V]
    z = z if head["bias"] is None else z + head["bias"]
    expected = decode_step_reference(z.float(), **given, **drawing.settings | dict(guidance_scale=0.0))
    case = f"{drawing}, D={width}, bias: {bias}, {way}"
    yield from _compare("head_sample", case, drawing, given, z, ours, plain, expected)


def check_frequencies(operator: str, temperature: float, images: int, device: torch.device) -> Iterator[Measurement]:
    """How often each of seven codes is drawn at 256 positions of some images: the statistic of a chi-square test."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf, 0.5, -3.0], device=device)
    size = images, 256
    given: dict[str, Any] = dict(
        tokens=torch.full(size, -1, device=device),
        masked=torch.ones(size, dtype=torch.bool, device=device),
        n_keep_masked=torch.zeros(images, dtype=torch.int64, device=device),
        seeds=torch.arange(images, device=device) * 2**33 - 7,
    )
    if operator == "decode_step":
        run: Any = decode_step
        given["logits"] = logits.expand(*size, -1)
    else:
        run = head_sample
        given |= dict(hidden=torch.zeros(*size, 16, device=device), weight=torch.zeros(7, 16, device=device))
        given["bias"] = logits
    with poisoned():
        tokens, _ = run(**given, step=0, softmax_temperature=temperature, backend="triton")
    plain, _ = run(**given, step=0, softmax_temperature=temperature, backend="torch")
    p = torch.softmax(logits.double() / temperature, 0)
    statistic, reference_statistic = (_statistic(x.flatten(), p) for x in (tokens, plain))
    case = f"chi-square of {images * 256} draws at temperature {temperature:g}"
    yield Measurement(operator, case, statistic, reference_statistic, chi_square_limit(5))


def _statistic(tokens: Tensor, p: Tensor) -> float:
    if not ((tokens >= 0) & (tokens < len(p))).all():
        return float("inf")
    return chi_square(torch.bincount(tokens, minlength=len(p)), p)


def _state(drawing: Drawing, generator: torch.Generator) -> dict[str, Tensor]:
    size = batch, length = drawing.size
    masked = torch.rand(size, generator=generator) < drawing.share
    return dict(
        tokens=torch.randint(drawing.num_codes, size, generator=generator).masked_fill(masked, drawing.num_codes),
        masked=masked,
        n_keep_masked=torch.randint(int(length * drawing.share) + 2, (batch,), generator=generator),
        seeds=torch.randint(-(2**63), 2**63 - 1, (batch,), generator=generator),
    )


def _compare(
    operator: str,
    case: str,
    drawing: Drawing,
    given: dict[str, Tensor],
    z: Tensor,
    ours: Step,
    plain: Step,
    expected: Step,
) -> Iterator[Measurement]:
    """The shares of positions without a near tie where tokens and masks differ from the reference; z: [B, N, V]."""
    tied_tokens, tied_masks = near_ties(drawing, given, z, _TIE[operator])
    # The number that stays masked is exact, ties or not.
    counts = expected[1].sum(1)
    for name, which, tied in (("tokens", 0, tied_tokens), ("masks", 1, tied_masks)):
        shares, wrong_counts = [], []
        for results in (ours, plain):
            differs = results[which].cpu() != expected[which]
            wrong_counts.append(int((results[1].cpu().sum(1) != counts).sum()) if name == "masks" else 0)
            shares.append((differs & ~tied).double().mean().item() + wrong_counts[-1])
        agree = 100 * (ours[which].cpu() == expected[which]).double().mean().item()
        note = f"{agree:.4g} % agree, {int(tied.sum())} near ties"
        note += f", wrong number in {wrong_counts[0]} images" if wrong_counts[0] else ""
        yield Measurement(operator, f"{name}, {case}", shares[0], shares[1], 0.0, note)


def near_ties(drawing: Drawing, given: dict[str, Tensor], z: Tensor, tie: float) -> tuple[Tensor, Tensor]:
    """Where rounding may decide on the token, and where on whether it stays masked: bool [B, N] each."""
    masked, seeds = given["masked"], given["seeds"][:, None]
    log_p = torch.log_softmax(z.double() / drawing.softmax_temperature, -1)  # [B, N, V]
    positions = torch.arange(z.shape[1])

    def noise(stream: int, count: int) -> Tensor:  # Gumbel, [B, N, count]
        words = random_words(seeds, positions, drawing.settings["step"], stream, count)
        return -torch.log(-torch.log1p(-uniform(words).double()))

    tau = drawing.choice_temperature
    scores = log_p
    loose = tie * max(1.0, tau)
    if drawing.draw == "categorical":
        scores = log_p + noise(STREAM_TOKEN, z.shape[-1])
    elif drawing.draw == "perturbed":
        scores, tie = log_p.exp() + tau * noise(STREAM_TOKEN, z.shape[-1]), loose
    best = scores.topk(min(2, z.shape[-1]), -1)  # [B, N, 2]
    tied_tokens = masked & (best.values[..., 0] - best.values[..., -1] < tie) & (z.shape[-1] > 1)

    if drawing.draw == "perturbed":
        certainty = best.values[..., 0]  # [B, N]
    else:
        chosen = log_p.gather(-1, best.indices[..., :1])[..., 0]
        certainty = chosen if drawing.confidence == "log_prob" else chosen.exp()
        certainty = certainty + tau * noise(STREAM_CONFIDENCE, 1)[..., 0]
    tied_masks = tied_tokens.any(1, keepdim=True) & masked  # a token that may change takes its confidence along
    for b, keep in enumerate(given["n_keep_masked"].tolist()):
        ordered = certainty[b][masked[b]].sort().values
        if 0 < keep < len(ordered) and ordered[keep] - ordered[keep - 1] < loose:
            near = (certainty[b] > ordered[keep - 1] - loose) & (certainty[b] < ordered[keep] + loose)
            tied_masks[b] |= near & masked[b]
    return tied_tokens, tied_masks
