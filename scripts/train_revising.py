"""Train heads that say which decoded tokens are right, measure them, and put the best beside a copy of the model.

    python scripts/train_revising.py TOKENS OUTPUT [--batches 320]

TOKENS is what `train.py tokens --holes 1` wrote for the embedded tokenizer; OUTPUT becomes a model folder.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from maskgit.config import TransformerConfig
from maskgit.console import markdown_table
from maskgit.data.tokens import NO_HOLE, TokenShard
from maskgit.decoding.masking import mvtm_masks
from maskgit.network.revising import RevisingHead, States, load_head, save_head
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.training.tokens import open_tokens

HEADS = {"last block": (7,), "block before it": (6,), "blocks 3, 5, 7": (2, 4, 6), "all blocks": tuple(range(8))}
"""Heads and the blocks that they read, from 0."""
BEST = "blocks 3, 5, 7"
NEAR = 12 / 255
"""Codes are near each other if their colors by themselves differ by less, of the range."""


class Drawn(NamedTuple):
    """M tokens that a model has drawn."""

    states: Tensor
    """float16 [M, depth, dim]: of each block, in the pass after that."""
    targets: Tensor
    """float [M, 2]: right, near."""
    confidence: Tensor
    """float [M]: log-probability when drawn."""
    image: Tensor
    """int64 [M]: of which picture."""


def code_distances(model: MaskGIT) -> Tensor:
    """Root mean square difference, of the range, of the patches in pictures of nothing but one code; [V, V]."""
    grid, codes = model.tokenizer.config.grid, model.tokenizer.config.codebook_size
    side = model.tokenizer.config.image_size // grid
    tokens = torch.arange(codes)[:, None].expand(-1, grid**2)
    middle = slice(grid // 2 * side, (grid // 2 + 1) * side)
    patches = torch.cat([model._to_pixels(part)[:, :, middle, middle] for part in tokens.split(32)]).flatten(1)
    return torch.cdist(patches, patches) / patches.shape[1] ** 0.5 / 2


@torch.no_grad()
def draw(model: MaskGIT, shard: TokenShard, images: np.ndarray, near: Tensor, rng: torch.Generator) -> Drawn:
    """Mask pictures as in training, half of them in a hole; fill some of it as decoding does, the surest or any."""
    count, config = len(images), model.transformer.config
    assert isinstance(config, TransformerConfig)
    whole = np.arange(count) % 2 == 0
    tokens, visible, candidates, labels = shard.samples(images, 0, np.where(whole, NO_HOLE, 0))
    masked = mvtm_masks(count, config.num_tokens, "cosine", candidates, generator=rng)
    told = torch.rand(count, generator=rng) < torch.where(torch.from_numpy(whole), 0.8, 0.2)
    labels = labels.where(told, config.num_classes)  # mostly as generating and inpainting have them
    held, choice = visible.masked_fill(masked, config.mask_token_id), torch.zeros_like(tokens)
    confidence = torch.full(masked.shape, -torch.inf)
    network = model._fastest(model.transformer)
    assert isinstance(network, Transformer)
    log_p = network(held, labels, rows=masked.flatten().nonzero()[:, 0])[masked]
    log_p = (log_p / model.decoding.softmax_temperature).log_softmax(-1)
    choice[masked] = (log_p - torch.empty_like(log_p).exponential_(generator=rng).log()).argmax(-1)
    confidence[masked] = log_p.gather(-1, choice[masked][:, None])[:, 0]
    share = torch.rand(count, 1, generator=rng) ** 2  # of what is masked, to draw
    lots = -torch.empty(masked.shape).exponential_(generator=rng).log()  # Gumbel noise
    evenly, noise = torch.rand(count, 1, generator=rng) < 0.25, torch.rand(count, 1, generator=rng)
    first = lots.where(evenly, confidence + noise * lots).masked_fill(~masked, -torch.inf)
    rank = first.argsort(1, descending=True).argsort(1)
    drawn = rank < (share * masked.sum(1, keepdim=True)).ceil()
    held = choice.where(drawn, held)
    with States(network) as states:
        network(held, labels)
    after = torch.stack([state[:, : config.num_tokens][drawn] for state in states], 1)
    targets = torch.stack([held[drawn] == tokens[drawn], near[held[drawn], tokens[drawn]]], -1).float()
    numbers = torch.from_numpy(images)[:, None].expand_as(drawn)
    return Drawn(after.half(), targets, confidence[drawn], numbers[drawn])


def collect(model: MaskGIT, shard: TokenShard, near: Tensor, batches: int, seed: int) -> Drawn:
    """Of so many batches of 16 pictures, no picture twice."""
    rng, start, found = torch.Generator().manual_seed(seed), time.time(), []
    for number, images in enumerate(torch.randperm(len(shard), generator=rng)[: 16 * batches].split(16), 1):
        found.append(draw(model, shard, images.numpy(), near, rng))
        if number % 20 == 0:
            print(f"{number} of {batches} batches, {time.time() - start:.0f} s", flush=True)
    return Drawn(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def auc(score: Tensor, right: Tensor) -> float:
    """Chance that what is right has a higher score than what isn't."""
    ranks = torch.empty(len(score), dtype=torch.float64)
    ranks[score.argsort()] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    good = int(right.sum())
    bad = len(score) - good
    return float((ranks[right].sum() - good * (good + 1) / 2) / (good * bad)) if good and bad else float("nan")


