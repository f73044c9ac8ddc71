"""Stage 1: train the VQGAN (Esser et al., CVPR 2021)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from maskgit.config import TokenizerConfig, preset
from maskgit.data import AugmentConfig, ImageDataset
from maskgit.data.pixels import plain_views, to_signed
from maskgit.metrics import codebook_usage, psnr, ssim
from maskgit.metrics.pairs import import_torchmetrics
from maskgit.network.folder import load_tokenizer, save_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.tokenizer.losses import (
    PERCEPTUAL_NETWORKS,
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    hinge_discriminator_loss,
)
from maskgit.tokenizer.quantizer import CodebookTracker
from maskgit.training.engine import Engine, Figures
from maskgit.training.health import collapsed_codebook, nothing_learned, one_colour, settled
from maskgit.training.loop import StageTask, train
from maskgit.training.optimizer import make_optimizer
from maskgit.training.samples import at_size, load_splits, spread
from maskgit.training.settings import TokenizerTraining, TrainingError
from maskgit.training.tracking import Tracker

ModuleT = TypeVar("ModuleT", bound=nn.Module)

PAIRS = 32  # in the picture of a validation


class ViewDataset(Dataset[Tensor]):
    """Augmented views of an image data set as uint8 [3, S, S], each drawn from its own position in the run."""

    def __init__(self, images: ImageDataset, augment: AugmentConfig, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        index, position = key
        rng = np.random.default_rng((self.seed, 1, position))
        return torch.from_numpy(self.images.view(index, rng, self.augment)).permute(2, 0, 1)


def _signed(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 in [-1, 1] on the device, in the layout that convolutions run fastest in."""
    return to_signed(images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last))


class Autoencoder(nn.Module):
    """A VQGAN's training forward pass, which several processes wrap as one module; if asked, by torch.compile."""

    def __init__(self, model: VQGAN, compiled: bool) -> None:
        super().__init__()
        self.model, self.latents, self.decode_latents = model, model.latents, model.decode_latents
        if compiled:
            self.latents, self.decode_latents = torch.compile(model.latents), torch.compile(model.decode_latents)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images [B, 3, S, S] -> latents and codes, float [B, D, h, w], tokens int64 [B h w], reconstructions."""
        latents = self.latents(images).float()
        shape = latents.permute(0, 2, 3, 1).shape  # [B, h, w, D]
        tokens = self.model.codebook.nearest(rows_of(latents.detach()))
        codes = self.model.codebook(tokens).view(shape).permute(0, 3, 1, 2)
        # Straight-through: the decoder sees the codes, the encoder its gradient.
        return latents, codes, tokens, self.decode_latents(latents + (codes - latents).detach()).float()


def rows_of(latents: Tensor) -> Tensor:
    """[B, D, h, w] -> [B h w, D]."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


