"""Stage 2: train the transformer by masked visual token modeling (Chang et al., "MaskGIT", CVPR 2022, section 3.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from maskgit.config import TransformerConfig, config_to_dict, preset
from maskgit.data import load_dataset
from maskgit.data.images import AugmentConfig
from maskgit.data.tokens import PLAIN_VIEWS, TokenSample, fingerprint, tokenize
from maskgit.decoding import DecodeConfig, decode
from maskgit.masking import mvtm_masks
from maskgit.model_folder import Model, load_model, load_tokenizer, save_model
from maskgit.schedules import check_schedule
from maskgit.tokenizer import VQGAN
from maskgit.training.loop import LoopConfig, StageTask, TrainingError, make_optimizer, pick_device, train
from maskgit.training.pictures import save_image_grid
from maskgit.transformer import Transformer

BUCKETS = 4  # of the mask ratio, in the validation figures


if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TransformerTraining(LoopConfig):
    """Settings of stage 2."""

    output: Path = Path("runs/transformer")
    """Folder of the run: checkpoints, tokens, TensorBoard log, pictures, and the trained model."""
    tokenizer: Path = Path("runs/tokenizer/model")
    """Folder of the trained tokenizer: what stage 1 wrote, or any model folder."""
    steps: int = 20000
    """Optimizer steps in all."""
    batch_size: int = 32
    """Images per step."""
    lr: float = 1e-3
    """Peak learning rate."""
    beta2: float = 0.96
    """AdamW's decay of the mean of the squared gradients."""
    weight_decay: float = 0.05
    """AdamW's weight decay, on matrices only."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and saved; 0 for none."""
    init: Path | None = None
    """Model folder whose transformer to go on from, instead of random weights: of the same size, over the same
    tokenizer. Optimizer, learning rate and average start anew."""
    model: str = "embedded"
    """Preset whose transformer is trained: embedded, lab, maskgit-256, maskgit-512."""
    data: str = "emoji"
    """A folder of images, or `emoji` for the embedded data set."""
    views: int = 2
    """Views of each image that are tokenized: itself, its mirror, and then random crops."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random resized crop and flip of the views after the first two."""
    dropout: float | None = None
    """Dropout of the transformer; by default what the preset says."""
    class_dropout: float = 0.1
    """Share of the images whose class is hidden, for a class-conditional model: it then works without a class too, and
    with guidance."""
    schedule: str = "cosine"
    """Mask schedule gamma: a share gamma(r) of the tokens is masked, r uniform in [0, 1)."""
    hole_share: float = 0.0
    """Share of the images that are trained on as inpainting meets them: a random hole is hidden from the encoder, only
    tokens inside are masked. The rest are masked all over, as in the paper."""
    holes: int = 2
    """With --hole-share, random holes in each view: as many more times the images are tokenized."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""
    validation_rounds: int = 4
    """Masks drawn for each held-out image at each validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "views", "holes", "validation_rounds")
        self.require_share("label_smoothing", "hole_share", "class_dropout")
        if self.dropout is not None:
            self.require_share("dropout")
        try:
            check_schedule(self.schedule)
        except ValueError as error:
            raise TrainingError(f"--schedule {self.schedule}: {error}") from error


