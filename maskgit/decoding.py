"""Iterative parallel decoding: pure functions over a `tokens_to_logits` callable.

Chang et al., "MaskGIT: Masked Generative Image Transformer", CVPR 2022, section 3.2. At each step every masked token
is predicted at once; some predictions are kept, the rest are masked again, by a schedule that ends with nothing
masked. The systems that grew from the paper differ in a few choices, the fields of `DecodeConfig`; `DECODERS` has each
system's.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from maskgit.schedules import PROGRESSES, check_counts, check_schedule, floor_count, gamma, halton_order, mask_counts
from maskgit_kernels import check_draw, decode_step, head_sample
from maskgit_kernels.philox import STREAM_REMASK, random_words

ORDERS = ("confidence", "halton")
ANNEALINGS = ("progress", "schedule")
RAMPS = ("constant", "linear")
_MOST_STEPS = 10_000  # beyond any use: more would be a slip, or a hostile model


@dataclass(frozen=True)
class DecodeConfig:
    """How tokens are decoded; r is the progress of a step. Raises a ValueError if a value makes no sense."""

    steps: int = 8
    """T, the number of steps; each is one pass through the transformer."""

    schedule: str = "cosine"
    """gamma, the share left masked as a function of r: a key of `maskgit.schedules.SCHEDULES`."""

    progress: str = "after"
    """r at step t = 0 ... T - 1: "after" the step, (t + 1) / T; "before" it, t / T; "inclusive", t / (T - 1)."""

    counts: str = "official"
    """How gamma(r) becomes a number of tokens: official, floor, decisive or compound (see `mask_counts`)."""

    draw: str = "categorical"
    """How a token is drawn from its distribution: categorical, greedy or perturbed (see `decode_step`)."""

    order: str = "confidence"
    """Which tokens are kept first: "confidence", the most confident; "halton", by their place in the image (see
    `halton_order`), whatever the confidence."""

    confidence: str = "log_prob"
    """What ranks the drawn tokens: log_prob or prob, plus the annealed Gumbel noise."""

    softmax_temperature: float = 1.0
    """Divides the logits. Below 1 the likely tokens become likelier."""

    choice_temperature: float = 4.5
    """tau0, the weight of the Gumbel noise on the confidence."""

    annealing: str = "progress"
    """How the noise changes: "progress", tau0 * (1 - r); "schedule", tau0 * (1 - gamma(r))."""

    guidance_scale: float = 0.0
    """w of classifier-free guidance: (1 + w) * logits - w * those without the class. 0 is none."""

    guidance_ramp: str = "constant"
    """"constant", w at every step; "linear", w * r."""

    stop_after: int | None = None
    """Stop after this many of the T steps and fill what is left from the last prediction ("sweet spot")."""

    remask: float = 0.0
    """eta in [0, 1]: how many decided tokens are masked again at each step, as a share of the most that the schedule
    allows (see `remask_counts`). 0: what is decided stays."""

    reuse: int = 0
    """After each full evaluation of the transformer, this many steps evaluate it at the masked tokens only. That is up
    to `tokens_to_logits`: see `maskgit.reuse.ReusingNetwork`."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.steps > _MOST_STEPS:
            raise ValueError(f"steps must be at most {_MOST_STEPS:,}")
        check_schedule(self.schedule)
        check_counts(self.counts, self.progress)
        check_draw(self.draw, self.confidence)
        for field, choices in (("order", ORDERS), ("annealing", ANNEALINGS), ("guidance_ramp", RAMPS)):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}")
        largest = sys.float_info.max  # compared with, as whole numbers beyond it are no floats at all
        if not 0 < self.softmax_temperature <= largest:
            raise ValueError(f"softmax_temperature must be positive and finite, got {self.softmax_temperature}")
        if not 0 <= self.choice_temperature <= largest:
            raise ValueError(f"choice_temperature must be at least 0 and finite, got {self.choice_temperature}")
        if not abs(self.guidance_scale) <= largest:
            raise ValueError(f"guidance_scale must be finite, got {self.guidance_scale}")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.steps:
            raise ValueError(f"stop_after must be in [1, {self.steps}], the steps, got {self.stop_after}")
        if not 0 <= self.remask <= 1:
            raise ValueError(f"remask must be in [0, 1], got {self.remask}")
        if self.reuse < 0:
            raise ValueError(f"reuse must be at least 0, got {self.reuse}")

    def progress_at(self, step: int) -> float:
        """r in [0, 1] at step 0, 1, ..."""
        return PROGRESSES[self.progress](step, self.steps)

    def temperature_at(self, step: int) -> float:
        """tau, the annealed choice temperature, at step 0, 1, ..."""
        r = self.progress_at(step)
        return self.choice_temperature * (1 - (r if self.annealing == "progress" else gamma(r, self.schedule)))

    def guidance_at(self, step: int) -> float:
        """The guidance scale at step 0, 1, ..."""
        return self.guidance_scale * (1.0 if self.guidance_ramp == "constant" else self.progress_at(step))


