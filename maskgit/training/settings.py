"""Every option of every command, and what its values may be; what is wrong with one is a TrainingError."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from maskgit.console import flag
from maskgit.data import AugmentConfig
from maskgit.decoding import DECODERS
from maskgit.decoding.masking import Count, Per
from maskgit.decoding.schedules import check_schedule
from maskgit_kernels.backend import BACKENDS

MOST = 10**9 - 1
"""The largest step that the name of a checkpoint has room for; more than anything else that is counted will be."""
MOST_SEED = 10**13
"""PyTorch takes a seed of 64 bits, and each step needs some of its own."""


class TrainingError(RuntimeError):
    """A run that can't start or go on; the message says what to change."""


def require(config: object, fits: Callable[[Any], bool], wanted: str, *names: str) -> None:
    """Raise a TrainingError where one of the named settings does not fit; None, where it may be, always does."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise TrainingError(f"{flag(name)} {value}: must be {wanted}")


def require_at_least(config: object, least: float, *names: str) -> None:
    """Likewise, where a number is below `least`, or larger than any can be."""
    for name in names:
        is_whole = isinstance(getattr(config, name), int)
        most = MOST_SEED if name == "seed" else MOST if is_whole else sys.float_info.max
        require(config, lambda value: value >= least, f"at least {least}", name)
        require(config, most.__ge__, f"at most {most}", name)


def require_share(config: object, *names: str) -> None:
    """Likewise, where a number is outside [0, 1)."""
    require(config, lambda value: 0 <= value < 1, "in [0, 1)", *names)


def require_one_of(config: object, choices: tuple[str, ...], name: str) -> None:
    """Likewise, where a word is none of `choices`."""
    require(config, choices.__contains__, f"one of {', '.join(choices)}", name)


@dataclass(frozen=True)
class LoopConfig:
    """What both stages have in common. Where a stage has another default, its description stays."""

    output: Path = Path("runs")
    """Folder of the run: checkpoints, logs, pictures, and the trained model."""
    steps: int = 5000
    """Optimizer steps in all."""
    batch_size: int = 32
    """Images per step, over all processes."""
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup: int = 100
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """AdamW's decay of the mean of the gradients."""
    beta2: float = 0.99
    """AdamW's decay of the mean of their squares."""
    weight_decay: float = 1e-4
    """AdamW's weight decay, on matrices and convolutions only."""
    clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is what is validated and saved; 0 for none. It grows to that
    value, (1 + step) / (10 + step) at most, so that a short run's average isn't its random start."""
    precision: str = "auto"
    """bf16 or fp16 (autocast; fp16 with a scaled loss, on a GPU only), or float32. auto is bf16 where that is fast, on
    GPUs from compute capability 8.0 on and some CPUs, and float32 elsewhere; a run that goes on keeps its own."""
    accumulate: int = 1
    """Equal parts that each process's images of a step are worked on in, one after the other: less memory for the same
    step."""
    compile: bool = False
    """Run the networks through torch.compile: a minute or two of compilation first. On a CPU it speeds up the
    tokenizer; the transformer gains a few percent."""
    val_fraction: float = 0.1
    """Share of the images that is held out to validate on, chosen by their names. Give both stages the same, or the
    second validates on images that the first has seen."""
    seed: int = 0
    """Seed of everything that is random in the run."""
    workers: int = 0
    """Processes that read images, for each process that trains; 0 reads in the training process."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one. Under torchrun each process takes its own GPU."""
    kernels: str | None = None
    """Implementation of attention: triton, torch, or auto, the better of them that can run. By default what the
    environment variable MASKGIT_KERNELS says, or auto."""
    log_every: int = 20
    """Steps between two lines of the log."""
    validate_every: int = 500
    """Steps between two validations, each with a picture."""
    save_every: int = 250
    """Steps between two checkpoints."""
    keep: int = 2
    """Newest checkpoints kept, beside the one of the best validation."""
    wandb: bool = False
    """Log to Weights & Biases as well as to TensorBoard. Its own environment variables apply: WANDB_PROJECT,
    WANDB_MODE=offline, ..."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder (from the start if there is none)."""

    def __post_init__(self) -> None:
        require_at_least(
            self, 1, "steps", "batch_size", "accumulate", "log_every", "validate_every", "save_every", "keep"
        )
        require_at_least(self, 0, "lr", "min_lr", "warmup", "weight_decay", "clip", "seed", "workers")
        require_share(self, "beta1", "beta2", "ema")
        require(self, lambda value: 0 < value < 1, "between 0 and 1", "val_fraction")
        require_one_of(self, BACKENDS, "kernels")
        require_one_of(self, ("auto", "bf16", "fp16", "float32"), "precision")

    # A resumed run may change only what has no influence on the losses. How the batch is split has one with dropout,
    # whose noise differs then, and in the last digits without; but a run must be able to move to other machines.
    FREE: ClassVar[tuple[str, ...]] = (
        *("output", "device", "workers", "accumulate"),
        *("log_every", "validate_every", "save_every", "keep", "wandb", "resume"),
    )
    PLACES: ClassVar[tuple[str, ...]] = ("data", "tokens", "tokenizer", "init", "decoder_of", "hole_masks")
    """Settings that are paths; `data` may also be "avatars"."""


