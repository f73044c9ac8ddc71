"""What a model's card says of its two networks, measured: the tokenizer, the masked-token loss."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.console import progress_bar
from maskgit.data import ImageDataset
from maskgit.data.pixels import plain_views, to_signed
from maskgit.decoding.masking import random_masks
from maskgit.decoding.schedules import ceil_count, gamma
from maskgit.metrics import held_out
from maskgit.metrics.card.settings import Options
from maskgit.metrics.features import pooled_features
from maskgit.metrics.pairs import psnr, psnr_of_mean_error, ssim
from maskgit.metrics.sets import codebook_usage
from maskgit.pipeline import MaskGIT

SCHEDULE = "cosine"
"""Mask schedule of the masked-token loss."""
SMOOTHING = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Pseudo-counts per code that the fixed distribution may choose from."""


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long what is within takes."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 2)


def extract(network: nn.Module, pixels: Tensor, options: Options, what: str) -> Tensor:
    """Features float64 [n, D] of images uint8 [n, 3, S, S], in which sets of them are compared; under a bar."""
    batches = []
    with progress_bar(len(pixels), f"features of {what}") as bar:
        for batch in pooled_features(network, to_signed(pixels), options.feature_size):
            batches.append(batch)
            bar.update(len(batch))
    return torch.cat(batches)


# --- tokenizer --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def tokenize_views(model: MaskGIT, images: ImageDataset, flip: bool = True) -> Tensor:
    """Tokens int64 [n, N] of all images, on the CPU; with `flip` [2 n, N], the mirrored ones after the plain ones."""
    views: list[list[Tensor]] = [[], []]
    with progress_bar(len(images), "encoding the data set") as bar:
        for numbers in torch.arange(len(images)).split(64):
            batch = plain_views(images, numbers)
            for i in range(1 + flip):
                pixels = batch.flip(3) if i else batch
                views[i].append(model.tokenizer.encode(to_signed(pixels).to(model.device)).cpu())
            bar.update(len(batch))
    return torch.cat(views[0] + views[1])


def measure_tokenizer(model: MaskGIT, pixels: Tensor) -> tuple[Tensor, dict[str, float], Tensor]:
    """How well images survive encoding and decoding.

    Args:
        pixels: uint8 [n, 3, S, S].

    Returns:
        Their tokens int64 [n, N]; the figures; the decoded images, uint8 [n, 3, S, S].
    """
    tokens, decoded = held_out.reconstruct(model, pixels)
    originals, copies = to_signed(pixels), to_signed(decoded)
    used, perplexity = codebook_usage(tokens, model.tokenizer.config.codebook_size)
    figures = {
        "psnr": float(psnr(originals, copies).mean()),
        "psnr_of_mean_error": psnr_of_mean_error(float((originals - copies).square().mean())),
        "ssim": float(ssim(originals, copies).mean()),
        "codes_used": used,
        "perplexity": perplexity,
    }
    return tokens, figures, decoded


# --- masked-token loss ------------------------------------------------------------------------------------------------


def stratified_masks(count: int, num_tokens: int, rounds: int, seed: int) -> Tensor:
    """Masks of ceil(gamma(r) N) random tokens, each image and round with its own r.

    The `rounds` values of an image's r are uniform in the `rounds` equal parts of [0, 1), one in each: a mean over
    them has the same expectation as with r ~ U[0, 1), and less variance.

    Returns:
        bool [rounds, count, num_tokens], True = masked; at least one in each row.
    """
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.rand(rounds, count, generator=generator, dtype=torch.float64)
    r = (torch.arange(rounds)[:, None] + jitter) / rounds
    counts = ceil_count(gamma(r, SCHEDULE), num_tokens).clamp(min=1)
    return random_masks(counts.flatten(), num_tokens, generator=generator).view(rounds, count, num_tokens)


