"""`maskgit-256`, tokens only: the loop of public MaskGIT code, and ours, with and without guidance.

The naive loop is float32 and eager, its transformer that of `naive_transformer`, and its step the chain of
`naive_decode`; with guidance it makes two passes, one after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.checks import check_logits
from benchmarks.harness import Case, Comparison, Maker, Target, WrongResultError, speedup
from benchmarks.models import decode_tokens, make_models, transformer_of
from benchmarks.naive_decode import eager_decode_step
from benchmarks.naive_transformer import NaiveTransformer, check_same_logits
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.decoding import DecodeConfig
from maskgit.decoding.schedules import mask_counts

MODEL = "maskgit-256"
STEPS, BATCH, GUIDANCE_SCALE = 8, 8, 3.0
PROMISED = 3.5
ROUNDS = {0.0: 2, GUIDANCE_SCALE: 1}  # by guidance scale: on a CPU these rounds take 45 and 90 seconds


@torch.no_grad()
def naive_decode(
    transformer: NaiveTransformer, labels: Tensor, steps: int = STEPS, guidance_scale: float = 0.0
) -> Tensor:
    """Tokens int64 [B, N] from nothing, for labels int64 [B]; guidance needs a second pass at each step."""
    config = transformer.config
    masked = torch.ones(len(labels), config.num_tokens, dtype=torch.bool, device=labels.device)
    tokens = torch.zeros_like(masked, dtype=torch.int64)
    no_class = torch.full_like(labels, config.num_classes)
    left = mask_counts(masked.sum(1).cpu(), steps, "cosine").to(labels.device)  # [T, B]
    for step in range(steps):
        visible = tokens.masked_fill(masked, config.mask_token_id)
        logits = transformer(visible, labels)
        unguided = transformer(visible, no_class) if guidance_scale else None
        tokens, masked = eager_decode_step(
            logits,
            tokens,
            masked,
            left[step],
            choice_temperature=4.5 * (1 - (step + 1) / steps),
            guidance_logits=unguided,
            guidance_scale=guidance_scale,
        )
    return tokens


def comparisons(setting: Setting) -> Iterator[Maker]:
    """Without guidance, and with."""
    for guidance_scale in (0.0, GUIDANCE_SCALE):
        yield functools.partial(comparison, guidance_scale, setting)


def comparison(guidance_scale: float, setting: Setting) -> Comparison:
    """The naive loop and ours, in bfloat16: what a user gets where the hardware has it."""
    model = make_models(MODEL, setting.device, setting.quick)["bf16"]
    naive = NaiveTransformer(transformer_of(model)).eval()
    config = DecodeConfig(steps=STEPS, guidance_scale=guidance_scale)
    labels = torch.arange(BATCH, device=setting.device) % naive.config.num_classes
    cases = [
        Case(
            "naive loop",
            functools.partial(naive_decode, naive, labels, guidance_scale=guidance_scale),
            functools.partial(check_naive, naive, model, guidance_scale),
        ),
        Case(
            "ours, bf16",
            functools.partial(decode_tokens, model, config, BATCH, labels),
            functools.partial(check_ours, model, naive, guidance_scale),
        ),
    ]
    how = f"guidance {guidance_scale:g}" if guidance_scale else "no guidance"
    measure = functools.partial(speedup, ours="ours, bf16", over="naive loop")
    name = f"{MODEL}, tokens only, batch {BATCH}, {how}: times as fast as the naive float32 loop"
    return Comparison(
        "tokens",
        f"{MODEL}, {STEPS} steps, batch {BATCH}, {how}",
        cases,
        "naive loop",
        item="image",
        items=BATCH,
        rounds=None if setting.on_gpu else ROUNDS[guidance_scale],
        apart=True,
        targets=[Target(name, PROMISED, measure)] if setting.promised else [],
    )


def check_naive(naive: NaiveTransformer, ours: MaskGIT, guidance_scale: float) -> None:
    """The same logits as ours in float32, and a loop that ends with codes."""
    check_same_logits(naive, transformer_of(ours))
    labels = torch.zeros(1, dtype=torch.int64, device=ours.device)
    _check_codes(naive_decode(naive, labels, 1, guidance_scale), naive.config.codebook_size)


def check_ours(model: MaskGIT, naive: NaiveTransformer, guidance_scale: float) -> None:
    """The naive logits but for rounding; and a loop that ends with codes and repeats itself."""
    check_logits(model, naive)
    config = DecodeConfig(steps=1, guidance_scale=guidance_scale)
    labels = torch.zeros(1, dtype=torch.int64, device=model.device)
    first, second = (decode_tokens(model, config, 1, labels) for _ in range(2))
    _check_codes(first, naive.config.codebook_size)
    if not torch.equal(first, second):
        raise WrongResultError("the same seeds give two results")


def _check_codes(tokens: Tensor, codes: int) -> None:
    if int(tokens.min()) < 0 or int(tokens.max()) >= codes:
        raise WrongResultError("a token is not a code")
    if int(tokens.float().std() > 0) == 0:
        raise WrongResultError("all tokens are the same")
