"""Every figure of a model's card, and its pictures, from images that the model was not trained on.

    python -m maskgit.metrics.card                                   # the embedded model on the held-out emoji
    python -m maskgit.metrics.card runs/transformer/model --output outputs/evaluation
    python -m maskgit.metrics.card my-model --data photos            # the held-out tenth of a folder

Writes report.json, report.md, inpaintings.png and reconstructions.png. Needs the extra [metrics].
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from maskgit.console import UsageError, markdown_table, printable
from maskgit.data import DataError, find_images, load_dataset
from maskgit.data.png import png_bytes
from maskgit.files import find_replaced, write_atomically
from maskgit.machine import describe
from maskgit.metrics.card import measuring
from maskgit.metrics.card.measuring import HOLES, SCHEDULE, SMOOTHING, Options, shown_indices, timed, tokenize_views
from maskgit.metrics.features import efficientnet_lite0
from maskgit.metrics.figures import json_bytes, number, run_measuring, weights_digest
from maskgit.metrics.held_out import BALANCED, import_opencv, load_held_out, make_subsets, to_picture
from maskgit.metrics.pairs import SSIM_WINDOW, import_torchmetrics
from maskgit.metrics.sets import codebook_usage
from maskgit.pictures.strips import overview, triples
from maskgit.pipeline import MaskGIT

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: the process's) and return its exit status."""
    return run_measuring(Options, measure, argv, "python -m maskgit.metrics.card", "interrupted: nothing was written")


def measure(options: Options, command: str) -> None:
    """Measure the model that the options name; what is missing is found out first."""
    options.check()
    pictures = [options.output / name for name in ("inpaintings.png", "reconstructions.png")]
    if Path(options.data).is_dir() and (replaced := find_replaced(pictures, find_images(options.data))):
        raise UsageError(f"{printable(replaced[0][1])} would be replaced: choose another --output")
    model = MaskGIT.from_pretrained(options.model, device=options.device, precision=options.precision)
    network = efficientnet_lite0().to(model.device).to(memory_format=torch.channels_last)
    import_opencv()
    import_torchmetrics()
    options.output.mkdir(parents=True, exist_ok=True)
    print(markdown(evaluate(model, network, options, command)))
    print(f"report and pictures are in {printable(options.output.resolve())}")


def evaluate(model: MaskGIT, network: nn.Module, options: Options, command: str = "") -> dict[str, Any]:
    """Measure everything, write the four files, and return the report.

    `network` is what `maskgit.metrics.features.efficientnet_lite0` returns, on the device where it shall run. Of the
    options, `device` and `precision` are not looked at again; `command` is noted in the report.

    Raises:
        DataError, ImageError: images that can't be used.
        OSError: the output can't be written.
    """
    seconds: dict[str, float] = {}
    config, size = model.tokenizer.config, model.tokenizer.config.image_size
    if size < SSIM_WINDOW:
        raise DataError(f"{options.model}: pictures of {size} pixels have no SSIM, whose window is {SSIM_WINDOW} wide")
    steps = model.decoding.steps if options.steps is None else options.steps
    decoding = dataclasses.replace(model.decoding, steps=steps)
    with timed(seconds, "data"):
        held_out = load_held_out(model, options.data, options.classes, options.max_images, options.seed)
        training = load_dataset(options.data, size, "train")
        numbers = held_out.dataset.family_numbers()[held_out.numbers]
        families, subsets = Counter(numbers.tolist()), make_subsets(numbers, options.seed)
    with timed(seconds, "tokenizer"):
        tokens, tokenizer_figures, decoded = measuring.measure_tokenizer(model, held_out.pixels, subsets)
        training_tokens = tokenize_views(model, training)
        plain = torch.cat([training_tokens[: len(training)], tokenize_views(model, held_out.dataset, flip=False)])
        used, perplexity = codebook_usage(plain, config.codebook_size)
    with timed(seconds, "masked-token loss"):
        loss_figures = measuring.measure_loss(model, tokens, held_out.labels, subsets, training_tokens, options)
    holes, shown = measuring.measure_holes(model, network, held_out, decoded, subsets, decoding, options, seconds)

    machine = describe(model.device)
    report: dict[str, Any] = {
        "model": options.model,
        "weights_sha256": weights_digest(model),
        "command": command,
        "date": str(machine["date"])[:10],
        "torch": machine["torch"],
        "device": f"{machine['device']}, {machine['threads']} threads",
        "precision": model.precision,
        "data": options.data,
        "image_size": size,
        "held_out_images": len(tokens),
        "training_images": len(training),
        "families": len(families),
        "largest_family": max(families.values()),
        "sets": {name: len(indices) for name, indices in subsets.items()},
        "headline": next(iter(subsets)),
        "settings": {name: getattr(options, name) for name in ("seed", "seeds", "rounds", "feature_size", "classes")},
        "decoding": dataclasses.asdict(decoding),
        "tokenizer": {"codes_used_in_data_set": used, "perplexity_in_data_set": perplexity, **tokenizer_figures},
        "masked_token_loss": loss_figures,
        "inpainting": holes,
        "seconds": seconds,
    }
    files = {
        "inpaintings.png": png_bytes(triples(shown), optimize=True),
        "reconstructions.png": draw_reconstructions(held_out.pixels, decoded, shown_indices(subsets, options.seed)),
        "report.md": markdown(report).encode(),
        "report.json": json_bytes(report),
    }
    write_atomically({options.output / name: content for name, content in files.items()})
    return report


# --- the report as Markdown, and a picture of it ----------------------------------------------------------------------


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
    pairs = [[to_picture(images[i]) for images in (pixels, decoded)] for i in indices]
    enlarged = [[picture.resize((side, side), Image.Resampling.NEAREST) for picture in pair] for pair in pairs]
    return png_bytes(overview(enlarged, ("original", "decoded"), 6), optimize=True)


if __name__ == "__main__":
    sys.exit(main())
