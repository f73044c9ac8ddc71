"""A model's card as Markdown, and its picture of reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from maskgit.console import markdown_table
from maskgit.data.png import png_bytes
from maskgit.metrics.card.measuring import HOLES, SCHEDULE, SMOOTHING
from maskgit.metrics.figures import number
from maskgit.metrics.held_out import BALANCED, to_picture
from maskgit.pictures.strips import grid

TOKENIZER = {
    "psnr": ("PSNR, mean over images (dB)", "{:.2f}"),
    "psnr_of_mean_error": ("PSNR of the mean squared error (dB)", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "codes_used": ("codes in use", "{:.1%}"),
    "perplexity": ("perplexity of the codes", "{:.0f}"),
}
LOSS = {
    "loss": ("loss (nats)", "{:.4f}"),
    "fixed_loss": ("best fixed distribution per position", "{:.4f}"),
    "ratio": ("**loss / fixed**", "{:.1%}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "fixed_accuracy": ("accuracy of the fixed distribution", "{:.1%}"),
    "loss_over_tokens": ("loss, mean over all masked tokens", "{:.4f}"),
    "fixed_loss_over_tokens": ("best fixed distribution, likewise", "{:.4f}"),
    "ratio_over_tokens": ("loss / fixed, likewise", "{:.1%}"),
}
HOLE = {"frechet": "Fréchet", "psnr_in_hole": "PSNR", "l1_in_hole": "L1"}
"""What the figures of the report are called in each table."""

HEADLINE = f"""\
Headline: **{BALANCED}**. The images fall into {{families}} families of near copies (skin tones, genders), the largest \
with {{largest_family}}; over all images, the figures would mostly tell how well a few pictures do. So one image of \
each family, drawn at random, counts; both are given.

"""

PAGE = """\
# Figures of {model}

{held_out_images} held-out images (validation side of {data}) at {image_size} pixels. {date}, torch {torch}, {device}, \
transformer in {precision}, {total_seconds:.0f} s. Weights {weights_sha256:.12}.

    {command}

{headline_note}## Tokenizer

{tokenizer_table}
Over the whole data set (training and held-out, {training_images} training images) \
{tokenizer[codes_used_in_data_set]:.1%} of the codes are in use, perplexity {tokenizer[perplexity_in_data_set]:.0f}.

## Masked-token loss

{loss_table}
ceil(gamma(r) N) tokens masked, gamma {schedule}, {settings[rounds]} masks for each image with its own r, one from \
each equal part of [0, 1) (r ~ U[0, 1), stratified). Mean over images and masks of the mean over masked tokens, if not \
said otherwise. The fixed distribution is estimated on the training images and their mirror images and meets the same \
masks; its smoothing is the best for these held-out tokens, of {smoothings} tried ({smoothing}).

## Inpainting

{hole_tables}
Decoding: {decoding[steps]} steps, softmax temperature {decoding[softmax_temperature]:g}, choice temperature \
{decoding[choice_temperature]:g}, order by {decoding[order]}, {told} the class of each image; ± is the standard \
deviation over {settings[seeds]} decodings of the same holes (of the set {headline!r} only). Fréchet: distance between \
originals and filled images in the pooled features of EfficientNet-Lite0 (ImageNet weights, images enlarged to \
{settings[feature_size]} pixels); **not FID**, and to be compared only within a column, as it depends on the number of \
images. PSNR (dB, of the mean squared error) and L1 (of 255) inside the hole only. "Tokenizer only" pastes the decoded \
tokens of the original: the best that any transformer over these tokens could be expected to do.
"""


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    sets, losses = report["sets"], report["masked_token_loss"]
    return PAGE.format(
        **report,
        total_seconds=sum(report["seconds"].values()),
        headline_note=HEADLINE.format(**report) if BALANCED in sets else "",
        tokenizer_table=_table(TOKENIZER, report["tokenizer"], sets),
        loss_table=_table(LOSS, losses, sets),
        schedule=SCHEDULE,
        smoothings=2 * len(SMOOTHING),
        smoothing=", ".join(f"{name}: {losses[name]['smoothing']}" for name in sets),
        hole_tables="\n".join(_hole_table(hole, methods, sets) for hole, methods in report["inpainting"].items()),
        told="with" if report["settings"]["classes"] else "without",
    )


def _table(rows: dict[str, tuple[str, str]], figures: dict[str, Any], sets: dict[str, int]) -> str:
    """Figures by set, a column each."""
    head = ["on held-out images", *(f"{name} ({count})" for name, count in sets.items())]
    cells = [[label, *(form.format(figures[name][key]) for name in sets)] for key, (label, form) in rows.items()]
    return "\n".join(markdown_table(head, cells))


def _hole_table(hole: str, methods: dict[str, Any], sets: dict[str, int]) -> str:
    """Figures of all methods that filled a hole."""
    head = [HOLES[hole], *(f"{label}, {name}" for name in sets for label in HOLE.values())]
    cells = [
        [method, *(number(figures[name][key]) for name in sets for key in HOLE)] for method, figures in methods.items()
    ]
    return "\n".join(markdown_table(head, cells))


def draw_reconstructions(pixels: Tensor, decoded: Tensor, indices: Sequence[int]) -> bytes:
    """A PNG of originals, each with what encoding and decoding makes of it beside it. Both uint8 [n, 3, S, S]."""
    side = pixels.shape[2] * max(1, 128 // pixels.shape[2])
    pictures = [to_picture(images[i]) for i in indices for images in (pixels, decoded)]
    enlarged = [picture.resize((side, side), Image.Resampling.NEAREST) for picture in pictures]
    pairs = min(6, len(indices))
    return png_bytes(grid(enlarged, 2 * pairs, ["original", "decoded"] * pairs), optimize=True)
