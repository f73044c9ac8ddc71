"""`maskgit-256`, tokens only: the loop of public MaskGIT code, and ours, with and without guidance.

The naive loop is float32 and eager, its transformer that of `naive_transformer`, and its step the chain of
`naive_decode`; with guidance it makes two passes, one after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.checks import check_decoding, check_logits, check_tokens
from benchmarks.harness import Case, Comparison
from benchmarks.models import decode_tokens, make_models, size, transformer_of
from benchmarks.naive_decode import eager_decode_step
from benchmarks.naive_transformer import NaiveTransformer, forward_flops
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.decoding import DecodeConfig
from maskgit.decoding.schedules import mask_counts

MODEL = "maskgit-256"
STEPS, BATCH, GUIDANCE_SCALE = 8, 8, 3.0
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


def comparisons(setting: Setting) -> Iterator[Comparison]:
    """Without guidance, and with; ours in bfloat16, which a user gets where the hardware has it."""
    for guidance_scale in (0.0, GUIDANCE_SCALE):
        passes = STEPS * (2 if guidance_scale else 1)
        yield Comparison(
            "tokens",
            f"{MODEL}-b{BATCH}{'-guided' if guidance_scale else ''}",
            {"naive_loop": "", "ours_bf16": ""},
            functools.partial(cases, guidance_scale, setting),
            shape={"model": MODEL, "batch": BATCH, "steps": STEPS, "guidance_scale": guidance_scale},
            item="image",
            items=BATCH,
            flops=passes * forward_flops(size(MODEL, setting.quick).transformer, BATCH),
            rounds=None if setting.on_gpu else ROUNDS[guidance_scale],
            apart=True,
        )


def cases(guidance_scale: float, setting: Setting) -> dict[str, Case]:
    """The naive loop and ours."""
    model = make_models(MODEL, setting.device, setting.quick)["bf16"]
    naive = NaiveTransformer(transformer_of(model)).eval()
    config = DecodeConfig(steps=STEPS, guidance_scale=guidance_scale)
    labels = torch.arange(BATCH, device=setting.device) % naive.config.num_classes
    return {
        "naive_loop": Case(
            functools.partial(naive_decode, naive, labels, guidance_scale=guidance_scale),
            functools.partial(check_naive, naive, model, guidance_scale),
        ),
        "ours_bf16": Case(
            functools.partial(decode_tokens, model, config, BATCH, labels),
            functools.partial(check_ours, model, naive, guidance_scale),
            dtype=torch.bfloat16,
        ),
    }


def check_naive(naive: NaiveTransformer, ours: MaskGIT, guidance_scale: float) -> None:
    """The same logits as ours in float32, and a loop that ends with codes."""
    check_logits(transformer_of(ours), naive)
    labels = torch.zeros(1, dtype=torch.int64, device=ours.device)
    decode = functools.partial(naive_decode, naive, labels, 1, guidance_scale)
    check_tokens(decode, naive.config.codebook_size, repeats=False)


def check_ours(model: MaskGIT, naive: NaiveTransformer, guidance_scale: float) -> None:
    """The naive logits but for rounding; and a loop that ends with codes and repeats itself."""
    check_logits(model, naive)
    check_decoding(model, steps=1, guidance_scale=guidance_scale)
