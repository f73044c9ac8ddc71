"""The report of a model's card as Markdown."""

from __future__ import annotations

from typing import Any

from maskgit.console import markdown_table
from maskgit.metrics.card.holes import HOLES, OURS
from maskgit.metrics.card.measuring import SCHEDULE, SMOOTHING
from maskgit.metrics.figures import number
from maskgit.metrics.held_out import TELEA, TOKENIZER_ONLY

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
HOLE = {"frechet": "Fréchet", "monge": "Monge", "psnr_in_hole": "PSNR", "l1_in_hole": "L1"}
"""What the figures of the report are called in each table."""

PAGE = """\
# Figures of {model}

{held_out_images} held-out images (validation side of {data}) at {image_size} pixels. {date}, torch {torch}, {device}, \
transformer in {precision}, {total_seconds:.0f} s. Weights {weights_sha256:.12}.

    {command}

## Tokenizer

{tokenizer_table}
Over the whole data set (training and held-out, {training_images} training images) \
{tokenizer[codes_used_in_data_set]:.1%} of the codes are in use, perplexity {tokenizer[perplexity_in_data_set]:.0f}.

## Masked-token loss

{loss_table}
ceil(gamma(r) N) tokens masked, gamma {schedule}, {settings[rounds]} masks for each image with its own r, one from \
each equal part of [0, 1) (r ~ U[0, 1), stratified). Mean over images and masks of the mean over masked tokens, if not \
said otherwise. The fixed distribution is estimated on the training images and their mirror images and meets the same \
masks; its smoothing is the best for these held-out tokens, of {smoothings} tried ({masked_token_loss[smoothing]}).

## Inpainting

{hole_tables}
Decoding: {decoding[steps]} steps, softmax temperature {decoding[softmax_temperature]:g}, choice temperature \
{decoding[choice_temperature]:g}, order by {decoding[order]}, {told} the class of each image; ± is the standard \
deviation over {settings[seeds]} decodings of the same holes. Fréchet: distance between originals and \
filled images in the pooled features of EfficientNet-Lite0 (ImageNet weights, images enlarged to \
{settings[feature_size]} pixels); **not FID**, and to be compared only within a column, as it depends on the number of \
images. Monge: MIND's formula (a sliced Wasserstein distance) in the same features; **not MIND**. PSNR (dB, of the \
mean squared error) and L1 (of 255) inside the hole only. "Tokenizer only" pastes the decoded tokens of the original: \
the best that any transformer over these tokens could be expected to do.
"""


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    return PAGE.format(
        **report,
        total_seconds=sum(report["seconds"].values()),
        tokenizer_table=_table(TOKENIZER, report["tokenizer"]),
        loss_table=_table(LOSS, report["masked_token_loss"]),
        schedule=SCHEDULE,
        smoothings=2 * len(SMOOTHING),
        hole_tables="\n".join(_hole_table(hole, methods) for hole, methods in report["inpainting"].items()),
        told="with" if report["settings"]["classes"] else "without",
    )


def _table(rows: dict[str, tuple[str, str]], figures: dict[str, Any]) -> str:
    """A figure each row."""
    cells = [[label, form.format(figures[key])] for key, (label, form) in rows.items()]
    return "\n".join(markdown_table(["on held-out images", "figure"], cells))


def _hole_table(hole: str, methods: dict[str, Any]) -> str:
    """Figures of all methods that filled a hole, and how far ours is from what it must beat and from its bound."""
    cells = [[method, *(number(figures[key]) for key in HOLE)] for method, figures in methods.items()]
    ours, telea, bound = (methods[method]["frechet"]["mean"] for method in (OURS, TELEA, TOKENIZER_ONLY))
    ratios = f"{_ratio(ours, telea)} of {TELEA}'s, {_ratio(ours, bound)} of the tokenizer's"
    return "\n".join(
        [*markdown_table([HOLES[hole], *HOLE.values()], cells), f"Fréchet distance of {OURS}: {ratios}.", ""]
    )


def _ratio(a: float, b: float) -> str:
    """a / b, where there is one."""
    return f"{a / b:.2f}" if b else "no multiple"
