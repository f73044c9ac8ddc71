"""Stage 2 as each source trains it, by name: `train.py transformer --recipe NAME`.

The names are those of the decoders (`maskgit.decoding.DECODERS`): one name takes a system from training to decoding. A
recipe sets what its source states; what a source leaves open keeps our default. Epochs can't be settings here, since
steps are counted: steps = epochs * images / batch size (`--dry-run` says how many epochs the steps are).
"""

from __future__ import annotations

import dataclasses

from maskgit.training.settings import TransformerTraining

# What the two that train on ImageNet at 256 px have in common; the learning rate is constant.
_IMAGENET = TransformerTraining(model="maskgit-256", lr=1e-4, min_lr=1e-4, label_smoothing=0.1)
_IMAGENET = dataclasses.replace(_IMAGENET, log_every=100, validate_every=10_000, save_every=5_000)
# The labs show their whole loops: no average of the weights, no clipping, the tokens of one batch masked alike, and a
# loss over all tokens. AdamW as PyTorch has it where they don't show more of it.
_LAB = TransformerTraining(model="lab", lr=1e-4, min_lr=1e-4, warmup=0, beta2=0.999, weight_decay=0.01, clip=0.0)
_LAB = dataclasses.replace(_LAB, ema=0.0, precision="float32", mask_per="batch", loss_on="all")

RECIPES: dict[str, TransformerTraining] = {
    # Seed 003, the paper (section 4.1): 300 epochs of ImageNet with Adam at batches of 256. It names no learning rate;
    # this is the reproduction's. Adam has no weight decay.
    "maskgit": dataclasses.replace(_IMAGENET, steps=1_500_000, batch_size=256, weight_decay=0.0, class_dropout=0.0),
    # Seed 000: 15 epochs at batches of 24; the share of each batch is gamma(r).
    "lab-perturbed": dataclasses.replace(_LAB, batch_size=24),
    # Seed 001: each token masked with probability 1/2, gradients accumulated (over how many batches, it doesn't say;
    # nor its learning rate, which here is seed 000's). Its text has the loss ignore "positions with mask tokens", its
    # code ignores targets that are mask tokens, of which there are none: so the loss is over all tokens.
    "lab-sampled": dataclasses.replace(_LAB, mask_ratio=0.5, mask_count="bernoulli"),
    # Seed 002: floor(r * N) tokens are kept, which is the linear schedule (or each is, with probability r: its other
    # option, `--mask-count bernoulli`). 100 epochs at batches of 150, of which 10 are warm-up: a tenth of the steps.
    # The floor of the cosine, 1e-6, is a factor. Its code has the softmax over the wrong axis; its text, and this, over
    # the codes.
    "lab-greedy": dataclasses.replace(
        _LAB, batch_size=150, lr=5e-5, min_lr=5e-5 * 1e-6, warmup=2000, beta2=0.95, schedule="linear", precision="fp16"
    ),
    # Seed 004: 755,200 steps of 512 on ImageNet at 256 px. Each token is masked with probability arccos(r) * 2 / pi: so
    # its released code; the report leaves the count open.
    "valeo": dataclasses.replace(
        _IMAGENET,
        steps=755_200,
        batch_size=512,
        weight_decay=1e-5,
        ema=0.0,
        schedule="arccos",
        mask_count="bernoulli",
        class_dropout=0.1,
    ),
}
# Seed 004, from 256 to 512 px: another 750,000 steps, of 128. Give it --init MODEL.
RECIPES["valeo-512"] = dataclasses.replace(
    RECIPES["valeo"], model="maskgit-512", steps=750_000, batch_size=128, image_size=512, interpolate=True
)
