"""Stage 1: train the VQGAN (Esser et al., CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from maskgit.config import TokenizerConfig, preset
from maskgit.data import AugmentConfig, ImageDataset, load_dataset
from maskgit.metrics import codebook_usage, psnr, ssim
from maskgit.model_folder import save_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.tokenizer.losses import (
    PERCEPTUAL_NETWORKS,
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    hinge_discriminator_loss,
)
from maskgit.tokenizer.quantizer import CodebookTracker
from maskgit.training.loop import LoopConfig, StageTask, make_optimizer, pick_device, train
from maskgit.training.pictures import save_image_grid

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TokenizerTraining(LoopConfig):
    """Settings of stage 1."""

    output: Path = Path("runs/tokenizer")
    """Folder of the run: checkpoints, TensorBoard log, pictures, and the trained model."""
    steps: int = 5000
    """Optimizer steps in all."""
    batch_size: int = 32
    """Images per step."""
    lr: float = 1e-3
    """Peak learning rate."""
    model: str = "embedded"
    """Preset whose tokenizer is trained: embedded, lab, maskgit-256, maskgit-512."""
    data: str = "emoji"
    """A folder of images, or `emoji` for the embedded data set."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random resized crop and flip."""
    pixel_loss: Literal["l1", "l2"] = "l1"
    """Reconstruction loss on pixels in [-1, 1]."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    perceptual: Literal["none", "vgg16", "efficientnet-lite0"] = "none"
    """Network of the perceptual loss; vgg16 downloads its weights, efficientnet-lite0 has them in a package."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial loss, on top of the adaptive one; 0 trains no discriminator."""
    adversarial_start: int = 2000
    """First step with the adversarial loss."""
    validation_images: int = 256
    """Held-out images measured at each validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "validation_images")
        self.require_at_least(0, "commitment", "perceptual_weight", "adversarial_weight", "adversarial_start")


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


def to_signed(images: Tensor) -> Tensor:
    """uint8 images -> float in [-1, 1], in the layout that convolutions run fastest in."""
    return images.to(dtype=torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def plain_views(images: ImageDataset, indices: Any) -> Tensor:
    """The plain views of some images, uint8 [B, 3, S, S]."""
    return torch.from_numpy(np.stack([images.image(int(i)) for i in indices])).permute(0, 3, 1, 2)


class TokenizerTask(StageTask):
    """Reconstruction, commitment, perceptual and adversarial losses over one VQGAN."""

    model: VQGAN

    def __init__(self, config: TokenizerTraining, architecture: TokenizerConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        images = load_dataset(config.data, architecture.image_size, "train")
        self.dataset, self.families = ViewDataset(images, config.augment, config.seed), images.family_numbers()
        held_out = load_dataset(config.data, architecture.image_size, "val")
        chosen = np.linspace(0, len(held_out) - 1, min(len(held_out), config.validation_images)).astype(int)
        self.validation = plain_views(held_out, chosen)
        self.model = VQGAN(architecture).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tracker = CodebookTracker(self.model.codebook).to(device)
        self.optimizers = [make_optimizer(self.model, config)]
        self.perceptual = None
        if config.perceptual != "none":
            self.perceptual = PerceptualLoss(PERCEPTUAL_NETWORKS[config.perceptual]()).to(
                device,
                memory_format=torch.channels_last,  # type: ignore[call-overload]
            )
        self.discriminator = None
        if config.adversarial_weight:
            self.discriminator = PatchDiscriminator().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.optimizers.append(make_optimizer(self.discriminator, config))
        compiled: Any = torch.compile if config.compile else lambda function: function
        self.latents, self.decode_latents = compiled(self.model.latents), compiled(self.model.decode_latents)

    def modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"model": self.model, "tracker": self.tracker}
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator
        return modules

    def training_step(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        config, model = self.config, self.model
        images = to_signed(batch.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            latents = self.latents(images).float()  # [B, D, h, w]
            vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, D]
            self.tracker.start(model.codebook, vectors.detach())
            tokens = model.codebook.nearest(vectors.detach())
            codes = model.codebook(tokens).view(latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            commitment = F.mse_loss(latents, codes)
            # Straight-through: the decoder sees the codes, the encoder its gradient.
            reconstruction = self.decode_latents(latents + (codes - latents).detach()).float()
            pixel = F.l1_loss if config.pixel_loss == "l1" else F.mse_loss
            logged = {"pixel": pixel(reconstruction, images), "commitment": commitment}
            likeness = logged["pixel"]
            if self.perceptual is not None:
                logged["perceptual"] = self.perceptual(reconstruction, images)
                likeness = likeness + config.perceptual_weight * logged["perceptual"]
            loss = likeness + config.commitment * commitment
            adversarial = self.discriminator is not None and step >= config.adversarial_start
            if adversarial:
                assert self.discriminator is not None
                generator = -self.discriminator(reconstruction).float().mean()
                weight = adaptive_weight(likeness, generator, model.decoder.last_layer)
                loss = loss + config.adversarial_weight * weight * generator
                logged |= {"generator": generator, "adaptive_weight": weight}
        self._update(self.optimizers[0], model, loss)
        logged["revived"] = self.tracker.update(model.codebook, vectors.detach(), tokens)
        if adversarial:
            assert self.discriminator is not None
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                real, fake = self.discriminator(images).float(), self.discriminator(reconstruction.detach()).float()
                logged["discriminator"] = hinge_discriminator_loss(real, fake)
            self._update(self.optimizers[1], self.discriminator, logged["discriminator"])
        return {"loss": loss.detach()} | {name: value.detach() for name, value in logged.items()}

    def _update(self, optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(module.parameters(), self.config.clip)
        optimizer.step()

    def validate(self, model: nn.Module, writer: SummaryWriter, step: int, folder: Path) -> dict[str, float]:
        assert isinstance(model, VQGAN)
        pairs, tokens = [], []
        for batch in self.validation.split(64):
            images = to_signed(batch.to(self.device))
            tokens.append(model.encode(images))
            pairs.append((images, model.decode(tokens[-1]).clamp(-1, 1)))
        images, decoded = (torch.cat(side).float() for side in zip(*pairs, strict=True))
        used, perplexity = codebook_usage(torch.cat(tokens), model.config.codebook_size)
        shown = torch.stack([images[:32], decoded[:32]], dim=1).flatten(0, 1)
        grid = save_image_grid(shown, folder / "reconstructions.png", columns=16)
        writer.add_image("reconstructions", grid, step, dataformats="HWC")
        return {
            "psnr": float(psnr(images, decoded).mean()),
            "ssim": float(ssim(images, decoded).mean()),
            "l1": float((images - decoded).abs().mean()),
            "codes_used": used,
            "perplexity": perplexity,
        }

    def export(self, model: nn.Module, folder: Path, figures: dict[str, float]) -> None:
        assert isinstance(model, VQGAN)
        save_tokenizer(folder / "model", model)


def train_tokenizer(config: TokenizerTraining) -> dict[str, float]:
    """Run stage 1 and return the last validation's figures. Raises TrainingError, DataError, CheckpointError."""
    device = pick_device(config.device)
    return train(lambda: TokenizerTask(config, preset(config.model).tokenizer, device), config, device)
