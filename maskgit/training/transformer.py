"""Stage 2: train the transformer by masked visual token modeling (Chang et al., "MaskGIT", CVPR 2022, section 3.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from maskgit.config import TokenizerConfig, TransformerConfig, config_to_dict, preset
from maskgit.data import DataError, load_dataset
from maskgit.data.images import AugmentConfig
from maskgit.data.tokens import PLAIN_VIEWS, TokenSample, class_names, fingerprint, tokenize
from maskgit.decoding import DecodeConfig, decode
from maskgit.decoding.masking import Count, Per, mvtm_masks
from maskgit.decoding.schedules import check_schedule
from maskgit.network.folder import Model, load_model, save_model
from maskgit.network.last_block import masked_rows
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit.training import distance
from maskgit.training.distance import FillDistance
from maskgit.training.engine import Engine, Sums
from maskgit.training.interpolation import interpolate_grid
from maskgit.training.loop import StageTask, make_optimizer, train
from maskgit.training.pictures import save_image_grid
from maskgit.training.settings import LoopConfig, TrainingError
from maskgit.training.tokens import TRAIN, VAL, TrainingTokens, keep_class_numbers, open_tokens, tokenizer_at
from maskgit.training.tracking import Tracker

_ROWS_STRIDE = 256  # the numbers of tokens that go through the last block are multiples of it
BUCKETS = 4  # of the mask ratio, in the validation figures
LossOn = Literal["masked", "all"]


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
    """Images per step, over all processes."""
    lr: float = 1e-3
    """Peak learning rate."""
    beta2: float = 0.96
    """AdamW's decay of the mean of the squared gradients."""
    weight_decay: float = 0.05
    """AdamW's weight decay, on matrices only."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and saved; 0 for none. It grows to that
    value, (1 + step) / (10 + step) at most, so that a short run's average isn't its random start."""
    init: Path | None = None
    """Model folder whose transformer to go on from, instead of random weights: of the same size, over the same
    tokenizer. Optimizer, learning rate and average start anew."""
    interpolate: bool = False
    """With --init: the model may have been trained on smaller pictures. What it knows of each position is interpolated
    to the larger grid."""
    image_size: int | None = None
    """Side of the pictures in pixels; by default the tokenizer's. It is convolutional, so any multiple of its patch
    will do."""
    model: str = "embedded"
    """Preset whose transformer is trained: embedded, lab, maskgit-256, maskgit-512."""
    data: str = "emoji"
    """A folder of images, tar archives ('shards/train-{000..009}.tar'), or `emoji` for the embedded data set."""
    tokens: Path | None = None
    """Folder of token shards that `train.py tokens` wrote, or the folder `tokens` of an earlier run. Images aren't
    needed then: --data, --val-fraction, --views, --augment and --holes say nothing."""
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
    mask_ratio: float | None = None
    """A fixed share of the tokens to mask, instead of the schedule's; validation keeps to the schedule."""
    mask_per: Per = "image"
    """Draw r for each image, or once for all images of a batch."""
    mask_count: Count = "exact"
    """Mask exactly that share of an image's tokens, rounded up; or (bernoulli) each token with that probability,
    whatever the others do, but at least one."""
    loss_on: LossOn = "masked"
    """Tokens that the loss is the mean over: the masked ones, or all, the known ones too."""
    hole_share: float = 0.0
    """Share of the images that are trained on as inpainting meets them: a random hole is hidden from the encoder, only
    tokens inside are masked. The rest are masked all over, as in the paper."""
    holes: int = 2
    """With --hole-share, random holes in each view: as many more times the images are tokenized."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""
    validation_rounds: int = 4
    """Masks drawn for each held-out image at each validation."""
    validation_images: int = 5000
    """Held-out images at each validation, spread evenly; all of them if there are fewer."""
    eval_every: int = 0
    """Steps between two measurements of the Fréchet distance (not the FID) of filled holes, a multiple of
    --validate-every; 0 for none. It needs the extra `metrics`."""
    eval_images: int = 500
    """Held-out images that it is measured on."""
    fsdp: bool = False
    """Divide weights, gradients and optimizer among the processes that torchrun starts (FSDP2) instead of copying them
    to each: for models that don't fit on one GPU."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and compute it anew in the backward pass: a quarter to a third slower, for
    several times the batch in the same memory."""

    FREE = (*LoopConfig.FREE, "fsdp", "activation_checkpointing", "eval_every", "eval_images")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "views", "holes", "validation_rounds", "validation_images")
        self.require_at_least(2, "eval_images")
        if self.eval_every < 0 or self.eval_every % self.validate_every:
            raise TrainingError(
                f"--eval-every {self.eval_every}: must be a multiple of --validate-every {self.validate_every}, or 0"
            )
        self.require_share("label_smoothing", "hole_share", "class_dropout")
        if self.dropout is not None:
            self.require_share("dropout")
        if self.image_size is not None:
            self.require_at_least(1, "image_size")
        if self.mask_ratio is not None and not 0 < self.mask_ratio <= 1:
            raise TrainingError(f"--mask-ratio {self.mask_ratio}: must be in (0, 1]")
        for name, choices in (("mask_per", Per), ("mask_count", Count), ("loss_on", LossOn)):
            if (value := getattr(self, name)) not in get_args(choices):
                listed = " or ".join(get_args(choices))
                raise TrainingError(f"--{name.replace('_', '-')} {value}: must be {listed}")
        try:
            check_schedule(self.schedule)
        except ValueError as error:
            raise TrainingError(f"--schedule {self.schedule}: {error}") from error


class TransformerTask(StageTask):
    """Cross-entropy of the masked tokens."""

    model: Transformer
    judged_by = "loss"

    def __init__(
        self,
        config: TransformerTraining,
        architecture: TransformerConfig,
        tokenizer: VQGAN,
        engine: Engine,
        tokens: TrainingTokens,
    ) -> None:
        self.config, self.engine, self.device, self.tokenizer = config, engine, engine.device, tokenizer
        torch.manual_seed(config.seed)
        self.model = Transformer(architecture).to(self.device)
        self.model.checkpoint_blocks = config.activation_checkpointing
        self.tokens_per_image = architecture.num_tokens
        if config.init is not None:
            weights, names = _initial_weights(config, config.init, architecture, tokenizer)
            self.model.load_state_dict(weights)
            tokens = tokens.numbered_as(names)  # by which the weights know the classes
        self.dataset, self.held_out, self.families, names = tokens
        self.class_names = names if architecture.num_classes else []
        self.distance: FillDistance | None = None
        if config.eval_every and engine.is_main:  # which is the one that validates
            self.distance = FillDistance(self.held_out, tokenizer, config.eval_images)

    def prepare(self) -> None:
        self.optimizers = [make_optimizer(self.model, self.config)]
        wrapped = self.engine.wrap(self.model)
        self.wrapped: Any = self.compiled(wrapped) if self.config.compile else wrapped

    def flops_per_image(self) -> float:
        """2 for each weight of a matrix and token, 4 N dim for each token's attention; the backward pass twice that."""
        config, modules = self.model.config, self.model.modules()
        weights = sum(m.out_features * m.in_features for m in modules if isinstance(m, nn.Linear))
        weights += config.codebook_size * config.dim if config.tied else 0
        return 3.0 * config.num_tokens * (2 * weights + 4 * config.depth * config.num_tokens * config.dim)

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def _labels(self, labels: Tensor) -> Tensor | None:
        return labels.to(self.device) if self.model.config.num_classes else None

    def training_step(self, batch: TokenSample, step: int) -> dict[str, Tensor]:
        engine = self.engine
        tokens, visible, candidates, classes = (part.to(self.device, non_blocking=True) for part in batch)
        masked, labels = self._draw(candidates, self._labels(classes))
        held = visible.masked_fill(masked, self.model.config.mask_token_id)
        counted = masked if self.config.loss_on == "masked" else torch.ones_like(masked)
        # Means over the tokens of the whole batch, of which images and parts have different numbers.
        counts = engine.totals({"loss": counted.sum().float(), "accuracy": masked.sum().float()})
        sums = Sums()
        self.optimizers[0].zero_grad()
        for part in engine.parts(self.wrapped, len(tokens)):
            engine.new_noise(step, part)
            with engine.autocast():
                logits = self._logits(held[part], None if labels is None else labels[part], counted[part]).float()
            losses = F.cross_entropy(  # of a matrix: over the middle dimension it is slow on a CPU
                logits.flatten(0, 1),
                tokens[part].flatten(),
                reduction="none",
                label_smoothing=self.config.label_smoothing,
            )
            loss = (losses * counted[part].flatten()).sum() / counts["loss"]
            engine.backward(loss)
            hits = ((logits.argmax(-1) == tokens[part]) & masked[part]).sum()
            sums.add({"loss": loss, "accuracy": hits / counts["accuracy"]})
        logged = engine.totals(sums.values)
        return logged | {"gradient_norm": engine.update(self.optimizers[0], logged["loss"])}

    def compiled(self, network: nn.Module) -> Any:
        """`network` with `--compile`. The sizes of a run don't change but for the rows (see `_logits`)."""
        # On a CPU PyTorch draws the seeds of dropout. Compiled code would draw a seed anew wherever it is used: for
        # every few elements of a mask.
        options: dict[str, Any] = {"fallback_random": True} if self.device.type == "cpu" else {}
        return torch.compile(network, dynamic=False, options=options)

    def _logits(self, tokens: Tensor, labels: Tensor | None, counted: Tensor) -> Tensor:
        """[b, N, V], right where `counted`, bool [b, N], is True."""
        # How many these are differs from step to step, for which a GPU would have to be waited for, and compiled code
        # for several processes, which is in parts, be compiled again.
        several = self.config.compile and self.engine.processes > 1
        if self.device.type != "cpu" or self.config.loss_on == "all" or several:
            return self.wrapped(tokens, labels)
        # A few more, so that the sizes of tensors, and with them the places in memory, are of a few kinds.
        count = min(counted.numel(), -(-int(counted.sum()) // _ROWS_STRIDE) * _ROWS_STRIDE)
        rows = masked_rows(counted.flatten()[None], count)
        if self.config.compile:
            torch._dynamo.mark_dynamic(rows, 0)
        return self.wrapped(tokens, labels, rows=rows)

    def _draw(self, candidates: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What is masked, bool [b, N], and the labels, some of them hidden; drawn for the images of all processes.

        Args:
            candidates: bool [b, N] of this process's images. Of the others' all are taken to be candidates: that
                changes their masks, of which nothing is used, and none of these.
            labels: int64 [b], or None without classes.
        """
        config, engine = self.config, self.engine
        everywhere = torch.ones_like(candidates).repeat(engine.processes, 1)
        engine.share(everywhere).copy_(candidates)
        masked = mvtm_masks(
            everywhere.shape[0],
            everywhere.shape[1],
            config.schedule,
            everywhere,
            ratio=config.mask_ratio,
            per=config.mask_per,
            count=config.mask_count,
            device=self.device,
        )
        if labels is not None:
            hidden = torch.rand(len(everywhere), device=self.device) < config.class_dropout
            labels = labels.masked_fill(engine.share(hidden), self.model.config.num_classes)
        return engine.share(masked), labels

    def validate(self, model: nn.Module, writer: Tracker, step: int, folder: Path) -> dict[str, float]:
        loss, hits, count = (torch.zeros(BUCKETS, dtype=torch.float64) for _ in range(3))
        image_losses = []
        chosen = self._validated()
        tokens = torch.from_numpy(self.held_out.tokens[0, chosen].astype(np.int64))
        labels = torch.from_numpy(self.held_out.labels[chosen])
        for _ in range(self.config.validation_rounds):
            for part, part_labels in zip(tokens.split(64), labels.split(64), strict=True):
                part = part.to(self.device)
                masked = mvtm_masks(len(part), part.shape[1], self.config.schedule, device=self.device)
                with self.engine.autocast():
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
        if self.distance is not None and (step % self.config.eval_every == 0 or step == self.config.steps):
            figures[distance.NAME] = self.distance(model, self._labels, self.model.config.mask_token_id)
        self._picture(model, tokens, labels, writer, step, folder)
        return figures

    def _validated(self) -> np.ndarray:
        """int64 [n]: the held-out images that are looked at."""
        count = len(self.held_out)
        return np.linspace(0, count - 1, min(count, self.config.validation_images)).astype(np.int64)

    def _hole_loss(self, model: nn.Module) -> float:
        """Mean over the held-out images of the loss in their first hole, some of it known already as in training."""
        losses = []
        for indices in torch.from_numpy(self._validated()).split(64):
            samples = default_collate([self.held_out.with_hole(index, 0, 0) for index in indices.tolist()])
            tokens, visible, candidates, labels = (part.to(self.device) for part in samples)
            masked = mvtm_masks(len(tokens), tokens.shape[1], self.config.schedule, candidates, device=self.device)
            with self.engine.autocast():
                logits = model(visible.masked_fill(masked, self.model.config.mask_token_id), self._labels(labels))
            loss = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none") * masked
            losses.append((loss.sum(1) / masked.sum(1)).cpu())
        return float(torch.cat(losses).mean())

    def _picture(
        self, model: nn.Module, tokens: Tensor, labels: Tensor, writer: Tracker, step: int, folder: Path
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
        writer.add_image("masked, filled, original", image, step)

    def export(self, model: nn.Module, folder: Path, figures: dict[str, float]) -> None:
        assert isinstance(model, Transformer)
        save_model(folder / "model", Model(self.tokenizer, model, list(self.class_names), {"validation": figures}))


def _initial_weights(
    config: TransformerTraining, folder: Path, architecture: TransformerConfig, tokenizer: VQGAN
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the model to go on from, fitted to `architecture`, and the names of its classes."""
    model = load_model(folder)
    weights, source = model.transformer.state_dict(), model.transformer.config
    if config.interpolate and isinstance(source, TransformerConfig) and source.num_tokens != architecture.num_tokens:
        weights = interpolate_grid(weights, source.num_tokens, architecture.num_tokens)
        print(f"{folder}: from {source.num_tokens} to {architecture.num_tokens} positions by interpolation")
        source = dataclasses.replace(source, num_tokens=architecture.num_tokens)
        # A tokenizer is the same at any size of the pictures.
        model.tokenizer.config = dataclasses.replace(
            model.tokenizer.config, image_size=tokenizer.config.grid * model.tokenizer.config.patch
        )
    # How much is dropped has no influence on what the weights mean.
    theirs, ours = (
        config_to_dict(config) | {"dropout": None, "attention_dropout": None} for config in (source, architecture)
    )
    if theirs != ours:
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        larger = names == ["num_tokens"]
        hint = "--interpolate goes to a larger grid" if larger else "give the --model that it was made with"
        raise TrainingError(
            f"--init {folder}: another transformer than the one to be trained: "
            + ", ".join(f"{name} is {theirs.get(name)} there and {ours.get(name)} here" for name in names)
            + f"; {hint}"
        )
    if fingerprint(model.tokenizer) != fingerprint(tokenizer):
        raise TrainingError(f"--init {folder}: its tokenizer is not the one to be trained on, so its tokens differ")
    return weights, model.class_names


def training_tokens(config: TransformerTraining, tokenizer: VQGAN, engine: Engine) -> TrainingTokens:
    """The tokens to train on: opened where --tokens says, or made from the images into the output folder."""
    if config.tokens is not None:
        holes = [config.tokens / split / "holes.json" for split in (TRAIN, VAL)]
        missing = next((file for file in holes if file.parent.is_dir() and not file.exists()), None)
        if config.hole_share and missing is not None:
            raise DataError(
                f"{missing} is not there; write a token shard with train.py tokens --holes {config.holes}, or leave "
                "--hole-share out"
            )
        return open_tokens(config.tokens, tokenizer, config.seed, config.hole_share)
    size = tokenizer.config.image_size
    images, held_out = (load_dataset(config.data, size, split, config.val_fraction) for split in ("train", "val"))
    with engine.main_first():  # which writes the shards; the others find them
        keep_class_numbers(config.output / "tokens" / TRAIN, images, held_out)
        train = tokenize(
            tokenizer,
            images,
            config.output / "tokens" / TRAIN,
            views=config.views,
            augment=config.augment,
            seed=config.seed,
            device=engine.device,
            hole_share=config.hole_share,
            holes=config.holes,
        )
        val = tokenize(
            tokenizer,
            held_out,
            config.output / "tokens" / VAL,
            views=PLAIN_VIEWS,
            augment=AugmentConfig(enabled=False),
            seed=config.seed,
            device=engine.device,
            hole_share=config.hole_share,
        )
    return TrainingTokens(train, val, images.family_numbers(), images.class_names)


def make_architecture(config: TransformerTraining, tokenizer: TokenizerConfig) -> TransformerConfig:
    """The preset's transformer over the tokens of a tokenizer and the classes of the data.

    Raises:
        ConfigError, DataError: no such preset, no such data.
    """
    architecture = dataclasses.replace(
        preset(config.model).transformer, codebook_size=tokenizer.codebook_size, num_tokens=tokenizer.num_tokens
    )
    if config.dropout is not None:
        architecture = dataclasses.replace(architecture, dropout=config.dropout)
    if architecture.num_classes:
        if config.tokens is not None:
            classes = len(class_names(config.tokens / TRAIN))
        else:
            classes = len(load_dataset(config.data, tokenizer.image_size, check=False).class_names)
        if not classes:
            print(f"{config.tokens or config.data} has no classes (folders of their own): training without")
        architecture = dataclasses.replace(architecture, num_classes=classes)
    return architecture


def train_transformer(config: TransformerTraining) -> dict[str, float]:
    """Run stage 2 and return the last validation's figures.

    Raises:
        TrainingError, DataError, ModelError, ConfigError, CheckpointError: what is wrong with the settings or the
            files.
    """
    engine = Engine(config, shard=config.fsdp)
    tokenizer = tokenizer_at(config.tokenizer, config.image_size).to(engine.device)
    architecture = make_architecture(config, tokenizer.config)
    return train(
        lambda: TransformerTask(config, architecture, tokenizer, engine, training_tokens(config, tokenizer, engine)),
        config,
        engine,
    )