DECODERS: dict[str, DecodeConfig] = {
    # The paper's official code: google-research/maskgit, maskgit/libml/parallel_decode.py.
    "maskgit": DecodeConfig(),
    # Three student reports on inpainting 64-pixel cats with MaskGIT; steps and temperature are those they settled on.
    # The first draws and ranks by the same noise on the probability of every code. Its progress starts at 0, so the
    # first step decides nothing and the last one all that the schedule leaves.
    "lab-perturbed": DecodeConfig(steps=20, progress="before", counts="floor", draw="perturbed", confidence="prob"),
    # The second draws from the distribution, and ranks by the probability of what was drawn. It calls its progress
    # t / T in [0, 1), so it too starts at 0.
    "lab-sampled": DecodeConfig(steps=7, progress="before", counts="floor", confidence="prob"),
    # The third takes the likeliest code. It counts from what is still masked, so the shares multiply up, and its noise
    # grows with the steps: what it calls a ratio there is gamma of the progress.
    "lab-greedy": DecodeConfig(steps=5, counts="compound", draw="greedy", confidence="prob", annealing="schedule"),
    # Besnier & Chen, "A PyTorch reproduction of masked generative image transformer", 2023, table 2, 256 pixels. The
    # temperature divides the logits, as its name says; the authors' code multiplies by it (it is 1 in the table). One
    # token more is decided at each step, as their code says it should be; it makes sure of t + 1 after step t only.
    # Where there is one step, their ramps divide 0 by 0: here it is the last one, without noise and fully guided.
    "valeo": DecodeConfig(
        schedule="arccos", progress="inclusive", counts="decisive", guidance_scale=3.0, guidance_ramp="linear"
    ),
    # Besnier et al., "Halton scheduler for masked generative image transformer", ICLR 2025. No noise on the order, and
    # no guidance unless asked for (theirs is constant).
    "halton": DecodeConfig(steps=32, schedule="arccos", counts="decisive", order="halton", choice_temperature=0.0),
}


def decoder(name: str) -> DecodeConfig:
    """The preset of that name. Raises a ValueError if there is none."""
    if name not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {name!r}")
    return DECODERS[name]


class _StepSettings(TypedDict):
    """What `decode_step` and `head_sample` take alike."""

    step: int
    softmax_temperature: float
    choice_temperature: float
    draw: str
    confidence: str
    guidance_scale: float


class DecodePlan(NamedTuple):
    """What a config comes to for images of N tokens: the tables that the loop needs, on the images' device."""

    counts: Tensor
    """int64 [S, N + 1]: how many of 0 ... N tokens masked at first are still masked after each of the S steps."""

    order: Tensor | None
    """int64 [N]: the positions in the order in which they are kept; None where the confidence decides."""

    places: Tensor | None
    """int64 [N]: each position's place in `order`."""

    remasked: Tensor | None
    """int64 [S, N + 1]: how many of the tokens that `counts` leaves masked were decided before the step; None where
    none are."""


