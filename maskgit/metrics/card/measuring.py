"""What a model's card says, measured: the tokenizer, the masked-token loss, the filling of holes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from maskgit.console import UsageError, progress_bar, require_at_least
from maskgit.data import ImageDataset
from maskgit.data.pixels import plain_views, to_signed
from maskgit.decoding import DecodeConfig
from maskgit.decoding.masking import random_masks
from maskgit.decoding.schedules import ceil_count, gamma
from maskgit.metrics import held_out
from maskgit.metrics.features import pooled_features
from maskgit.metrics.figures import spread
from maskgit.metrics.held_out import HeldOut, Subsets, from_picture
from maskgit.metrics.pairs import hole_errors, psnr, psnr_of_mean_error, ssim
from maskgit.metrics.sets import codebook_usage, frechet_distance
from maskgit.pipeline import InpaintResult, MaskGIT, Precision

HOLES = {"center": "center hole, half the side", "boxes": "random boxes"}
"""Mask makers whose holes are filled, and their names in the report."""

SCHEDULE = "cosine"
"""Mask schedule of the masked-token loss."""
SMOOTHING = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Pseudo-counts per code that the fixed distribution may choose from."""

PICTURES = 24
"""Images in each picture."""


@dataclass(frozen=True)
class Options:
    """Measure a model on held-out images: tokenizer, masked-token loss, inpainting. Writes a report and pictures."""

    model: Annotated[str, tyro.conf.Positional] = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    output: Path = Path("outputs/evaluation")
    """Folder for report.json, report.md, inpaintings.png and reconstructions.png."""
    data: str = "emoji"
    """A folder of images, or `emoji` for the embedded data set. Only its validation side is measured; the training
    side gives the fixed distribution that the masked-token loss is compared with, and counts for codebook usage."""
    max_images: int | None = None
    """Measure this many held-out images, drawn at random. Default: all."""
    seed: int = 0
    """Seed of all that is random here: masks, decoding, which images stand for their family and are shown."""
    seeds: int = 3
    """Times that each hole is filled, from other random numbers; after the first, only in the headline's images."""
    rounds: int = 8
    """Masks per image for the masked-token loss."""
    steps: int | None = None
    """Decoding steps. Default: the model's."""
    classes: bool = False
    """Tell a class-conditional model the class of each image."""
    feature_size: int = 224
    """Side that images are enlarged to for the features of the Fréchet distance."""
    batch_size: int = 16
    """Images that are worked on together."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    precision: Precision = "auto"
    """Of the transformer; auto is bf16 where the hardware computes in it."""

    def check(self) -> None:
        """Raise UsageError if a value makes no sense."""
        least = {"seed": 0, "seeds": 1, "rounds": 1, "steps": 1, "feature_size": 32, "batch_size": 1, "max_images": 2}
        require_at_least(self, least)
        if self.seed >= 2**64:
            raise UsageError(f"--seed {self.seed}: must be below 2**64")


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long what is within takes."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 2)


def shown_indices(subsets: Subsets, seed: int) -> list[int]:
    """The images of the pictures: drawn at random from the headline's set, in random order."""
    indices = next(iter(subsets.values()))
    return [int(i) for i in np.random.default_rng((seed, 3)).permutation(indices)[:PICTURES]]


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


def measure_tokenizer(model: MaskGIT, pixels: Tensor, subsets: Subsets) -> tuple[Tensor, dict[str, Any], Tensor]:
    """How well images survive encoding and decoding.

    Args:
        pixels: uint8 [n, 3, S, S].

    Returns:
        Their tokens int64 [n, N]; the figures by set; the decoded images, uint8 [n, 3, S, S].
    """
    tokens, decoded = held_out.reconstruct(model, pixels)
    originals, copies = to_signed(pixels), to_signed(decoded)
    each_psnr, each_ssim = psnr(originals, copies), ssim(originals, copies)
    each_error = (originals - copies).square().flatten(1).mean(1)
    figures = {}
    for name, indices in subsets.items():
        used, perplexity = codebook_usage(tokens[indices], model.tokenizer.config.codebook_size)
        figures[name] = {
            "psnr": float(each_psnr[indices].mean()),
            "psnr_of_mean_error": psnr_of_mean_error(float(each_error[indices].mean())),
            "ssim": float(each_ssim[indices].mean()),
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
    model: MaskGIT, tokens: Tensor, labels: list[int] | None, subsets: Subsets, training: Tensor, options: Options
) -> dict[str, Any]:
    """The masked-token loss of the model and of the best fixed distribution per position, on the same masks; by set.

    Args:
        tokens: int64 [n, N], on the CPU; `training`, int64 [m, N], are those that the distribution is estimated on.
        labels: classes, if the model is to know them.
    """
    masks = stratified_masks(len(tokens), tokens.shape[1], options.rounds, options.seed)
    losses, hits = model_losses(model, tokens, labels, masks, options.batch_size)
    fixed, fixed_hits = fixed_losses(training, tokens, model.tokenizer.config.codebook_size)
    figures = {}
    for name, indices in subsets.items():
        some = masks[:, indices]
        loss, token_loss = average(losses[:, indices], some)
        # The best smoothing for these very tokens: generous to the fixed distribution.
        baselines = {kind: average(values[indices].expand_as(some), some) for kind, values in fixed.items()}
        best = min(baselines, key=lambda kind: baselines[kind][0])
        best_token_loss = min(by_token for _, by_token in baselines.values())
        figures[name] = {
            "loss": loss,
            "fixed_loss": baselines[best][0],
            "ratio": loss / baselines[best][0],
            "loss_over_tokens": token_loss,
            "fixed_loss_over_tokens": best_token_loss,
            "ratio_over_tokens": token_loss / best_token_loss,
            "accuracy": average(hits[:, indices], some)[0],
            "fixed_accuracy": average(fixed_hits[indices].expand_as(some), some)[0],
            "smoothing": best,
        }
    return figures


