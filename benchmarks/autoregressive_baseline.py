"""Parallel decoding against autoregressive decoding: the same transformer, a whole picture of tokens.

One position at a time, in raster order, with keys and values kept, is how the VQGANs before MaskGIT made pictures; the
paper (section 4.2) and its reproduction compare their speed by the number of passes and by the clock.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.autoregressive import decode_autoregressively
from benchmarks.harness import Case, Comparison, Maker, WrongResultError
from benchmarks.models import decode_tokens, make_models
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.decoding import DecodeConfig
from maskgit.network.transformer import Transformer

STEPS = (8, 12)
BATCHES = {"embedded": 8, "maskgit-256": 1}
ROUNDS = 5
BASELINE = "autoregressive"


def comparisons(setting: Setting) -> Iterator[Maker]:
    """A small model and a large one."""
    for name, batch in BATCHES.items():
        yield functools.partial(comparison, name, batch, setting)


def comparison(name: str, batch: int, setting: Setting) -> Comparison:
    """Both at the precision that a user gets on hardware with bf16."""
    model = make_models(name, setting.device, setting.quick)["bf16"]
    cases = [Case(BASELINE, functools.partial(raster, model, batch), functools.partial(check_raster, model))]
    for steps in STEPS:
        run = functools.partial(decode_tokens, model, DecodeConfig(steps=steps), batch, None)
        cases.append(Case(f"{steps} steps in parallel", run, functools.partial(check_parallel, model)))
    return Comparison(
        "autoregressive",
        f"{name}, {model.transformer.config.num_tokens} tokens, batch {batch}",
        cases,
        BASELINE,
        item="image",
        items=batch,
        rounds=None if setting.on_gpu else ROUNDS,
    )


@torch.inference_mode()
def raster(model: MaskGIT, batch: int, last: int | None = None) -> Tensor:
    """Tokens int64 [B, N] made one by one: all of them, or the last few after tokens that are all 0."""
    network = model._fastest(model.transformer)
    assert isinstance(network, Transformer)
    tokens = torch.zeros(batch, network.config.num_tokens, dtype=torch.int64, device=model.device)
    masked = torch.ones_like(tokens, dtype=torch.bool)
    if last is not None:
        masked[:, :-last] = False
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.autocast, cache_enabled=False):
        return decode_autoregressively(network, tokens, masked, torch.arange(batch, device=model.device))


def check_raster(model: MaskGIT) -> None:
    """Codes, and the same ones again."""
    _check(raster(model, 2, last=4), raster(model, 2, last=4), model)


def check_parallel(model: MaskGIT) -> None:
    """Codes, and the same ones again."""
    config = DecodeConfig(steps=2)
    _check(decode_tokens(model, config, 2, None), decode_tokens(model, config, 2, None), model)


def _check(tokens: Tensor, again: Tensor, model: MaskGIT) -> None:
    if not bool(((tokens >= 0) & (tokens < model.transformer.config.codebook_size)).all()):
        raise WrongResultError("some tokens are no codes")
    if not torch.equal(tokens, again):
        raise WrongResultError("the same seeds give other tokens")