def remask_counts(counts: Tensor, eta: float) -> Tensor:
    """How many decided tokens each step masks again: ReMDM with its rescaled schedule, in numbers of tokens.

    Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling", NeurIPS 2025, section 4. There a
    step from time t to s, with shares alpha_t and alpha_s of the tokens decided, masks each decided token again with
    probability

        sigma_t = eta * min(1, (1 - alpha_s) / alpha_t)        ("ReMDM-rescale")

    and decides each masked one with probability (alpha_s - (1 - sigma_t) * alpha_t) / (1 - alpha_t), so that the
    expected share decided is alpha_s as without. Here the numbers are exact instead of expected. With n_t and n_s of N0
    tokens masked before and after the step,

        R = floor(eta * min(N0 - n_t, n_s)),

    which is sigma_t times the N0 - n_t decided ones, rounded down: R of them, drawn evenly, are masked again, and so
    many more of the masked ones are decided that n_s are masked after the step. Those are chosen as the decoder chooses
    (by confidence or place), where the paper draws them evenly too. At the last step n_s = 0 and R = 0.

    Args:
        counts: n_s, int64 [S, N + 1] as in `DecodePlan`.
        eta: in [0, 1].

    Returns:
        R, int64 [S, N + 1].
    """
    start = torch.arange(counts.shape[1], device=counts.device)
    before = torch.cat([start[None], counts[:-1]])
    return floor_count(eta, torch.minimum(start - before, counts).to(torch.float64))


def decode_plan(
    config: DecodeConfig,
    num_tokens: int,
    device: torch.device | str = "cpu",
    *,
    grid: tuple[int, int] | None = None,
) -> DecodePlan:
    """Make the tables for `decode_steps`, which makes its own if it isn't given any.

    A CUDA graph needs them beforehand, because making them copies from the host.

    Args:
        config: see `DecodeConfig`.
        num_tokens: N.
        device: where the images are.
        grid: (rows, columns) of the tokens, for order="halton"; square by default.

    Raises:
        ValueError: a grid that doesn't have N cells, or none given where N isn't a square.
    """
    # One column for every possible number of masked tokens, looked up on the device: the host need not know the
    # numbers, and the device need not know float64.
    counts = mask_counts(
        torch.arange(num_tokens + 1), config.steps, config.schedule, rule=config.counts, progress=config.progress
    )[: config.stop_after]
    counts[-1] = 0
    remasked = remask_counts(counts, config.remask).to(device) if config.remask else None
    if config.order == "confidence":
        return DecodePlan(counts.to(device), None, None, remasked)
    rows, columns = grid or (math.isqrt(num_tokens),) * 2
    if rows * columns != num_tokens:
        raise ValueError(f"the grid must have {num_tokens} tokens for order='halton', got {rows} x {columns}")
    order = torch.tensor(halton_order(rows, columns))
    return DecodePlan(counts.to(device), order.to(device), order.argsort().to(device), remasked)


def plan_up_to(config: DecodeConfig, num_tokens: int, most_masked: int) -> DecodePlan:
    """The numbers of `decode_plan` for images of which at most so many tokens are masked at first, on the CPU.

    Args:
        config: see `DecodeConfig`.
        num_tokens: N.
        most_masked: M.

    Returns:
        A plan with tables [S, M + 1], without an order, which has no say in numbers.

    Raises:
        ValueError: `most_masked` isn't in [0, N].
    """
    if not 0 <= most_masked <= num_tokens:
        raise ValueError(f"most_masked must be in [0, {num_tokens}], got {most_masked}")
    plan = decode_plan(dataclasses.replace(config, order="confidence"), num_tokens)
    remasked = None if plan.remasked is None else plan.remasked[:, : most_masked + 1]
    return DecodePlan(plan.counts[:, : most_masked + 1], None, None, remasked)