@dataclass(frozen=True)
class TokenizerTraining(LoopConfig):
    """Stage 1: train the VQGAN."""

    output: Path = Path("runs/tokenizer")
    """Folder of the run: checkpoints, TensorBoard log, pictures, and the trained model."""
    decoder_of: Path | None = None
    """Model folder with a trained tokenizer of the same architecture, of which the decoder alone is trained on. The
    tokens stay what they are, so a transformer that was trained on them still fits. --image-size may be another."""
    model: str = "embedded"
    """Preset whose tokenizer is trained: embedded, lab, maskgit-256, maskgit-512."""
    image_size: int | None = None
    """Side of the pictures in pixels, any multiple of the preset's patch; by default the preset's. Stage 2 takes it
    from the tokenizer."""
    data: str = "avatars"
    """A folder of images, or `avatars` for the embedded data set."""
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
        require_at_least(self, 1, "validation_images", "image_size")
        require_at_least(self, 0, "commitment", "perceptual_weight", "adversarial_weight", "adversarial_start")


LossOn = Literal["masked", "all"]


@dataclass(frozen=True)
class TransformerTraining(LoopConfig):
    """Stage 2: train the transformer."""

    output: Path = Path("runs/transformer")
    """Folder of the run: checkpoints, tokens, TensorBoard log, pictures, and the trained model."""
    tokenizer: Path | None = None
    """Folder of the trained tokenizer: what stage 1 wrote, or any model folder. By default runs/tokenizer/model, or the
    folder of --init."""
    steps: int = 20000
    beta2: float = 0.96
    """AdamW's decay of the mean of the squared gradients."""
    weight_decay: float = 0.05
    """AdamW's weight decay, on matrices only."""
    muon: float = 0.0
    """Move the matrices of the blocks by Muon, at a learning rate so many times --lr, 4 for example
    (benchmarks/speedrun.md); the rest stays with AdamW. 0: AdamW moves all."""
    ema: float = 0.999
    init: Path | None = None
    """Model folder whose transformer to go on from, instead of random weights: one of our own, or converted. Its size
    and its tokenizer are the run's; classes of the data that it doesn't know by name are added in the place of its own.
    Optimizer, learning rate and average start anew."""
    interpolate: bool = False
    """With --init: the model may have been trained on smaller pictures. What it knows of each position is interpolated
    to the larger grid."""
    image_size: int | None = None
    """Side of the pictures in pixels; by default the tokenizer's. It is convolutional, so any multiple of its patch
    will do."""
    model: str | None = None
    """Preset whose transformer is trained: embedded, lab, maskgit-256, maskgit-512. By default embedded, or with --init
    what that model is."""
    data: str = "avatars"
    """A folder of images, tar archives ('shards/train-{000..009}.tar'), or `avatars` for the embedded data set."""
    tokens: Path | None = None
    """Folder of token shards that `train.py tokens` wrote, or the folder `tokens` of an earlier run. Images aren't
    needed then: --data, --val-fraction, --views, --augment and --holes say nothing."""
    views: int = 2
    """Views of each image that are tokenized: itself, its mirror, and then random crops."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random resized crop and flip of the views after the first two."""
    dropout: float | None = None
    """Dropout of the transformer; by default what the preset, or the model of --init, says."""
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
    hole_masks: Path | None = None
    """With --hole-share, a folder of masks, at any depth, that holes are drawn from instead of made ones, for training
    and for validation: white is hidden, as inpaint.py reads it. With --tokens it is only made sure that its holes came
    from these masks."""
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
    graphs: bool = False
    """Replay the training step as a CUDA graph, one launch for a step: for small batches on one GPU, with bf16 or
    float32. Off by default, because it has been tested on a stand-in only and on no GPU yet."""

    FREE = (*LoopConfig.FREE, "fsdp", "activation_checkpointing", "graphs", "eval_every", "eval_images")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "views", "holes", "validation_rounds", "validation_images", "image_size")
        require_at_least(self, 2, "eval_images")
        require_at_least(self, 0, "muon")
        require_share(self, "label_smoothing", "hole_share", "class_dropout", "dropout")
        require(self, lambda value: 0 < value <= 1, "in (0, 1]", "mask_ratio")
        for name, choices in (("mask_per", Per), ("mask_count", Count), ("loss_on", LossOn)):
            require_one_of(self, get_args(choices), name)
        if self.hole_masks is not None and not self.hole_share:
            raise TrainingError(f"--hole-masks {self.hole_masks}: needs --hole-share above 0, such as 0.9")
        every = self.validate_every
        wanted = f"a multiple of --validate-every {every}, or 0"
        require(self, lambda value: value >= 0 and value % every == 0, wanted, "eval_every")
        try:
            check_schedule(self.schedule)
        except ValueError as error:
            raise TrainingError(f"--schedule {self.schedule}: {error}") from error

    def settled(self) -> TransformerTraining:
        """With the preset and the tokenizer that are meant where none is named."""
        if self.init is not None:
            return replace(self, tokenizer=self.tokenizer or self.init)
        return replace(self, model=self.model or "embedded", tokenizer=self.tokenizer or TokensConfig.tokenizer)