# --- inpainting -------------------------------------------------------------------------------------------------------


def measure_holes(
    model: MaskGIT,
    network: nn.Module,
    images: HeldOut,
    decoded: Tensor,
    subsets: Subsets,
    config: DecodeConfig,
    options: Options,
    seconds: dict[str, float],
) -> tuple[dict[str, Any], list[InpaintResult]]:
    """Fill holes in all images by all methods, and compare with the originals.

    Returns:
        The figures by hole, method and set; and the inpaintings to show: the first half with the first kind of hole,
        the second half with the second.
    """
    pixels = images.pixels
    everything, headline = np.arange(len(pixels)), next(iter(subsets.values()))
    turns = [everything, *[headline] * (options.seeds - 1)]
    wanted = shown_indices(subsets, options.seed)
    halves = (wanted[: (len(wanted) + 1) // 2], wanted[(len(wanted) + 1) // 2 :])
    masks = {hole: held_out.hole_masks(hole, everything, pixels.shape[2], options.seed) for hole in HOLES}
    # Hole, method, positions of the images among the held-out ones (sorted), and what they became, uint8 [n, 3, S, S].
    fills: list[tuple[str, str, np.ndarray, Tensor]] = []
    shown: list[InpaintResult] = []
    with timed(seconds, "inpainting"), progress_bar(len(HOLES) * sum(map(len, turns)), "inpainting") as bar:
        for hole, half in zip(HOLES, halves, strict=True):
            for turn, indices in enumerate(turns):
                results = held_out.inpaint(
                    model,
                    pixels[indices],
                    masks[hole][indices],
                    indices,
                    options.seed + turn,
                    config=config,
                    labels=None if images.labels is None else [images.labels[i] for i in indices],
                    batch_size=options.batch_size,
                    progress=bar.update,
                )
                filled = torch.stack([from_picture(result.image) for result in results])
                fills.append((hole, "MaskGIT", indices, filled))
                if turn == 0:
                    shown += [results[i] for i in half]
    with timed(seconds, "other methods"):
        for hole, drawn in masks.items():
            others = {
                held_out.TELEA: map(held_out.fill_telea, pixels, drawn),
                "mean colour": map(held_out.fill_mean, pixels, drawn),
                held_out.TOKENIZER_ONLY: map(held_out.paste_decoded, pixels, decoded, drawn),
            }
            fills += [(hole, name, everything, torch.stack([*filled])) for name, filled in others.items()]

    total = len(pixels) + sum(len(done) for _, _, done, _ in fills)
    with timed(seconds, "Fréchet distance"), progress_bar(total, "features") as bar:

        def features(images: Tensor) -> Tensor:
            batches = []
            for batch in pooled_features(network, to_signed(images), options.feature_size):
                batches.append(batch)
                bar.update(len(batch))
            return torch.cat(batches)

        reference = features(pixels)

        def compare(done: np.ndarray, filled: Tensor, drawn: np.ndarray) -> dict[str, dict[str, float]]:
            """The figures of those sets that were filled whole."""
            ours = features(filled)
            absolute, square = hole_errors(to_signed(filled), to_signed(pixels[done]), torch.from_numpy(drawn))
            figures = {}
            for name, indices in subsets.items():
                if len(indices) <= len(done):
                    rows = np.searchsorted(done, indices)  # both are sorted
                    figures[name] = {
                        "frechet": frechet_distance(ours[rows], reference[indices]),
                        # Of the mean error: a hole in plain white filled perfectly has no PSNR that could be averaged.
                        "psnr_in_hole": psnr_of_mean_error(float(square[rows].mean())),
                        "l1_in_hole": 127.5 * float(absolute[rows].mean()),
                    }
            return figures

        versions: dict[str, dict[str, list[Any]]] = {hole: {} for hole in HOLES}
        for hole, method, done, filled in fills:
            versions[hole].setdefault(method, []).append(compare(done, filled, masks[hole][done]))
    return {hole: {method: _spread(each[method]) for method in each} for hole, each in versions.items()}, shown


def _spread(versions: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Figures by set of each time that a hole was filled, the first time in all images: mean and deviation of each."""
    return {
        name: {key: spread([version[name][key] for version in versions if name in version]) for key in figures}
        for name, figures in versions[0].items()
    }