def decode_steps(
    tokens_to_logits: Callable[[Tensor], Tensor],
    tokens: Tensor,
    masked: Tensor,
    config: DecodeConfig,
    seeds: Tensor,
    *,
    mask_token_id: int,
    tokens_to_guided: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    head: tuple[Tensor, Tensor | None] | None = None,
    plan: DecodePlan | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Fill the masked tokens step by step, without waiting for the device in between. No gradients are recorded.

    An image's tokens depend only on its own tokens, mask and seed, as far as that holds for `tokens_to_logits`.

    Args:
        tokens_to_logits: maps int64 [B, N], masked tokens set to `mask_token_id`, to float logits [B, N, at least V].
        tokens: int64 [B, N]; what they hold where masked does not matter. Not modified.
        masked: bool [B, N], True = to be filled; any number per image, none and all included. Not modified.
        config: see `DecodeConfig`.
        seeds: int64 [B], one per image.
        mask_token_id: V. Ids from V on are never drawn.
        tokens_to_guided: maps the same to a pair of logits, with the condition and without it, as one pass through
            the model can give them. It is asked instead of `tokens_to_logits` at the steps whose guidance isn't 0.
        head: weight [V, D] and bias, [V] or [N, V], of the model's last product, or None. With it the two callables
            give what it multiplies, [B, N, D], and a step draws its tokens without writing the logits (`head_sample`).
        plan: `decode_plan(config, N, device)`, made here if it is missing.

    Yields:
        (step, tokens, masked) after each of the config's steps: tokens int64 [B, N] hold a prediction wherever they
        were masked before the step, masked bool [B, N] says which are open after it. None are after the last. A token
        that is masked again is still there until it is replaced.

    Raises:
        ValueError: arguments that do not fit each other; NaN logits on a CPU (see `decode_step`).
    """
    if tokens.dim() != 2 or masked.shape != tokens.shape:
        raise ValueError(f"tokens and masked must both be [B, N], got {tuple(tokens.shape)} and {tuple(masked.shape)}")
    if config.guidance_scale != 0 and tokens_to_guided is None:
        raise ValueError(f"guidance_scale is {config.guidance_scale}, but tokens_to_guided is missing")
    if plan is None:
        plan = decode_plan(config, tokens.shape[1], tokens.device)
    holes, num_holes = masked, masked.sum(1)  # [B, N], [B]
    counts = plan.counts[:, num_holes]  # [S, B]
    remasked = None if plan.remasked is None else plan.remasked[:, num_holes]  # [S, B]

    for step in range(len(counts)):
        with torch.no_grad():  # not as a decorator, which PyTorch 2.11 can't compile around a generator
            before = masked
            keep = counts[step] if remasked is None else counts[step] - remasked[step]
            held, guidance = tokens.masked_fill(masked, mask_token_id), config.guidance_at(step)
            if guidance != 0 and tokens_to_guided is not None:
                predicted, unguided = tokens_to_guided(held)
            else:
                predicted, unguided = tokens_to_logits(held), None
            settings = _StepSettings(
                step=step,
                softmax_temperature=config.softmax_temperature,
                choice_temperature=config.temperature_at(step),
                draw=config.draw,
                confidence=config.confidence,
                guidance_scale=guidance,
            )
            if head is None:
                tokens, masked = decode_step(
                    predicted,
                    tokens,
                    masked,
                    keep,
                    seeds=seeds,
                    num_codes=mask_token_id,
                    guidance_logits=unguided,
                    **settings,
                )
            else:
                tokens, masked = head_sample(
                    predicted, *head, tokens, masked, keep, seeds=seeds, guidance_hidden=unguided, **settings
                )
            if plan.order is not None:
                number = before[:, plan.order].cumsum(1)[:, plan.places]  # [B, N]; 1 for the first masked in the order
                masked = before & (number > (before.sum(1) - keep)[:, None])
            if remasked is not None:
                masked = masked | _draw(holes & ~before, remasked[step], seeds, step)
        yield step, tokens, masked


def _draw(candidates: Tensor, count: Tensor, seeds: Tensor, step: int) -> Tensor:
    """Choose count[b] of each image's candidates, bool [B, N], every choice being as likely as any other."""
    positions = torch.arange(candidates.shape[1], device=candidates.device)
    lots = random_words(seeds[:, None], positions, step, STREAM_REMASK, 1)[..., 0]  # [B, N], below 2**32
    order = lots.masked_fill(~candidates, 2**32).sort(dim=1, stable=True).indices
    return torch.zeros_like(candidates).scatter_(1, order, positions < count[:, None])


def decode(
    tokens_to_logits: Callable[[Tensor], Tensor],
    tokens: Tensor,
    masked: Tensor,
    config: DecodeConfig,
    seeds: Tensor,
    *,
    mask_token_id: int,
    tokens_to_guided: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    plan: DecodePlan | None = None,
) -> Tensor:
    """Fill the masked tokens: the last tokens, int64 [B, N], that `decode_steps` yields."""
    result = tokens
    for _, step_tokens, _ in decode_steps(
        tokens_to_logits,
        tokens,
        masked,
        config,
        seeds,
        mask_token_id=mask_token_id,
        tokens_to_guided=tokens_to_guided,
        plan=plan,
    ):
        result = step_tokens
    return result
