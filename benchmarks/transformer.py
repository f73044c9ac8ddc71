"""The transformer: a pass against plain eager code, for every preset and batch size, and against the matrix products.

`forward`: one decoding step's work, logits and sampling, ours against the naive transformer and the eager chain, both
in float32 and both under bfloat16 autocast. Ours must never be the slower one.

`ceiling`: our forward pass in turn with bare matrix products. Its speed-up is of FLOP per second: those of the pass,
its matrix products alone counted, against those of a product.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.checks import check_logits
from benchmarks.hardware import product_shape, products
from benchmarks.harness import Case, Comparison
from benchmarks.models import DTYPES, make_models, predictor, size, transformer_of
from benchmarks.naive_decode import eager_decode_step
from benchmarks.naive_transformer import NaiveTransformer, forward_flops
from benchmarks.setting import Setting
from maskgit.config import PRESETS
from maskgit.network.copies import can_pack
from maskgit.pipeline import Precision
from maskgit_kernels.decode_step import decode_step

CEILING_BATCH = 8
CHOICE_TEMPERATURE = 4.5


def forward_comparisons(setting: Setting) -> Iterator[Comparison]:
    """One decoding step of every preset and batch size, at both precisions, all tokens masked."""
    for name, precision in itertools.product(PRESETS, DTYPES):
        batches = (1,) if name == "maskgit-512" else (1, 8)  # eight take 20 s a pass on two cores
        for batch in (2,) if setting.quick else (1, 8, 64) if setting.on_gpu else batches:
            yield Comparison(
                "forward",
                f"{name}-b{batch}-{precision}",
                {"plain_eager": "", "ours": ""},
                functools.partial(forward_cases, name, precision, batch, setting),
                shape={"model": name, "batch": batch},
                item="image",
                items=batch,
                flops=forward_flops(size(name, setting.quick).transformer, batch),
                dtype=DTYPES[precision],
            )


def forward_cases(name: str, precision: Precision, batch: int, setting: Setting) -> dict[str, Case]:
    """Plain eager code, and ours."""
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

    return {
        "plain_eager": Case(plain, functools.partial(check_logits, transformer_of(model), naive)),
        "ours": Case(ours, functools.partial(check_logits, model, naive)),
    }


def ceiling_comparisons(setting: Setting) -> Iterator[Comparison]:
    """The two large models, at both precisions."""
    rows, inner, columns = product_shape(setting.device, setting.quick)
    packed = {"onednn_packed": ""} if setting.device.type == "cpu" and can_pack() else {}
    for name, precision in itertools.product(("lab", "maskgit-256"), DTYPES):
        yield Comparison(
            "ceiling",
            f"{name}-b{CEILING_BATCH}-{precision}",
            {"torch_mm": "", **packed, "ours": ""},
            functools.partial(ceiling_cases, name, precision, setting),
            shape={"model": name, "batch": CEILING_BATCH, "product": f"{rows}x{inner} times {inner}x{columns}"},
            flops=forward_flops(size(name, setting.quick).transformer, CEILING_BATCH),
            dtype=DTYPES[precision],
        )


def ceiling_cases(name: str, precision: Precision, setting: Setting) -> dict[str, Case]:
    """The bare products of the dtype, and our forward pass."""
    model = make_models(name, setting.device, setting.quick)[precision]
    naive = NaiveTransformer(transformer_of(model)).eval()
    config = naive.config
    rows, inner, columns = shape = product_shape(setting.device, setting.quick)
    bare = products(shape, DTYPES[precision], setting.device)
    tokens = torch.full((CEILING_BATCH, config.num_tokens), config.mask_token_id, device=setting.device)
    # `products` has checked them.
    cases = [Case(product, lambda: None, flops=2 * rows * inner * columns) for product in bare.values()]
    cases.append(Case(functools.partial(predictor(model), tokens), functools.partial(check_logits, model, naive)))
    return dict(
        zip(("torch_mm", "onednn_packed", "ours") if len(bare) == 2 else ("torch_mm", "ours"), cases, strict=True)
    )
