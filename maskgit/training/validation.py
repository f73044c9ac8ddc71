"""What a transformer is judged by while it trains, on held-out images: losses, how good its fills are, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from maskgit.canvas.holes import cells_with_holes
from maskgit.config import TransformerConfig
from maskgit.data.tokens import TokenSample, TokenShard, hole_of
from maskgit.decoding import DecodeConfig, decode
from maskgit.decoding.masking import mvtm_masks
from maskgit.metrics import frechet_distance
from maskgit.metrics.features import efficientnet_lite0, pooled_features
from maskgit.tokenizer import VQGAN
from maskgit.training.engine import Engine
from maskgit.training.samples import spread
from maskgit.training.settings import TransformerTraining
from maskgit.training.tracking import Tracker

DISTANCE = "frechet distance (efficientnet-lite0, not FID)"
BATCH = 64
BUCKETS = 4  # of the mask ratio, in the figures


class Validation:
    """Figures and a picture of a model on the held-out images.

    Args:
        architecture: of the model.
        held_out: its plain views, and its holes if it has any.

    Raises:
        ImportError: the packages of the Fréchet distance are missing, with config.eval_every.
    """

    def __init__(
        self,
        config: TransformerTraining,
        architecture: TransformerConfig,
        held_out: TokenShard,
        tokenizer: VQGAN,
        engine: Engine,
    ) -> None:
        self.config, self.held_out, self.tokenizer, self.engine = config, held_out, tokenizer, engine
        self.mask_token_id, self.has_classes = architecture.mask_token_id, architecture.num_classes > 0
        self.distance: FillDistance | None = None
        if config.eval_every and engine.is_main:  # which is the one that validates
            self.distance = FillDistance(held_out, tokenizer, config.eval_images)

    def __call__(self, model: nn.Module, tracker: Tracker, step: int) -> dict[str, float]:
        """The figures after a step; the picture goes to the tracker."""
        config, chosen = self.config, spread(len(self.held_out), self.config.validation_images)
        tokens = torch.from_numpy(self.held_out.tokens[0, chosen].astype(np.int64))
        everywhere, classes = torch.ones_like(tokens, dtype=torch.bool), torch.from_numpy(self.held_out.labels[chosen])
        plain = TokenSample(tokens, tokens, everywhere, classes)
        rounds = [self.losses(model, plain) for _ in range(config.validation_rounds)]
        figures = summarize(torch.cat(rounds), tokens.shape[1])
        if self.held_out.holes is not None:
            holes = default_collate([self.held_out.with_hole(index, 0, 0) for index in chosen.tolist()])
            loss, _, count = self.losses(model, holes).unbind(1)
            figures["loss in holes"] = float((loss / count).mean())
        if self.distance is not None and (step % config.eval_every == 0 or step == config.steps):
            figures[DISTANCE] = self.distance(model, self.labels, self.mask_token_id)
        self._show(model, plain, tracker, step)
        return figures

    def labels(self, classes: Tensor) -> Tensor | None:
        """What the model takes for the classes int64 [B]."""
        return classes.to(self.engine.device) if self.has_classes else None

    def losses(self, model: nn.Module, samples: TokenSample) -> Tensor:
        """Of n images with some of their candidates masked, as in training by the run's schedule: float64 [n, 3].

        Sums over an image's masked tokens: of the loss, of right guesses, and their number.
        """
        sums = []
        for _, (tokens, visible, candidates, classes) in batches(samples, BATCH, self.engine.device):
            masked = mvtm_masks(len(tokens), tokens.shape[1], self.config.schedule, candidates, device=tokens.device)
            with self.engine.autocast():
                logits = model(visible.masked_fill(masked, self.mask_token_id), self.labels(classes))
            losses = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none") * masked
            right = (logits.argmax(-1) == tokens) & masked
            sums.append(torch.stack([losses.sum(1), right.sum(1), masked.sum(1)], 1).double().cpu())
        return torch.cat(sums)

    def _show(self, model: nn.Module, samples: TokenSample, tracker: Tracker, step: int) -> None:
        """The same held-out images at every validation: what is known, what the model fills in, the original."""
        chosen = torch.from_numpy(spread(len(samples.tokens), 16))
        originals, grid, patch = samples.tokens[chosen], self.tokenizer.config.grid, self.tokenizer.config.patch
        hole = torch.zeros(grid, grid, dtype=torch.bool)
        hole[grid // 4 : grid - grid // 4, grid // 4 : grid - grid // 4] = True
        inside = hole.flatten().expand(len(originals), -1)
        shown = TokenSample(originals, originals, inside, samples.label[chosen])
        filled = fill(model, shown, self.labels, self.mask_token_id, self.engine.device)
        decoded = self.tokenizer.decode(torch.cat([filled, originals.to(filled.device)]))
        fills, reconstructions = decoded.chunk(2)
        covered = hole.repeat_interleave(patch, 0).repeat_interleave(patch, 1).to(filled.device)
        rows = torch.cat([reconstructions.masked_fill(covered, 0.0), fills, reconstructions])
        name = "masked, filled, original"
        tracker.add_pictures(name, rows, step, columns=len(originals), file="inpaintings.png")


def summarize(sums: Tensor, num_tokens: int) -> dict[str, float]:
    """What is logged of the `Validation.losses` [n, 3] of images of so many tokens."""
    loss, hits, count = sums.unbind(1)
    figures = {
        # Every image, and so every r, counts the same; over all masked tokens, large masks count more.
        "loss": float((loss / count).mean()),
        "token_loss": float(loss.sum() / count.sum()),
        "accuracy": float(hits.sum() / count.sum()),
    }
    bucket = (count / num_tokens * BUCKETS).long().clamp_max(BUCKETS - 1)
    for i in bucket.unique().tolist():
        name = f"{100 * i // BUCKETS}-{100 * (i + 1) // BUCKETS}%"
        loss, hits, count = sums[bucket == i].sum(0).tolist()
        figures |= {f"loss at {name} masked": loss / count, f"accuracy at {name} masked": hits / count}
    return figures


class FillDistance:
    """Fréchet distance between fixed held-out pictures and the same pictures with their holes filled.

    Of the features of EfficientNet-Lite0, whose weights come in a package: it is not the FID. Both sides are decoded
    from tokens, so the tokenizer has no part in it; pictures, holes and noise are the same at every call. Compare it
    within one run only.

    Args:
        held_out: its plain views; where it has holes these are filled as inpainting does, from tokens that were encoded
            without what is hidden, else from the tokens of the whole picture.
        tokenizer: on the device where all of it shall run.
        images: how many of them, spread evenly; all if there are fewer.

    Raises:
        ImportError: the packages of the features are missing.
    """

    def __init__(self, held_out: TokenShard, tokenizer: VQGAN, images: int) -> None:
        self.tokenizer, self.device = tokenizer, next(tokenizer.parameters()).device
        self.network = efficientnet_lite0().to(self.device)
        chosen = spread(len(held_out), images).tolist()
        self.samples: TokenSample = default_collate(
            [_with_hole(held_out, index, tokenizer.config.image_size) for index in chosen]
        )
        self.real = self._features(self.samples.tokens)

    def __call__(self, model: nn.Module, labels: Callable[[Tensor], Tensor | None], mask_token_id: int) -> float:
        """The distance of `model`'s fills; the arguments are those of `fill`."""
        return frechet_distance(
            self._features(fill(model, self.samples, labels, mask_token_id, self.device)), self.real
        )

    @torch.no_grad()
    def _features(self, tokens: Tensor) -> Tensor:
        """Of the pictures that tokens int64 [n, N] decode to; float64 [n, D]."""
        features: list[Tensor] = []
        for part in tokens.split(32):
            features += pooled_features(self.network, self.tokenizer.decode(part.to(self.device)).clamp(-1, 1))
        return torch.cat(features)


