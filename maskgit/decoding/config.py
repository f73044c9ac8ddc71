"""How tokens are decoded: `DecodeConfig`, and `DECODERS`, each known system's choices.

The systems that grew from Chang et al., "MaskGIT", CVPR 2022, differ in a few choices: the fields of the config.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass

from maskgit.decoding.schedules import COUNTS, PROGRESSES, SCHEDULES, gamma, require_one_of
from maskgit_kernels.decode_step import check_draw

ORDERS = ("confidence", "halton")
_CHOICES: dict[str, Collection[str]] = {  # of fields; `check_draw` knows the others
    "schedule": SCHEDULES,
    "progress": PROGRESSES,
    "counts": COUNTS,
    "order": ORDERS,
    "annealing": ("progress", "schedule"),
    "guidance_ramp": ("constant", "linear"),
}
_MOST_STEPS = 10_000  # beyond any use: more would be a slip, or a hostile model


@dataclass(frozen=True)
class DecodeConfig:
    """How tokens are decoded; r is the progress of a step. Raises a ValueError if a value makes no sense."""

    steps: int = 8
    """T, the number of steps; each is one pass through the transformer."""

    schedule: str = "cosine"
    """gamma, the share left masked as a function of r: a key of `maskgit.decoding.schedules.SCHEDULES`."""

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

    guidance_from: float = 0.0
    """Guide only in steps of which at least this share of the T steps lies before: t / T >= guidance_from, ..."""

    guidance_to: float = 1.0
    """... and t / T < guidance_to. The other steps take one pass instead of two.

    Kynkäänniemi et al., "Applying guidance in a limited interval ...", NeurIPS 2024, guide diffusion within an interval
    of noise levels: they found guidance harmful at first, useless at the end. You et al., "Effective and efficient
    masked image generation models", ICML 2025, do so for masked images. Their time runs from 1 to 0, and their code
    asks whether it lies in (t_min, t_max] *after* the step: here from 1 - t_max - 1 / T to 1 - t_min - 1 / T. With 16
    steps they guide most of their models in (0.1, 0.3], steps 11 to 13 of 0 to 15."""

    stop_after: int | None = None
    """Stop after this many of the T steps and fill what is left from the last prediction ("sweet spot")."""

    remask: float = 0.0
    """eta in [0, 1]: how many decided tokens are masked again at each step, as a share of the most that the schedule
    allows (see `remask_counts`). 0: what is decided stays."""

    reuse: int = 0
    """After each full evaluation of the transformer, this many steps evaluate it at the masked tokens only. That is up
    to `tokens_to_logits`: see `maskgit.network.partial.ReusingNetwork`."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.steps > _MOST_STEPS:
            raise ValueError(f"steps must be at most {_MOST_STEPS:,}")
        for field, choices in _CHOICES.items():
            require_one_of(choices, field, getattr(self, field))
        check_draw(self.draw, self.confidence)
        largest = sys.float_info.max  # compared with, as whole numbers beyond it are no floats at all
        if not 0 < self.softmax_temperature <= largest:
            raise ValueError(f"softmax_temperature must be positive and finite, got {self.softmax_temperature}")
        if not 0 <= self.choice_temperature <= largest:
            raise ValueError(f"choice_temperature must be at least 0 and finite, got {self.choice_temperature}")
        if not abs(self.guidance_scale) <= largest:
            raise ValueError(f"guidance_scale must be finite, got {self.guidance_scale}")
        for field in ("guidance_from", "guidance_to"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} must be in [0, 1], got {getattr(self, field)}")
        if self.guidance_from > self.guidance_to:
            raise ValueError(f"guidance_from must be at most guidance_to, {self.guidance_to}, got {self.guidance_from}")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.steps:
            raise ValueError(f"stop_after must be in [1, {self.steps}], the steps, got {self.stop_after}")
        if not 0 <= self.remask <= 1:
            raise ValueError(f"remask must be in [0, 1], got {self.remask}")
        if self.reuse < 0:
            raise ValueError(f"reuse must be at least 0, got {self.reuse}")

    @property
    def steps_taken(self) -> int:
        """S, the number of steps until it stops."""
        return self.stop_after or self.steps

    def progress_at(self, step: int) -> float:
        """r in [0, 1] at step 0, 1, ..."""
        return PROGRESSES[self.progress](step, self.steps)

    def temperature_at(self, step: int) -> float:
        """tau, the annealed choice temperature, at step 0, 1, ..."""
        r = self.progress_at(step)
        return self.choice_temperature * (1 - (r if self.annealing == "progress" else gamma(r, self.schedule)))

    def guidance_at(self, step: int) -> float:
        """The guidance scale at step 0, 1, ...; 0 outside of the interval."""
        if not self.guidance_from <= step / self.steps < self.guidance_to:
            return 0.0
        return self.guidance_scale * (1.0 if self.guidance_ramp == "constant" else self.progress_at(step))

    @property
    def passes(self) -> int:
        """Passes through the transformer for an image with a class: one for each step, two where it is guided."""
        return sum(2 if self.guidance_at(step) else 1 for step in range(self.steps_taken))


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
    require_one_of(DECODERS, "decoder", name)
    return DECODERS[name]
