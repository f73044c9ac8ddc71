"""What every decoding step starts from, and what it has to leave, whatever made its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import WrongResultError
from benchmarks.setting import Setting

CHOICE_TEMPERATURE = 4.5
GUIDANCE_SCALE = 3.0
STEP = 3
# Share of the first image's tokens and mask that must be the reference's: near ties, rounding decides.
SAME = {torch.float32: 0.99, torch.float16: 0.95, torch.bfloat16: 0.95}


@dataclass(frozen=True)
class State:
    """Of a batch in the middle of decoding."""

    tokens: Tensor
    """int64 [B, N]."""
    masked: Tensor
    """bool [B, N], as many True in each image."""
    n_keep_masked: Tensor
    """int64 [B], half of these."""
    seeds: Tensor
    """int64 [B]."""

    @property
    def bytes(self) -> int:
        """That a step reads and writes of it: tokens and masks in and out, counts and seeds."""
        return 2 * (self.tokens.nbytes + self.masked.nbytes) + self.n_keep_masked.nbytes + self.seeds.nbytes


def make_state(batch: int, length: int, codes: int, masked_share: float, setting: Setting) -> State:
    """Random tokens, a random share of them masked."""
    draw, device = setting.generator(), setting.device
    order = torch.rand(batch, length, generator=draw, device=device).argsort(1)  # [B, N], each a permutation
    masked_count = round(masked_share * length)
    return State(
        torch.randint(codes, (batch, length), generator=draw, device=device),
        order < masked_count,
        torch.full((batch,), masked_count // 2, device=device),
        torch.arange(batch, device=device) - 1,
    )


def check_state(tokens: Tensor, masked: Tensor, before: State, codes: int) -> None:
    """Known tokens stay, drawn ones are codes, and the promised number stays masked."""
    if not torch.equal(tokens[~before.masked], before.tokens[~before.masked]):
        raise WrongResultError("a known token was changed")
    if int(tokens.min()) < 0 or int(tokens.max()) >= codes:
        raise WrongResultError("a token is not a code")
    if bool((masked & ~before.masked).any()) or not torch.equal(masked.sum(1), before.n_keep_masked):
        raise WrongResultError("the wrong number of tokens stays masked")


def check_first_image(
    result: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], before: State, codes: int, dtype: torch.dtype
) -> None:
    """`check_state`, and the first image, whose result depends on no other's, is the reference's."""
    check_state(*result, before, codes)
    for name, got, wanted in zip(("tokens", "mask"), result, expected, strict=True):
        same = float((got[0] == wanted[0]).float().mean())
        if same < SAME[dtype]:
            raise WrongResultError(f"only {same:.1%} of the first image's {name} are the reference's")