@dataclass(frozen=True)
class TokensConfig:
    """Before stage 2, for large data sets: tokenize them, with many processes."""

    output: Path = Path("runs/tokens")
    """Folder of the shards, which `train.py transformer --tokens` takes. Run the same command again after an
    interruption: finished parts are kept."""
    tokenizer: Path = Path("runs/tokenizer/model")
    """Folder of the trained tokenizer: what stage 1 wrote, or any model folder."""
    data: str = "avatars"
    """A folder of images, tar archives ('shards/train-{000..009}.tar'), or `avatars` for the embedded data set."""
    val_data: str | None = None
    """Images to validate on, if they are apart; by default a share of --data, the same as in the other stages."""
    val_fraction: float = 0.1
    """That share."""
    image_size: int | None = None
    """Side of the pictures in pixels; by default the tokenizer's."""
    views: int = 2
    """Views of each image: itself, its mirror, and then random crops."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random resized crop and flip of the views after the first two."""
    holes: int = 0
    """Random holes in each view, for `--hole-share`: as many more times the images are tokenized."""
    hole_masks: Path | None = None
    """With --holes, a folder of masks, at any depth, that holes are drawn from instead of made ones: white is hidden,
    as inpaint.py reads it."""
    seed: int = 0
    """Seed of crops and holes."""
    processes: int | None = None
    """Processes that read and tokenize; by default one for each core. The result doesn't depend on their number."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one. `cuda` spreads the processes over all GPUs."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "views", "processes", "image_size")
        require_at_least(self, 0, "holes", "seed")
        if self.hole_masks is not None and not self.holes:
            raise TrainingError(f"--hole-masks {self.hole_masks}: needs --holes of at least 1")
        require(self, lambda value: 0 < value < 1, "between 0 and 1", "val_fraction")


@dataclass(frozen=True)
class ModelTraining:
    """All of it in a given time: tokenizer, tokens, transformer, and the model folder that comes of them."""

    output: Path = Path("runs/model")
    """Folder of it all: tokenizer, tokens and transformer, plan.json, which --resume goes by, and in the end model,
    which inpaint.py takes."""
    minutes: float = 60.0
    """How long it may take in all. How many steps each stage has comes from how long they take on this machine."""
    tokenizer_share: float = 0.3
    """Share of the time that the tokenizer is trained for. Then all images are tokenized, and the transformer has what
    is left."""
    model: str = "embedded"
    """Preset that is trained: embedded, lab, maskgit-256, maskgit-512."""
    image_size: int | None = None
    """Side of the pictures in pixels, any multiple of the preset's patch; by default the preset's."""
    data: str = TokenizerTraining.data
    """A folder of images, tar archives ('shards/train-{000..009}.tar'), or the name of the embedded data set."""
    crops_a_minute: float = 0.0
    """Squares that are cut out of the images, at all scales, for each minute that it may take, and trained on in their
    place: for photographs, of which windows around holes show pieces. 0: the images themselves."""
    val_fraction: float = LoopConfig.val_fraction
    """Share of the images that is held out to validate on, chosen by their names."""
    hole_masks: Path | None = None
    """A folder of masks, at any depth, that the holes of the training are drawn from instead of made ones: white is
    hidden, as inpaint.py reads it."""
    tokenizer_batch_size: int | None = None
    """Images per step of the tokenizer; by default 16, and 64 on a GPU."""
    batch_size: int | None = None
    """Images per step of the transformer; by default 32, and 128 on a GPU."""
    decoder: str = "maskgit"
    """How the model decodes if nothing else is said: maskgit, halton, valeo, lab-perturbed, lab-sampled, lab-greedy."""
    seed: int = LoopConfig.seed
    """Seed of everything that is random."""
    device: str = "auto"
    """cuda, cpu, ... ; auto takes a GPU where there is one."""
    resume: bool = False
    """Go on where the last start of the same command ended (from the start if there was none)."""

    def __post_init__(self) -> None:
        require(self, lambda value: 0 < value <= 525_600, "above 0, and a year (525600) at most", "minutes")
        require(self, lambda value: 0 < value < 1, "between 0 and 1", "tokenizer_share", "val_fraction")
        require_at_least(self, 1, "tokenizer_batch_size", "batch_size", "image_size")
        require_at_least(self, 0, "seed", "crops_a_minute")
        require(self, lambda value: value * self.minutes <= MOST, f"at most {MOST} in all", "crops_a_minute")
        require_one_of(self, tuple(DECODERS), "decoder")


STAGES: dict[str, type[LoopConfig]] = {"tokenizer": TokenizerTraining, "transformer": TransformerTraining}
"""The settings of each stage, by the name of its command."""
COMMANDS: dict[str, type] = {
    "model": ModelTraining,
    "tokenizer": TokenizerTraining,
    "tokens": TokensConfig,
    "transformer": TransformerTraining,
}