class TokenizerTask(StageTask):
    """Reconstruction, commitment, perceptual and adversarial losses over one VQGAN."""

    model: VQGAN
    judged_by, learned_by = "l1", "pixel"
    against_overfitting = "take more images, fewer --steps, or --augment.enabled"
    picture = "reconstructions.png"

    def __init__(
        self,
        config: TokenizerTraining,
        architecture: TokenizerConfig,
        engine: Engine,
        data: Sequence[ImageDataset] = (),
    ) -> None:
        """`data`: images to train on, and held out; by default, those that the settings name."""
        import_torchmetrics()  # it is needed at the first validation: what is missing is said before
        self.config, self.engine, self.device = config, engine, engine.device
        torch.manual_seed(config.seed)
        images, self.held_out = data or load_splits(config, architecture.image_size)
        self.dataset = ViewDataset(images, config.augment, config.seed)
        self.model = self._place(VQGAN(architecture))
        if config.decoder_of is not None:
            self.model.load_state_dict(_initial_weights(config.decoder_of, architecture))
            for part in (self.model.encoder, self.model.quant_conv):
                part.requires_grad_(False)
        self.tracker = CodebookTracker(self.model.codebook).to(self.device)
        self.perceptual, self.discriminator = None, None
        if config.perceptual != "none":
            self.perceptual = self._place(PerceptualLoss(PERCEPTUAL_NETWORKS[config.perceptual]()))
        if config.adversarial_weight:
            self.discriminator = self._place(PatchDiscriminator())

    @functools.cached_property
    def validation(self) -> Tensor:
        """Held-out images, uint8 [n, 3, S, S], which only the process that validates reads."""
        return plain_views(self.held_out, spread(len(self.held_out), self.config.validation_images))

    def _place(self, network: ModuleT) -> ModuleT:
        """A network on the device, in the layout that convolutions run fastest in."""
        return network.to(self.device).to(memory_format=torch.channels_last)

    def prepare(self) -> None:
        networks = [self.model] if self.discriminator is None else [self.model, self.discriminator]
        self.optimizers = [make_optimizer(network, self.config) for network in networks]
        self.autoencoder = self.engine.wrap(Autoencoder(self.model, self.config.compile))
        self.judge = None if self.discriminator is None else self.engine.wrap(self.discriminator)

    def modules(self) -> dict[str, nn.Module]:
        modules = {"model": self.model, "tracker": self.tracker, "discriminator": self.discriminator}
        return {name: module for name, module in modules.items() if module is not None}

    def flops_per_image(self) -> float:
        """Of the VQGAN's matrix products and convolutions: a backward pass takes twice what a forward pass does."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model, size = VQGAN(self.model.config), self.model.config.image_size
            model.decode_latents(model.latents(torch.empty(1, 3, size, size)))
        return 3.0 * counter.get_total_flops()

    def training_step(self, batch: Tensor, step: int) -> Figures:
        """One step of the autoencoder, one of the codebook's moving averages, one of the discriminator.

        The codebook sees the vectors of the whole batch, in all processes. The adaptive weight of the adversarial loss
        is that of a part (over all processes): the only figure that depends on config.accumulate.
        """
        engine, model = self.engine, self.model
        images = _signed(batch, self.device)
        if step == 0 and self.config.decoder_of is None:
            self._start_codebook(images)
        adversarial = self.discriminator is not None and step >= self.config.adversarial_start
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)  # it judges now, and learns below
        outputs = []

        def losses(part: slice) -> Figures:
            terms, output = self._generator_losses(images[part], adversarial)
            outputs.append(output)
            return {name: term * (len(images[part]) / self.config.batch_size) for name, term in terms.items()}

        logged = engine.descend(self.optimizers[:1], self.autoencoder, len(images), losses)
        latents, tokens, reconstructions = (torch.cat(kind) for kind in zip(*outputs, strict=True))
        if self.config.decoder_of is None:
            vectors, tokens = engine.whole(rows_of(latents).contiguous()), engine.whole(tokens)
            with engine.unless_broken(model.codebook.weight.data, self.tracker.count, self.tracker.total):
                logged["revived"] = self.tracker.update(model.codebook, vectors, tokens)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
        if adversarial:
            logged["discriminator"] = self._train_discriminator(images, reconstructions)
        return logged

    @torch.no_grad()
    def _start_codebook(self, images: Tensor) -> None:
        """Place the codes among the vectors of the first batch."""
        with self.engine.autocast():
            parts = images.chunk(self.config.accumulate)
            vectors = torch.cat([rows_of(self.model.latents(part).float()) for part in parts])
        self.tracker.start(self.model.codebook, self.engine.whole(vectors.contiguous()))

    def _generator_losses(
        self, images: Tensor, adversarial: bool
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The loss and its terms, means over the images [b, 3, S, S]; and detached latents, tokens, reconstructions."""
        config = self.config
        latents, codes, tokens, reconstruction = self.autoencoder(images)
        pixel = F.l1_loss if config.pixel_loss == "l1" else F.mse_loss
        losses = {"pixel": pixel(reconstruction, images), "commitment": F.mse_loss(latents, codes)}
        likeness = losses["pixel"]
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(reconstruction, images)
            likeness = likeness + config.perceptual_weight * losses["perceptual"]
        loss = likeness + config.commitment * losses["commitment"]
        if adversarial:
            assert self.discriminator is not None
            generator = -self.discriminator(reconstruction).float().mean()
            weight = adaptive_weight(likeness, generator, self.model.decoder.last_layer, self.engine.mean)
            loss = loss + config.adversarial_weight * weight * generator
            losses |= {"generator": generator, "adaptive_weight": weight}
        return {"loss": loss} | losses, (latents.detach(), tokens, reconstruction.detach())

    def _train_discriminator(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """A step of the discriminator on images and reconstructions [b, 3, S, S]; returns its loss, float []."""
        judge = self.judge
        assert judge is not None

        def losses(part: slice) -> Figures:
            real, fake = judge(images[part]).float(), judge(reconstructions[part]).float()
            return {"loss": hinge_discriminator_loss(real, fake) * (len(images[part]) / self.config.batch_size)}

        return self.engine.descend(self.optimizers[1:], judge, len(images), losses)["loss"]

    def validate(self, model: nn.Module, tracker: Tracker, step: int) -> dict[str, float]:
        assert isinstance(model, VQGAN)
        pairs, tokens = [], []
        for batch in self.validation.split(64):
            images = _signed(batch, self.device)
            tokens.append(model.encode(images))
            pairs.append((images, model.decode(tokens[-1]).clamp(-1, 1)))
        images, decoded = (torch.cat(side).float() for side in zip(*pairs, strict=True))
        size = model.config.codebook_size
        used, perplexity = codebook_usage(torch.cat(tokens), size)
        l1 = float((images - decoded).abs().mean())
        faults = {"codebook": collapsed_codebook(used, perplexity, size), "learning": None, "colour": None}
        if settled(step, self.config):
            guess = float((images - images.mean((0, 2, 3), keepdim=True)).abs().mean())
            faults["learning"] = nothing_learned(l1, guess, "one colour for all, their mean")
            faults["colour"] = one_colour(decoded, images)
        tracker.warn(faults)
        show_pairs(images, decoded, tracker, step)
        return {
            "psnr": float(psnr(images, decoded).mean()),
            "ssim": float(ssim(images, decoded).mean()),
            "l1": l1,
            "codes_used": used,
            "perplexity": perplexity,
        }

    def show(self, model: nn.Module, tracker: Tracker, step: int, most: int) -> None:
        assert isinstance(model, VQGAN)
        images = _signed(self.validation[: min(most, PAIRS)], self.device)
        show_pairs(images, model.decode(model.encode(images)), tracker, step)

    def export(self, model: nn.Module, folder: Path, figures: dict[str, float]) -> None:
        assert isinstance(model, VQGAN)
        save_tokenizer(folder / "model", model)


def show_pairs(images: Tensor, decoded: Tensor, tracker: Tracker, step: int) -> None:
    """The first images and what became of them, side by side; float [B, 3, S, S] each."""
    shown = torch.stack([images[:PAIRS], decoded[:PAIRS]], dim=1).flatten(0, 1)
    tracker.add_pictures("reconstructions", shown, step, columns=16, file=TokenizerTask.picture)


def _initial_weights(folder: Path, architecture: TokenizerConfig) -> dict[str, Tensor]:
    tokenizer = load_tokenizer(folder)
    ours, theirs = (dataclasses.replace(config, image_size=config.patch) for config in (architecture, tokenizer.config))
    if ours != theirs:  # but for the size of the pictures
        raise TrainingError(f"--decoder-of {folder}: its tokenizer is built otherwise than that of --model")
    return tokenizer.state_dict()


def tokenizer_architecture(config: TokenizerTraining) -> TokenizerConfig:
    """The preset's tokenizer for pictures of the size asked for. Raises ConfigError: no such preset, no such size."""
    return at_size(preset(config.model).tokenizer, config.image_size)


def train_tokenizer(config: TokenizerTraining) -> dict[str, float]:
    """Run stage 1 and return the last validation's figures.

    Raises TrainingError, DataError, ConfigError and CheckpointError.
    """
    architecture = tokenizer_architecture(config)
    engine = Engine(config)
    return train(lambda: TokenizerTask(config, architecture, engine), config, engine)
