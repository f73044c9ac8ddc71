"""Every figure of a model's card, and its pictures, from images that the model was not trained on.

    python -m maskgit.metrics.card                                   # the embedded model on the held-out avatars
    python -m maskgit.metrics.card runs/transformer/model --output outputs/evaluation
    python -m maskgit.metrics.card my-model --data photos            # the held-out tenth of a folder

Writes report.json, report.md, inpaintings.png and reconstructions.png. Needs the extra [metrics].
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from maskgit.console import UsageError, printable
from maskgit.data import DataError, find_images, load_dataset
from maskgit.data.png import png_bytes
from maskgit.files import find_replaced, write_atomically
from maskgit.machine import describe
from maskgit.metrics.card import measuring
from maskgit.metrics.card.holes import measure_holes, shown_indices
from maskgit.metrics.card.measuring import timed, tokenize_views
from maskgit.metrics.card.report import markdown
from maskgit.metrics.card.settings import Options
from maskgit.metrics.features import efficientnet_lite0
from maskgit.metrics.figures import json_bytes, run_measuring, weights_digest
from maskgit.metrics.held_out import import_opencv, load_held_out, to_picture
from maskgit.metrics.pairs import SSIM_WINDOW, import_torchmetrics
from maskgit.metrics.sets import codebook_usage
from maskgit.pictures.strips import overview, triples
from maskgit.pipeline import MaskGIT


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
    with timed(seconds, "tokenizer"):
        tokens, tokenizer_figures, decoded = measuring.measure_tokenizer(model, held_out.pixels)
        training_tokens = tokenize_views(model, training)
        plain = torch.cat([training_tokens[: len(training)], tokenize_views(model, held_out.dataset, flip=False)])
        used, perplexity = codebook_usage(plain, config.codebook_size)
    with timed(seconds, "masked-token loss"):
        loss_figures = measuring.measure_loss(model, tokens, held_out.labels, training_tokens, options)
    with timed(seconds, "features of the originals"):
        reference = measuring.extract(network, held_out.pixels, options, "the originals")
    holes, shown = measure_holes(model, network, held_out, decoded, reference, decoding, options, seconds)

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
        "settings": {name: getattr(options, name) for name in ("seed", "seeds", "rounds", "feature_size", "classes")},
        "decoding": dataclasses.asdict(decoding),
        "tokenizer": {"codes_used_in_data_set": used, "perplexity_in_data_set": perplexity, **tokenizer_figures},
        "masked_token_loss": loss_figures,
        "inpainting": holes,
        "seconds": seconds,
    }
    files = {
        "inpaintings.png": png_bytes(triples(shown), optimize=True),
        "reconstructions.png": draw_reconstructions(held_out.pixels, decoded, shown_indices(len(tokens), options.seed)),
        "report.md": markdown(report).encode(),
        "report.json": json_bytes(report),
    }
    write_atomically({options.output / name: content for name, content in files.items()})
    return report


def draw_reconstructions(pixels: Tensor, decoded: Tensor, indices: Sequence[int]) -> bytes:
    """A PNG of originals, each with what encoding and decoding makes of it beside it. Both uint8 [n, 3, S, S]."""
    side = pixels.shape[2] * max(1, 128 // pixels.shape[2])
    pairs = [[to_picture(images[i]) for images in (pixels, decoded)] for i in indices]
    enlarged = [[picture.resize((side, side), Image.Resampling.NEAREST) for picture in pair] for pair in pairs]
    return png_bytes(overview(enlarged, ("original", "decoded"), 6), optimize=True)


if __name__ == "__main__":
    sys.exit(main())