def describe(odds: Tensor, truth: Tensor, image: Tensor) -> list[str]:
    """AUC over all and within pictures, cross-entropy, calibration error."""
    right = truth.bool()
    within = [auc(odds[image == one], right[image == one]) for one in image.unique()]
    chance, bins = odds.sigmoid(), (odds.sigmoid() * 10).long().clamp(max=9)
    gaps = sum(abs(float((chance - truth)[bins == b].sum())) for b in range(10))
    entropy = float(F.binary_cross_entropy_with_logits(odds, truth))
    return [f"{figure:.3f}" for figure in (auc(odds, right), float(np.nanmean(within)), entropy, gaps / len(odds))]


@torch.no_grad()
def measure(some: Drawn, heads: dict[str, RevisingHead]) -> str:
    """A table of how well heads and the model's own confidence tell right tokens from others."""
    scores = {name: head(some.states.float().unbind(1)) for name, head in heads.items()}
    scores["confidence when drawn"] = torch.logit(some.confidence.exp().clamp(1e-6, 1 - 1e-6))[:, None].expand(-1, 2)
    scores["always the share"] = torch.logit(some.targets.mean(0)).expand(len(some.image), 2)
    rows = [
        [target, name, *describe(odds[:, at], some.targets[:, at], some.image)]
        for at, target in enumerate(("right", "near"))
        for name, odds in scores.items()
    ]
    head = ["target", "score", "AUC", "AUC within pictures", "cross-entropy", "calibration error"]
    return "\n".join([f"{len(some.image):,} drawn tokens", *markdown_table(head, rows)])


def fit(head: RevisingHead, some: Drawn, epochs: int, batch: int = 1024) -> None:
    """Cross-entropy of both targets."""
    rounds = len(some.image) // batch
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs * rounds)
    for _ in range(epochs):
        for chosen in torch.randperm(len(some.image))[: rounds * batch].split(batch):
            odds = head(some.states[chosen].float().unbind(1))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(odds, some.targets[chosen]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def with_confidence(head: RevisingHead, some: Drawn, others: Drawn) -> str:
    """How well a head and the confidence tell right tokens together, as a logistic regression of both fits `some`."""

    def inputs(those: Drawn) -> np.ndarray:
        sure = torch.logit(those.confidence.exp().clamp(1e-6, 1 - 1e-6))
        return torch.stack([head(those.states.float().unbind(1))[:, 0], sure], 1).numpy()

    regression = LogisticRegression().fit(inputs(some), some.targets[:, 0].numpy())
    odds = torch.from_numpy(regression.decision_function(inputs(others))).float()
    return f"weights {regression.coef_}: {describe(odds, others.targets[:, 0], others.image)}"


def main(
    tokens: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    batches: int = 320,
    epochs: int = 6,
    fitted: bool = False,
) -> None:
    """Train all of HEADS on the same tokens, print how good they are, and save BEST.

    With `fitted`, take the head that is in OUTPUT already, and print how good it is together with the confidence.
    """
    model = MaskGIT.from_pretrained(device="cpu", precision="float32")
    train, held_out, _ = open_tokens(tokens, model.tokenizer, 0, 1.0)
    near = code_distances(model) < NEAR
    print(f"codes near a code: {near.float().sum(1).mean():.1f}", flush=True)
    some, others = collect(model, train, near, batches, 0), collect(model, held_out, near, 32, 1)
    if fitted:
        head = load_head(output, model.transformer.config.dim)
        assert head is not None
        print(measure(others, {BEST: head}), with_confidence(head, some, others), sep="\n")
        return
    torch.manual_seed(0)
    heads = {name: RevisingHead(model.transformer.config.dim, taps) for name, taps in HEADS.items()}
    for name, head in heads.items():
        fit(head, some, epochs)
        print(f"fitted: {name}", flush=True)
    print(f"{len(some.image):,} tokens to train on")
    print(measure(others, heads))
    model.save_pretrained(output)
    save_head(heads[BEST], output)


if __name__ == "__main__":
    tyro.cli(main)