@torch.no_grad()
def fill(
    model: nn.Module,
    samples: TokenSample,
    labels: Callable[[Tensor], Tensor | None],
    mask_token_id: int,
    device: torch.device,
) -> Tensor:
    """Tokens of n images with their candidates filled in, the same at every call: int64 [n, N].

    Args:
        model: tokens int64 [B, N] and labels -> logits [B, N, V].
        labels: what the model takes for the classes int64 [B].
        mask_token_id: V.
    """
    filled = []
    for start, (_, visible, candidates, classes) in batches(samples, 32, device):
        seeds, given = torch.arange(start, start + len(visible), device=device), labels(classes)
        predict: Callable[[Tensor], Tensor] = lambda held, given=given: model(held, given)  # noqa: E731
        filled.append(decode(predict, visible, candidates, DecodeConfig(), seeds, mask_token_id=mask_token_id))
    return torch.cat(filled)


def batches(samples: TokenSample, size: int, device: torch.device) -> Iterator[tuple[int, TokenSample]]:
    """The samples in parts of `size`, on the device, each with the number of its first one."""
    for start in range(0, len(samples.tokens), size):
        yield start, TokenSample(*(values[start : start + size].to(device) for values in samples))


def _with_hole(shard: TokenShard, index: int, size: int) -> TokenSample:
    """The plain view of an image with its first hole."""
    if shard.holes is not None:
        return shard.with_hole(index, 0, 0)
    tokens, grid = torch.from_numpy(shard.tokens[0, index].astype(np.int64)), round(shard.tokens.shape[2] ** 0.5)
    inside = torch.from_numpy(cells_with_holes(hole_of(size, 0, index, 0, shard.seed), grid, grid).ravel())
    return TokenSample(tokens, tokens, inside, torch.tensor(shard.labels[index]))