class TransformerTask(StageTask):
    """Cross-entropy of the masked tokens."""

    model: Transformer

    def __init__(
        self, config: TransformerTraining, architecture: TransformerConfig, tokenizer: VQGAN, device: torch.device
    ) -> None:
        self.config, self.device, self.tokenizer = config, device, tokenizer
        size = tokenizer.config.image_size
        images, held_out = (load_dataset(config.data, size, split) for split in ("train", "val"))
        self.dataset = tokenize(
            tokenizer,
            images,
            config.output / "tokens" / "train",
            views=config.views,
            augment=config.augment,
            seed=config.seed,
            device=device,
            hole_share=config.hole_share,
            holes=config.holes,
        )
        self.held_out = tokenize(
            tokenizer,
            held_out,
            config.output / "tokens" / "val",
            views=PLAIN_VIEWS,
            augment=AugmentConfig(enabled=False),
            seed=config.seed,
            device=device,
            hole_share=config.hole_share,
        )
        self.families = images.family_numbers()
        torch.manual_seed(config.seed)
        self.model = Transformer(architecture).to(device)
        if config.init is not None:
            self.model.load_state_dict(_initial_weights(config.init, architecture, tokenizer))
        self.class_names = images.class_names if architecture.num_classes else []
        self.optimizers = [make_optimizer(self.model, config)]
        self.logits: Any = torch.compile(self.model) if config.compile else self.model

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _labels(self, labels: Tensor) -> Tensor | None:
        return labels.to(self.device) if self.model.config.num_classes else None

    def training_step(self, batch: TokenSample, step: int) -> dict[str, Tensor]:
        config = self.config
        tokens, visible, candidates, classes = (part.to(self.device, non_blocking=True) for part in batch)
        masked = mvtm_masks(len(tokens), tokens.shape[1], config.schedule, candidates, device=self.device)
        labels = self._labels(classes)
        if labels is not None:
            hidden = torch.rand(len(labels), device=self.device) < config.class_dropout
            labels = labels.masked_fill(hidden, self.model.config.num_classes)
        with self._autocast():
            logits = self.logits(visible.masked_fill(masked, self.model.config.mask_token_id), labels).float()
        # Mean over the masked tokens without gathering them: their number differs from step to step.
        losses = F.cross_entropy(
            logits.transpose(1, 2), tokens, reduction="none", label_smoothing=config.label_smoothing
        )
        loss = (losses * masked).sum() / masked.sum()
        self.optimizers[0].zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or float("inf"))
        self.optimizers[0].step()
        with torch.no_grad():
            accuracy = ((logits.argmax(-1) == tokens) & masked).sum() / masked.sum()
        return {"loss": loss.detach(), "accuracy": accuracy, "gradient_norm": norm}

    def validate(self, model: nn.Module, writer: SummaryWriter, step: int, folder: Path) -> dict[str, float]:
        loss, hits, count = (torch.zeros(BUCKETS, dtype=torch.float64) for _ in range(3))
        image_losses = []
        tokens = torch.from_numpy(self.held_out.tokens[0].astype(np.int64))
        labels = torch.from_numpy(self.held_out.labels)
        for _ in range(self.config.validation_rounds):
            for part, part_labels in zip(tokens.split(64), labels.split(64), strict=True):
                part = part.to(self.device)
                masked = mvtm_masks(len(part), part.shape[1], self.config.schedule, device=self.device)
                with self._autocast():
                    logits = model(part.masked_fill(masked, self.model.config.mask_token_id), self._labels(part_labels))
                losses = F.cross_entropy(logits.float().transpose(1, 2), part, reduction="none") * masked
                right = (logits.argmax(-1) == part) & masked
                image_losses.append((losses.sum(1) / masked.sum(1)).cpu())
                bucket = (masked.float().mean(1) * BUCKETS).long().clamp_max(BUCKETS - 1).cpu()
                for total, values in ((loss, losses), (hits, right), (count, masked)):
                    total.index_add_(0, bucket, values.sum(1).double().cpu())
        figures = {
            # Every image, and so every r, counts the same; over all masked tokens, large masks count more.
            "loss": float(torch.cat(image_losses).mean()),
            "token_loss": float(loss.sum() / count.sum()),
            "accuracy": float(hits.sum() / count.sum()),
        }
        for i in range(BUCKETS):
            name = f"{100 * i // BUCKETS}-{100 * (i + 1) // BUCKETS}%"
            if count[i]:
                figures[f"loss at {name} masked"] = float(loss[i] / count[i])
                figures[f"accuracy at {name} masked"] = float(hits[i] / count[i])
        if self.held_out.holes is not None:
            figures["loss in holes"] = self._hole_loss(model)
        self._picture(model, tokens, labels, writer, step, folder)
        return figures

    def _hole_loss(self, model: nn.Module) -> float:
        """Mean over the held-out images of the loss in their first hole, some of it known already as in training."""
        losses = []
        for indices in torch.arange(len(self.held_out)).split(64):
            samples = default_collate([self.held_out.with_hole(index, 0, 0) for index in indices.tolist()])
            tokens, visible, candidates, labels = (part.to(self.device) for part in samples)
            masked = mvtm_masks(len(tokens), tokens.shape[1], self.config.schedule, candidates, device=self.device)
            with self._autocast():
                logits = model(visible.masked_fill(masked, self.model.config.mask_token_id), self._labels(labels))
            loss = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none") * masked
            losses.append((loss.sum(1) / masked.sum(1)).cpu())
        return float(torch.cat(losses).mean())

    def _picture(
        self, model: nn.Module, tokens: Tensor, labels: Tensor, writer: SummaryWriter, step: int, folder: Path
    ) -> None:
        """The same held-out images at every validation: what is known, what the model fills in, the original."""
        chosen = torch.linspace(0, len(tokens) - 1, min(16, len(tokens))).long()
        originals = tokens[chosen].to(self.device)
        grid = self.tokenizer.config.grid
        hole = torch.zeros(grid, grid, dtype=torch.bool, device=self.device)
        hole[grid // 4 : grid - grid // 4, grid // 4 : grid - grid // 4] = True
        masked = hole.flatten().expand(len(originals), -1)
        class_labels = self._labels(labels[chosen])
        filled = decode(
            lambda held: model(held, class_labels),
            originals,
            masked,
            DecodeConfig(),
            torch.arange(len(originals), device=self.device),
            mask_token_id=self.model.config.mask_token_id,
        )
        pictures = self.tokenizer.decode(torch.cat([originals, filled]))
        covered = hole.repeat_interleave(self.tokenizer.config.patch, 0)
        covered = covered.repeat_interleave(self.tokenizer.config.patch, 1)
        known = pictures[: len(originals)].masked_fill(covered, 0.0)
        rows = torch.cat([known, pictures[len(originals) :], pictures[: len(originals)]])
        image = save_image_grid(rows, folder / "inpaintings.png", columns=len(originals))
        writer.add_image("masked, filled, original", image, step, dataformats="HWC")

    def export(self, model: nn.Module, folder: Path, figures: dict[str, float]) -> None:
        assert isinstance(model, Transformer)
        save_model(folder / "model", Model(self.tokenizer, model, list(self.class_names), {"validation": figures}))


def _initial_weights(folder: Path, architecture: TransformerConfig, tokenizer: VQGAN) -> dict[str, Tensor]:
    model = load_model(folder)
    # How much is dropped has no influence on what the weights mean.
    theirs, ours = (
        config_to_dict(config) | {"dropout": None, "attention_dropout": None}
        for config in (model.transformer.config, architecture)
    )
    if theirs != ours:
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        raise TrainingError(
            f"--init {folder}: another transformer than the one to be trained: "
            + ", ".join(f"{name} is {theirs.get(name)} there and {ours.get(name)} here" for name in names)
        )
    if fingerprint(model.tokenizer) != fingerprint(tokenizer):
        raise TrainingError(f"--init {folder}: its tokenizer is not the one to be trained on, so its tokens differ")
    return model.transformer.state_dict()


def train_transformer(config: TransformerTraining) -> dict[str, float]:
    """Run stage 2 and return the last validation's figures.

    Raises:
        TrainingError, DataError, ModelError, CheckpointError: what is wrong with the settings or the files.
    """
    device = pick_device(config.device)
    tokenizer = load_tokenizer(config.tokenizer).to(device)
    architecture = dataclasses.replace(
        preset(config.model).transformer,
        codebook_size=tokenizer.config.codebook_size,
        num_tokens=tokenizer.config.num_tokens,
    )
    if config.dropout is not None:
        architecture = dataclasses.replace(architecture, dropout=config.dropout)
    if architecture.num_classes:
        classes = len(load_dataset(config.data, tokenizer.config.image_size, "train").class_names)
        if not classes:
            print(f"{config.data} has no classes (folders of their own): training without")
        architecture = dataclasses.replace(architecture, num_classes=classes)
    return train(lambda: TransformerTask(config, architecture, tokenizer, device), config, device)
