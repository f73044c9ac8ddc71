"""The transformer: a pass against plain eager code, for every preset and batch size, and against the matrix products.

`forward`: one decoding step's work, logits and sampling, ours against the naive transformer and the eager chain, both
in float32 and both under bfloat16 autocast. Ours must never be the slower one.

`ceiling`: our forward pass in turn with bare matrix products. The share is of FLOP per second: those of the pass,
its matrix products alone counted, against those of the fastest product.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.checks import check_logits
from benchmarks.hardware import product_shape, products, short
from benchmarks.harness import Case, Comparison, Maker, Target, Timing, speedup
from benchmarks.models import PRECISIONS, make_models, predictor, transformer_of
from benchmarks.naive_decode import eager_decode_step
from benchmarks.naive_transformer import NaiveTransformer, check_same_logits, forward_flops
from benchmarks.setting import Setting
from maskgit.config import PRESETS
from maskgit.pipeline import Precision
from maskgit_kernels import decode_step

MODELS = tuple(PRESETS)
NEVER_SLOWER = 0.97  # 1 but for what the clock can't tell apart
PROMISED_SHARE = 0.6
CEILING_BATCH = 8
CHOICE_TEMPERATURE = 4.5


def forward_comparisons(setting: Setting) -> Iterator[Maker]:
    """Every preset and batch size, at both precisions."""
    for name, precision in itertools.product(MODELS, PRECISIONS):
        for batch in _batches(name, setting):
            yield functools.partial(forward_comparison, name, precision, batch, setting)


def _batches(name: str, setting: Setting) -> tuple[int, ...]:
    if setting.quick:
        return (2,)
    if setting.on_gpu:
        return (1, 8, 64)
    return (1,) if name == "maskgit-512" else (1, 8)  # eight take 20 s a pass on two cores


def forward_comparison(name: str, precision: Precision, batch: int, setting: Setting) -> Comparison:
    """One decoding step of `batch` images, all tokens masked."""
    model = make_models(name, setting.device, setting.quick)[precision]
    naive = NaiveTransformer(transformer_of(model)).eval()
    config = naive.config
    masked = torch.ones(batch, config.num_tokens, dtype=torch.bool, device=setting.device)
    tokens = torch.full_like(masked, config.mask_token_id, dtype=torch.int64)
    keep = torch.full((batch,), config.num_tokens // 2, device=setting.device)
    seeds = torch.arange(batch, device=setting.device)
    predict = predictor(model)

    @torch.no_grad()
    def plain() -> tuple[Tensor, Tensor]:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = naive(tokens)
        return eager_decode_step(logits, tokens, masked, keep, choice_temperature=CHOICE_TEMPERATURE)

    def ours() -> tuple[Tensor, Tensor]:
        return decode_step(
            predict(tokens),
            tokens,
            masked,
            keep,
            seeds=seeds,
            step=0,
            num_codes=config.codebook_size,
            choice_temperature=CHOICE_TEMPERATURE,
        )

    cases = [
        Case("plain eager", plain, functools.partial(check_same_logits, naive, transformer_of(model))),
        Case("ours", ours, functools.partial(check_logits, model, naive)),
    ]
    target = f"{name}, {precision}, batch {batch}: never slower than plain eager"
    return Comparison(
        "forward",
        f"a decoding step, {name}, {precision}, batch {batch}",
        cases,
        "plain eager",
        item="image",
        items=batch,
        flops=forward_flops(config, batch),
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        targets=[Target(target, NEVER_SLOWER, functools.partial(speedup, ours="ours", over="plain eager"))],
    )


def ceiling_comparisons(setting: Setting) -> Iterator[Maker]:
    """The two large models, at both precisions."""
    for name, precision in itertools.product(("lab", "maskgit-256"), PRECISIONS):
        yield functools.partial(ceiling_comparison, name, precision, setting)


def ceiling_comparison(name: str, precision: Precision, setting: Setting) -> Comparison:
    """Our forward pass and the bare products of its dtype."""
    model = make_models(name, setting.device, setting.quick)[precision]
    naive = NaiveTransformer(transformer_of(model)).eval()
    config = naive.config
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, inner, columns = shape = product_shape(setting.device, setting.quick)
    bare = products(shape, dtype, setting.device)
    product_flops = 2 * rows * inner * columns
    tokens = torch.full((CEILING_BATCH, config.num_tokens), config.mask_token_id, device=setting.device)
    cases = [Case(way, product, _nothing_to_verify, flops=product_flops) for way, product in bare.items()]
    cases.append(
        Case("our forward pass", functools.partial(predictor(model), tokens), lambda: check_logits(model, naive))
    )
    targets = []
    if setting.promised:
        target = f"{name}, {short(dtype)}, batch {CEILING_BATCH}: share of the matrix products' speed"
        targets.append(Target(target, PROMISED_SHARE, functools.partial(share, ways=list(bare))))
    return Comparison(
        "ceiling",
        f"{name}, {short(dtype)}, batch {CEILING_BATCH}, against {rows}x{inner} times {inner}x{columns}",
        cases,
        next(iter(bare)),
        flops=forward_flops(config, CEILING_BATCH),
        dtype=dtype,
        targets=targets,
    )


def share(timings: Mapping[str, Timing], ways: list[str]) -> float:
    """Our FLOP per second against those of the fastest product."""
    return min(speedup(timings, "our forward pass", way) for way in ways)


def _nothing_to_verify() -> None:
    """`products` has checked them."""
