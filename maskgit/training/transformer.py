"""Stage 2: train the transformer by masked visual token modeling (Chang et al., "MaskGIT", CVPR 2022, section 3.2)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskgit.config import HaltonConfig, TokenizerConfig, TransformerConfig, preset
from maskgit.data import load_dataset
from maskgit.data.tokens import TokenSample, class_names
from maskgit.decoding import DecodeConfig
from maskgit.decoding.masking import mvtm_masks
from maskgit.network.folder import Model, make_transformer, save_model
from maskgit.network.halton import HaltonTransformer, Modulation
from maskgit.network.partial import masked_rows
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit.training.engine import Engine, Figures
from maskgit.training.graphs import check_graphs
from maskgit.training.health import guess_by_frequency, nothing_learned, settled
from maskgit.training.loop import StageTask, Watch, train
from maskgit.training.optimizer import Muon, make_optimizer
from maskgit.training.samples import spread
from maskgit.training.settings import TransformerTraining
from maskgit.training.tokens import TRAIN, TrainingTokens, tokenizer_at, training_tokens
from maskgit.training.tracking import Tracker
from maskgit.training.validation import PICTURE, Validation
from maskgit.training.warm_start import starting_architecture, starting_model

_ROWS_STRIDE = 256  # the numbers of tokens that go through the last block are multiples of it


class TransformerTask(StageTask):
    """Cross-entropy of the masked tokens."""

    model: Transformer | HaltonTransformer
    judged_by, picture = "loss", PICTURE
    against_overfitting = "take more images, more --views, more --dropout, or fewer --steps"
    labeled: bool = True
    """Whether a model with classes is told those of the images."""

    def __init__(
        self,
        config: TransformerTraining,
        architecture: TransformerConfig | HaltonConfig,
        tokenizer: VQGAN,
        engine: Engine,
        tokens: TrainingTokens,
    ) -> None:
        self.config, self.engine, self.device, self.tokenizer = config, engine, engine.device, tokenizer
        torch.manual_seed(config.seed)
        self.origin, self.decoding = {}, DecodeConfig()
        if config.init is None:
            self.model = make_transformer(architecture).to(self.device)
            self.class_names = tokens.class_names if architecture.num_classes else []
        else:
            start = starting_model(config, architecture, tokenizer, tokens.class_names)
            self.model, self.class_names = start.transformer.to(self.device), start.class_names
            self.origin, self.decoding = {"init": start.metadata}, start.decoding
            self.labeled = bool(tokens.class_names)
            tokens = tokens.numbered_as(start.class_names)  # by which the weights know the classes
        self.model.checkpoint_blocks = config.activation_checkpointing
        self.tokens_per_image, self.graphs = architecture.num_tokens, config.graphs
        self.dataset, held_out, _ = tokens
        self.validation = Validation(config, architecture, held_out, tokenizer, engine)
        self.validation.has_classes &= self.labeled

    def prepare(self) -> None:
        self.make_optimizers()
        wrapped = self.engine.wrap(self.model)
        self.wrapped: Any = self.compiled(wrapped) if self.config.compile else wrapped

    def make_optimizers(self) -> None:
        """AdamW, and with `--muon` Muon, which moves the matrices of the blocks."""
        config = self.config
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2] if config.muon else []
        self.optimizers = [make_optimizer(self.model, config, besides=matrices)]
        if matrices:
            self.optimizers.append(Muon(matrices, config.muon, config.weight_decay))

    def flops_per_image(self) -> float:
        """2 for each weight of a matrix and token, 4 N dim for each token's attention; the backward pass twice that.

        The matrices of modulations count once an image.
        """
        config, modules = self.model.config, list(self.model.modules())
        once = sum(_matrices(module) for module in modules if isinstance(module, Modulation))
        weights = _matrices(self.model) - once
        weights += config.codebook_size * config.dim if isinstance(config, HaltonConfig) or config.tied else 0
        tokens = config.num_tokens * (2 * weights + 4 * config.depth * config.num_tokens * config.dim)
        return 3.0 * (tokens + 2 * once)

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def _labels(self, labels: Tensor) -> Tensor | None:
        return labels.to(self.device) if self.model.config.num_classes and self.labeled else None

    def training_step(self, batch: TokenSample, step: int) -> Figures:
        engine = self.engine
        tokens, visible, candidates, classes = (part.to(self.device, non_blocking=True) for part in batch)
        masked, labels = self._draw(candidates, self._labels(classes))
        held = visible.masked_fill(masked, self.model.config.mask_token_id)
        counted = masked if self.config.loss_on == "masked" else torch.ones_like(masked)
        # Means over the tokens of the whole batch, of which images and parts have different numbers.
        counts = engine.totals([{"loss": counted.sum().float(), "accuracy": masked.sum().float()}])

        def losses(part: slice) -> Figures:
            engine.new_noise(step, part)
            known = held[part], None if labels is None else labels[part]
            loss, hits = self._loss(*known, tokens[part], counted[part], masked[part])
            return {"loss": loss / counts["loss"], "accuracy": hits / counts["accuracy"]}

        return engine.descend(self.optimizers, self.wrapped, len(tokens), losses)

    def compiled(self, network: nn.Module) -> Any:
        """`network` with `--compile`. The sizes of a run don't change but for the rows (see `_rows`)."""
        # On a CPU PyTorch draws the seeds of dropout. Compiled code would draw a seed anew wherever it is used: for
        # every few elements of a mask.
        options: dict[str, Any] = {"fallback_random": True} if self.device.type == "cpu" else {}
        return torch.compile(network, dynamic=False, options=options)

    def _loss(
        self, held: Tensor, labels: Tensor | None, tokens: Tensor, counted: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses of what is counted, float [], and the right guesses of what is masked, int64 []."""
        rows = {"rows": self._rows(counted)} if isinstance(self.model, Transformer) else {}
        return self.wrapped(
            held,
            labels,
            **rows,
            targets=tokens,
            counted=counted,
            label_smoothing=self.config.label_smoothing,
            hits_among=masked,
        )

    def _rows(self, counted: Tensor) -> Tensor | None:
        """The numbers of the tokens that the last block is evaluated at, those `counted`, bool [b, N]; None: at all."""
        # How many these are differs from step to step, for which a GPU would have to be waited for, and compiled code
        # for processes that share gradients, which is in parts, be compiled again.
        in_parts = self.config.compile and self.engine.joined
        if self.device.type != "cpu" or self.config.loss_on == "all" or in_parts:
            return None
        # A few more, so that the sizes of tensors, and with them the places in memory, are of a few kinds.
        count = min(counted.numel(), -(-int(counted.sum()) // _ROWS_STRIDE) * _ROWS_STRIDE)
        rows = masked_rows(counted.flatten()[None], count)
        if self.config.compile:
            torch._dynamo.mark_dynamic(rows, 0)
        return rows

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

    def validate(self, model: nn.Module, tracker: Tracker, step: int) -> dict[str, float]:
        assert isinstance(model, Transformer | HaltonTransformer)
        figures = self.validation(model, tracker, step)
        stalls = None
        if settled(step, self.config):
            some = self.dataset.tokens[0, spread(len(self.dataset), 1000)].astype(np.int64)
            guess = guess_by_frequency(torch.from_numpy(some), self.validation.plain.tokens, model.config.codebook_size)
            stalls = nothing_learned(figures["token_loss"], guess, "who only knows how frequent each code is")
        tracker.warn({"learning": stalls})
        return figures

    def show(self, model: nn.Module, tracker: Tracker, step: int, most: int) -> None:
        self.validation.show(model, tracker, step, most)

    def export(self, model: nn.Module, folder: Path, figures: dict[str, float]) -> None:
        assert isinstance(model, Transformer | HaltonTransformer)
        metadata = {"validation": figures, **self.origin}
        save_model(folder / "model", Model(self.tokenizer, model, list(self.class_names), metadata, self.decoding))


def _matrices(module: nn.Module) -> int:
    """The number of weights of all linear layers."""
    return sum(m.out_features * m.in_features for m in module.modules() if isinstance(m, nn.Linear))


def make_architecture(config: TransformerTraining, tokenizer: TokenizerConfig) -> TransformerConfig | HaltonConfig:
    """The transformer of the preset, or of the model to go on from, over a tokenizer's tokens and the data's classes.

    A model to go on from keeps its classes where the data has none, and has none where it never had any.

    Args:
        config: as `settled`.

    Raises ConfigError, ModelError, DataError and TrainingError: no such preset, model or data, or they don't fit.
    """
    if config.init is None:
        assert config.model is not None
        architecture: TransformerConfig | HaltonConfig = preset(config.model).transformer
    else:
        architecture = starting_architecture(config, tokenizer)
    changes: dict[str, Any] = {"codebook_size": tokenizer.codebook_size, "num_tokens": tokenizer.num_tokens}
    if config.dropout is not None:
        changes["dropout"] = config.dropout
    if architecture.num_classes or config.init is not None:
        names = data_classes(config, tokenizer)
        source = config.tokens or config.data
        if architecture.num_classes and (names or config.init is None):
            changes["num_classes"] = len(names)
        if architecture.num_classes and not names:
            kept = f"; the {architecture.num_classes} of {config.init} stay as they are" * (config.init is not None)
            print(f"{source} has no classes (folders of their own): training without{kept}")
        elif not architecture.num_classes and names:
            print(f"{config.init} has no classes: training without the {len(names)} of {source}")
    return dataclasses.replace(architecture, **changes)


def data_classes(config: TransformerTraining, tokenizer: TokenizerConfig) -> list[str]:
    """The names of the data's classes. Raises DataError."""
    if config.tokens is not None:
        return class_names(config.tokens / TRAIN)
    return load_dataset(config.data, tokenizer.image_size, check=False).class_names


def train_transformer(config: TransformerTraining, watch: Watch | None = None) -> dict[str, float]:
    """Run stage 2 and return the last validation's figures; `watch` may end it before its last step.

    Raises TrainingError, DataError, ModelError and ConfigError: what is wrong with the settings or the files.
    """
    config = config.settled()
    engine = Engine(config, shard=config.fsdp)
    check_graphs(config, engine)
    assert config.tokenizer is not None
    tokenizer = tokenizer_at(config.tokenizer, config.image_size).to(engine.device)
    architecture = make_architecture(config, tokenizer.config)
    return train(
        lambda: TransformerTask(config, architecture, tokenizer, engine, training_tokens(config, tokenizer, engine)),
        config,
        engine,
        watch,
    )
