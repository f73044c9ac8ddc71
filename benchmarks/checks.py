"""Checks that several suites make of a model before it is timed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import WrongResultError
from benchmarks.models import decode_tokens, pictures_with_holes, predictor
from benchmarks.naive_transformer import NaiveTransformer
from maskgit import MaskGIT
from maskgit.decoding import DecodeConfig
from maskgit.network.transformer import Transformer

# Root mean square of what the precision changes in the logits, against that of the logits themselves.
FLOAT32_ERROR, BF16_ERROR = 1e-4, 0.05


@torch.no_grad()
def check_logits(ours: MaskGIT | Transformer, naive: NaiveTransformer) -> None:
    """A model's logits at its precision, or its transformer's in float32, are the naive one's but for rounding."""
    config, device = naive.config, naive.position_embedding.device
    predict = predictor(ours) if isinstance(ours, MaskGIT) else ours
    tokens = torch.randint(config.codebook_size + 1, (1, config.num_tokens), device=device)
    expected, got = (network(tokens)[..., : config.codebook_size].double() for network in (naive, predict))
    error = float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    if not error < (BF16_ERROR if isinstance(ours, MaskGIT) and ours.autocast else FLOAT32_ERROR):
        raise WrongResultError(f"the logits differ by {error:.2g} of their size")


def check_tokens(decode: Callable[[], Tensor], codes: int, *, repeats: bool = True) -> None:
    """Codes, not all the same, and unless the loop draws noise of its own the same ones again."""
    tokens = decode()
    if int(tokens.min()) < 0 or int(tokens.max()) >= codes:
        raise WrongResultError("some tokens are no codes")
    if bool((tokens == tokens[0, 0]).all()):
        raise WrongResultError("all tokens are the same")
    if repeats and not torch.equal(tokens, decode()):
        raise WrongResultError("the same seeds give other tokens")


def check_decoding(model: MaskGIT, steps: int = 2, guidance_scale: float = 0.0) -> None:
    """What the model's loop makes from nothing, of the first class if there are classes."""
    config, transformer = DecodeConfig(steps=steps, guidance_scale=guidance_scale), model.transformer.config
    labels = torch.zeros(2, dtype=torch.int64, device=model.device) if transformer.num_classes else None
    check_tokens(functools.partial(decode_tokens, model, config, 2, labels), transformer.codebook_size)


def check_inpainting(model: MaskGIT) -> None:
    """Known pixels stay, hidden ones are filled, and the same seed gives the same picture."""
    tokenizer = model.tokenizer.config
    images, holes = pictures_with_holes(1, tokenizer.image_size)
    results = [model.inpaint(images, holes, steps=1, seed=3) for _ in range(2)]
    for original, hole, *twice in zip(images, holes, *results, strict=True):
        first, second = (np.array(result.image) for result in twice)
        if not np.array_equal(first, second):
            raise WrongResultError("the same seed gives two pictures")
        if np.array_equal(first[hole], np.array(original)[hole]):
            raise WrongResultError("nothing was filled")
        # Blending reaches a patch out of the hole, which starts at a quarter of the height.
        untouched = max(1, tokenizer.image_size // 4 - tokenizer.patch)
        if not np.array_equal(first[:untouched], np.array(original)[:untouched]):
            raise WrongResultError("known pixels were changed")