def fixed_losses(training: Tensor, tokens: Tensor, codebook_size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Cross-entropy of one fixed distribution over the codes at each position, estimated on training tokens.

    Args:
        training: int64 [m, N].
        tokens: int64 [n, N], to be predicted.
        codebook_size: V.

    Returns:
        Losses [n, N] by the kind of smoothing: (count + a V q) / (m + a V) for every a in SMOOTHING, and q the uniform
        distribution (additive smoothing) or that of the codes over all positions. The caller takes the best.
        And whether the most frequent code at the position is right, bool [n, N].
    """
    positions = training.shape[1]
    counts = torch.zeros(positions, codebook_size, dtype=torch.float64)
    counts.T.index_put_((training, torch.arange(positions)), torch.ones((), dtype=torch.float64), accumulate=True)
    overall = counts.sum(0) + 1
    priors = {"uniform": torch.full_like(overall, 1 / codebook_size), "overall": overall / overall.sum()}
    seen = counts.gather(1, tokens.T).T  # [n, N]
    losses = {}
    for prior, q in priors.items():
        for a in SMOOTHING:
            total = a * codebook_size
            losses[f"{a} {prior}"] = -((seen + total * q[tokens]) / (len(training) + total)).log()
    return losses, counts.argmax(1) == tokens


def average(values: Tensor, masks: Tensor) -> tuple[float, float]:
    """Values [R, n, N] where masked, bool [R, n, N]: the mean over images and rounds of the mean over masked tokens
    (every r counts the same), and the mean over all masked tokens (large masks count more)."""
    kept = values.double() * masks
    return float((kept.sum(2) / masks.sum(2)).mean()), float(kept.sum() / masks.sum())


@torch.inference_mode()
def model_losses(
    model: MaskGIT, tokens: Tensor, labels: list[int] | None, masks: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The transformer's cross-entropy, float32 [R, n, N], and whether its best guess is right, bool [R, n, N].

    Args:
        tokens: int64 [n, N], on the CPU.
        labels: classes, if the model is to know them.
        masks: bool [R, n, N], True = masked.
    """
    losses, hits = torch.empty(masks.shape), torch.empty(masks.shape, dtype=torch.bool)
    classes = None if labels is None else torch.tensor(labels)
    with progress_bar(masks.shape[0] * masks.shape[1], "masked-token loss") as bar:
        for round_, masked in enumerate(masks):
            for start in range(0, len(masked), batch_size):
                part = slice(start, start + batch_size)
                wanted = tokens[part].to(model.device)
                hidden = wanted.masked_fill(masked[part].to(model.device), model.transformer.config.mask_token_id)
                with torch.autocast(model.device.type, model.dtype, enabled=model.autocast):
                    logits = model.transformer(hidden, None if classes is None else classes[part].to(model.device))
                logits = logits.float()
                losses[round_, part] = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").cpu()
                hits[round_, part] = (logits.argmax(2) == wanted).cpu()
                bar.update(len(wanted))
    return losses, hits


def measure_loss(
    model: MaskGIT, tokens: Tensor, labels: list[int] | None, training: Tensor, options: Options
) -> dict[str, Any]:
    """The masked-token loss of the model and of the best fixed distribution per position, on the same masks.

    Args:
        tokens: int64 [n, N], on the CPU; `training`, int64 [m, N], are those that the distribution is estimated on.
        labels: classes, if the model is to know them.
    """
    masks = stratified_masks(len(tokens), tokens.shape[1], options.rounds, options.seed)
    losses, hits = model_losses(model, tokens, labels, masks, options.batch_size)
    fixed, fixed_hits = fixed_losses(training, tokens, model.tokenizer.config.codebook_size)
    loss, token_loss = average(losses, masks)
    # The best smoothing for these very tokens: generous to the fixed distribution.
    baselines = {kind: average(values.expand_as(masks), masks) for kind, values in fixed.items()}
    best = min(baselines, key=lambda kind: baselines[kind][0])
    best_token_loss = min(by_token for _, by_token in baselines.values())
    return {
        "loss": loss,
        "fixed_loss": baselines[best][0],
        "ratio": loss / baselines[best][0],
        "loss_over_tokens": token_loss,
        "fixed_loss_over_tokens": best_token_loss,
        "ratio_over_tokens": token_loss / best_token_loss,
        "accuracy": average(hits, masks)[0],
        "fixed_accuracy": average(fixed_hits.expand_as(masks), masks)[0],
        "smoothing": best,
    }
