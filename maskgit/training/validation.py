"""What a transformer is judged by while it trains, on held-out images: losses, how good its fills are, pictures."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit.canvas.holes import cells_with_holes
from maskgit.config import HaltonConfig, TransformerConfig
from maskgit.data.tokens import TokenSample, TokenShard, hole_of
from maskgit.decoding import DecodeConfig, decode
from maskgit.decoding.masking import mvtm_masks
from maskgit.metrics import frechet_distance
from maskgit.metrics.features import efficientnet_lite0, pooled_features
from maskgit.tokenizer import VQGAN
from maskgit.training.engine import Engine
from maskgit.training.health import few_codes, settled
from maskgit.training.samples import spread
from maskgit.training.settings import TransformerTraining
from maskgit.training.tracking import Tracker

DISTANCE = "frechet distance (efficientnet-lite0, not FID)"
BUCKETS = 4  # of the mask ratio, in the figures
PICTURE, SHOWN = "inpaintings.png", 16  # where fills are shown, and of how many images


class Validation:
    """Figures and a picture of a model on the held-out images: their plain views, and their holes if they have any.

    With config.eval_every, also a Fréchet distance between fixed held-out pictures and the same pictures with their
    holes filled. It is of the features of EfficientNet-Lite0, whose weights come in a package, and so not the FID. Both
    sides are decoded from tokens, so the tokenizer has no part in it; pictures, holes and noise are the same at every
    call. Compare it within one run only.

    The tokenizer is on the engine's device. Raises ImportError: the packages of the features are missing.
    """

    def __init__(
        self,
        config: TransformerTraining,
        architecture: TransformerConfig | HaltonConfig,
        held_out: TokenShard,
        tokenizer: VQGAN,
        engine: Engine,
    ) -> None:
        self.config, self.held_out, self.tokenizer, self.engine = config, held_out, tokenizer, engine
        self.mask_token_id, self.has_classes = architecture.mask_token_id, architecture.num_classes > 0
        if config.eval_every and engine.is_main:  # which is the one that validates
            self.network = efficientnet_lite0().to(engine.device)
            self.judged = self._with_holes(spread(len(held_out), config.eval_images))
            self.real = self._features(self.judged.tokens)

    def __call__(self, model: nn.Module, tracker: Tracker, step: int) -> dict[str, float]:
        """The figures after a step; the picture goes to the tracker."""
        config, chosen, plain = self.config, self.chosen, self.plain
        rounds = [self.losses(model, plain) for _ in range(config.validation_rounds)]
        figures = summarize(torch.cat(rounds), plain.tokens.shape[1])
        if self.held_out.holes is not None:
            loss, _, count = self.losses(model, self._with_holes(chosen)).unbind(1)
            figures["loss in holes"] = float((loss / count).mean())
        if config.eval_every and (step % config.eval_every == 0 or step == config.steps):
            figures[DISTANCE] = self.distance(model)
        self._show(model, plain, tracker, step)
        return figures

    def show(self, model: nn.Module, tracker: Tracker, step: int, most: int) -> None:
        """The picture alone, of at most so many images."""
        self._show(model, self.plain, tracker, step, most)

    @functools.cached_property
    def chosen(self) -> np.ndarray:
        """The numbers of the images that losses are of, int64 [n]."""
        return spread(len(self.held_out), self.config.validation_images)

    @functools.cached_property
    def plain(self) -> TokenSample:
        """Their plain views, in which every token may be masked."""
        tokens = torch.from_numpy(self.held_out.tokens[0, self.chosen].astype(np.int64))
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        return TokenSample(tokens, tokens, everywhere, torch.from_numpy(self.held_out.labels[self.chosen]))

    def losses(self, model: nn.Module, samples: TokenSample) -> Tensor:
        """Of n images with some of their candidates masked, as in training by the run's schedule: float64 [n, 3].

        Sums over an image's masked tokens: of the loss, of right guesses, and their number.
        """
        sums = []
        for _, (tokens, visible, candidates, classes) in self._batches(samples, 64):
            masked = mvtm_masks(len(tokens), tokens.shape[1], self.config.schedule, candidates, device=tokens.device)
            with self.engine.autocast():
                logits = model(visible.masked_fill(masked, self.mask_token_id), classes if self.has_classes else None)
            losses = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none") * masked
            right = (logits.argmax(-1) == tokens) & masked
            sums.append(torch.stack([losses.sum(1), right.sum(1), masked.sum(1)], 1).double().cpu())
        return torch.cat(sums)

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """The Fréchet distance of the model's fills."""
        return frechet_distance(self._features(self.fill(model, self.judged)), self.real)

    def fill(self, model: nn.Module, samples: TokenSample) -> Tensor:
        """Tokens of n images with their candidates filled in, the same at every call: int64 [n, N].

        Raises FloatingPointError: logits that aren't finite.
        """
        filled = []
        for start, (_, visible, candidates, classes) in self._batches(samples, 32):
            seeds = torch.arange(start, start + len(visible), device=visible.device)
            predict = functools.partial(_predict, model, classes if self.has_classes else None)
            given = predict, visible, candidates, DecodeConfig(), seeds
            try:
                filled.append(decode(*given, mask_token_id=self.mask_token_id))
            except ValueError as error:
                raise FloatingPointError(str(error)) from error
        return torch.cat(filled)

    @torch.no_grad()
    def _features(self, tokens: Tensor) -> Tensor:
        """Of the pictures that tokens int64 [n, N] decode to; float64 [n, D]."""
        features: list[Tensor] = []
        for part in tokens.split(32):
            pictures = self.tokenizer.decode(part.to(self.engine.device)).clamp(-1, 1)
            features += pooled_features(self.network, pictures)
        return torch.cat(features)

    def _with_holes(self, chosen: np.ndarray) -> TokenSample:
        """The plain views of some images with their first holes.

        Where the shard has holes, the visible tokens were encoded without what is in them, as in inpainting; else they
        are those of the whole picture.
        """
        shard, config = self.held_out, self.tokenizer.config
        if shard.holes is not None:
            return shard.samples(chosen, 0, 0)
        tokens = torch.from_numpy(shard.tokens[0, chosen].astype(np.int64))
        holes = [hole_of(config.image_size, 0, index, 0, shard.seed) for index in chosen.tolist()]
        inside = np.stack([cells_with_holes(hole, config.grid, config.grid).ravel() for hole in holes])
        return TokenSample(tokens, tokens, torch.from_numpy(inside), torch.from_numpy(shard.labels[chosen]))

    def _batches(self, samples: TokenSample, size: int) -> Iterator[tuple[int, TokenSample]]:
        """The samples in parts of `size`, on the device, each with the number of its first one."""
        for start in range(0, len(samples.tokens), size):
            yield start, TokenSample(*(values[start : start + size].to(self.engine.device) for values in samples))

    def _show(self, model: nn.Module, samples: TokenSample, tracker: Tracker, step: int, most: int = SHOWN) -> None:
        """The same held-out images at every validation: what is known, what the model fills in, the original."""
        chosen = torch.from_numpy(spread(len(samples.tokens), min(SHOWN, most)))
        originals, grid, patch = samples.tokens[chosen], self.tokenizer.config.grid, self.tokenizer.config.patch
        hole = torch.zeros(grid, grid, dtype=torch.bool)
        hole[grid // 4 : grid - grid // 4, grid // 4 : grid - grid // 4] = True
        inside = hole.flatten().expand(len(originals), -1)
        filled = self.fill(model, TokenSample(originals, originals, inside, samples.label[chosen]))
        fills, reconstructions = self.tokenizer.decode(torch.cat([filled, originals.to(filled.device)])).chunk(2)
        covered = hole.repeat_interleave(patch, 0).repeat_interleave(patch, 1).to(filled.device)
        rows = torch.cat([reconstructions.masked_fill(covered, 0.0), fills, reconstructions])
        name = "masked, filled, original"
        tracker.add_pictures(name, rows, step, columns=len(originals), file=PICTURE)
        tracker.warn(self._faults(filled, originals.to(filled.device), inside.to(filled.device), step))

    def _faults(self, filled: Tensor, originals: Tensor, inside: Tensor, step: int) -> dict[str, str | None]:
        """Of tokens int64 [n, N], some of them filled in."""
        if not settled(step, self.config):
            return {"fills": None}
        return {"fills": few_codes(filled[inside], originals[inside], self.mask_token_id)}


def _predict(model: nn.Module, labels: Tensor | None, held: Tensor) -> Tensor:
    return model(held, labels)


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
        total, right, masked = sums[bucket == i].sum(0).tolist()
        figures |= {f"loss at {name} masked": total / masked, f"accuracy at {name} masked": right / masked}
    return figures
