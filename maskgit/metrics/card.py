"""Every figure of a model's card, and its pictures, from images that the model was not trained on.

    python -m maskgit.metrics.card                                   # the embedded model on the held-out emoji
    python -m maskgit.metrics.card runs/transformer/model --output outputs/evaluation
    python -m maskgit.metrics.card my-model --data photos            # the held-out tenth of a folder

Writes report.json, report.md, inpaintings.png and reconstructions.png. Needs the extra [metrics].
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import io
import json
import platform
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from maskgit.canvas.holes import paste_known
from maskgit.console import printable, printable_lines
from maskgit.data import DataError, ImageDataset, ImageError, find_images, load_dataset
from maskgit.data.masks import make_mask
from maskgit.decoding import DecodeConfig
from maskgit.decoding.masking import random_masks
from maskgit.decoding.schedules import ceil_count, gamma
from maskgit.files import find_replaced, write_atomically
from maskgit.metrics import (
    codebook_usage,
    frechet_distance,
    hole_errors,
    pooled_features,
    psnr,
    psnr_of_mean_error,
    ssim,
)
from maskgit.metrics.features import efficientnet_lite0
from maskgit.metrics.pairs import SSIM_WINDOW, import_torchmetrics
from maskgit.pictures import strips as visualize
from maskgit.pipeline import InpaintResult, MaskGIT, Precision, image_seed

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

HOLES = {"center": "center hole, half the side", "boxes": "random boxes"}
"""Mask makers whose holes are filled, and their names in the report."""

SCHEDULE = "cosine"
"""Mask schedule of the masked-token loss."""
SMOOTHING = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Pseudo-counts per code that the fixed distribution may choose from."""
PICTURES = 24
"""Images in each picture."""
TELEA_RADIUS = 3
"""Neighbourhood of OpenCV's inpainting, in pixels."""

BALANCED, ALL = "one per family", "all"
"""Names of the two sets of held-out images that figures are given for."""


@dataclass(frozen=True)
class Options:
    """Measure a model on held-out images: tokenizer, masked-token loss, inpainting. Writes a report and pictures."""

    model: Annotated[str, tyro.conf.Positional] = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    output: Path = Path("outputs/evaluation")
    """Folder for report.json, report.md, inpaintings.png and reconstructions.png."""
    data: str = "emoji"
    """A folder of images, or `emoji` for the embedded data set. Only its validation side is measured; the training
    side gives the fixed distribution that the masked-token loss is compared with, and counts for codebook usage."""
    max_images: int | None = None
    """Measure this many held-out images, drawn at random. Default: all."""
    seed: int = 0
    """Seed of all that is random here: masks, decoding, which images stand for their family and are shown."""
    seeds: int = 3
    """Times that each hole is filled, from other random numbers; after the first, only in the headline's images."""
    rounds: int = 8
    """Masks per image for the masked-token loss."""
    steps: int | None = None
    """Decoding steps. Default: the model's."""
    classes: bool = False
    """Tell a class-conditional model the class of each image."""
    feature_size: int = 224
    """Side that images are enlarged to for the features of the Fréchet distance."""
    batch_size: int = 16
    """Images that are worked on together."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    precision: Precision = "auto"
    """Of the transformer; auto is bf16 where the hardware computes in it."""

    def problem(self) -> str | None:
        """What is wrong with the values, if anything."""
        least_of = {"seed": 0, "seeds": 1, "rounds": 1, "steps": 1, "feature_size": 32, "batch_size": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                return f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}"
        if self.seed >= 2**64:
            return f"--seed {self.seed}: must be below 2**64"
        if self.max_images is not None and self.max_images < 2:
            return f"--max-images {self.max_images}: must be at least 2"
        return None


Subsets = dict[str, np.ndarray]
"""Positions among the held-out images by the name of the set; the headline's comes first."""


class HeldOut(NamedTuple):
    """The images that are measured."""

    pixels: Tensor
    """uint8 [n, 3, S, S]."""
    tokens: Tensor
    """int64 [n, N], on the CPU."""
    labels: list[int] | None
    """Classes, if the model is to know them."""
    subsets: Subsets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0; 1 if model, data, a package or the disk fails; 2 for bad usage; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        options = tyro.cli(Options, args=argv, prog="python -m maskgit.metrics.card", config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:  # --help, or options that tyro could not read
        return int(stop.code or 0)
    if problem := options.problem():
        print(f"error: {problem}", file=sys.stderr)
        return BAD_USAGE
    try:
        pictures = [options.output / name for name in ("inpaintings.png", "reconstructions.png")]
        if Path(options.data).is_dir() and (replaced := find_replaced(pictures, find_images(options.data))):
            print(f"error: {printable(replaced[0][1])} would be replaced: choose another --output", file=sys.stderr)
            return BAD_USAGE
        try:
            model = MaskGIT.from_pretrained(options.model, device=options.device, precision=options.precision)
            network = efficientnet_lite0().to(model.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            import_opencv()
            import_torchmetrics()
            options.output.mkdir(parents=True, exist_ok=True)
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # they all say what to do
            return fail(error)
        report = evaluate(model, network, options, shlex.join(["python", "-m", "maskgit.metrics.card", *argv]))
    except (DataError, ImageError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED
    print(markdown(report))
    print(f"report and pictures are in {options.output.resolve()}")
    return DONE


def decoding(model: MaskGIT, options: Options) -> DecodeConfig:
    """The model's way of decoding, in as many steps as the options say."""
    return model.decoding if options.steps is None else dataclasses.replace(model.decoding, steps=options.steps)


def fail(error: Exception) -> int:
    """Say what went wrong and give the exit status."""
    print(printable_lines(f"error: {error}"), file=sys.stderr)
    return FAILED


def import_opencv() -> Any:
    """The module cv2. Raises ImportError, naming the extra to install, where it is missing."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "OpenCV, whose inpainting the model is compared with, is missing: pip install 'maskgit-inpaint[metrics]'"
        ) from error
    return cv2


def evaluate(model: MaskGIT, network: nn.Module, options: Options, command: str = "") -> dict[str, Any]:
    """Measure everything, write the four files, and return the report.

    Args:
        model: as users get it.
        network: what `maskgit.metrics.features.efficientnet_lite0` returns, on the device where it shall run.
        options: those of the command line; `model`, `device` and `precision` are not looked at again.
        command: noted in the report.

    Raises:
        DataError, ImageError: images that can't be used.
        OSError: the output can't be written.
    """
    watch = Watch()
    size = model.tokenizer.config.image_size
    if size < SSIM_WINDOW:
        raise DataError(f"{options.model}: pictures of {size} pixels have no SSIM, whose window is {SSIM_WINDOW} wide")
    with watch("data"):
        images, training = (load_dataset(options.data, size, split) for split in ("val", "train"))
        chosen = choose_images(len(images), options.max_images, options.seed)
        pixels = torch.cat(list(plain_views(images, chosen)))
        families = [int(family) for family in images.family_numbers()[chosen]]
        subsets = make_subsets(families, options.seed)
        images.number_classes_as(model.class_names)
        if options.classes and (not model.class_names or model.class_names != images.class_names):
            raise DataError(f"--classes: the classes of {options.model} are not those of {options.data}")
        labels = [int(images.labels[i]) for i in chosen] if options.classes else None
    with watch("tokenizer"):
        tokens, tokenizer_figures, decoded = measure_tokenizer(model, pixels, subsets)
        held_out = HeldOut(pixels, tokens, labels, subsets)
        training_tokens = tokenize_views(model, training)
        plain = torch.cat([training_tokens[: len(training)], tokenize_views(model, images, flip=False)])
        used, perplexity = codebook_usage(plain, model.tokenizer.config.codebook_size)
    with watch("masked-token loss"):
        loss_figures = measure_loss(model, held_out, training_tokens, options)
    hole_figures, shown = measure_holes(model, network, held_out, decoded, options, watch)

    report: dict[str, Any] = {
        "model": options.model,
        "weights_sha256": weights_digest(model),
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "device": describe_device(model.device),
        "precision": model.precision,
        "data": options.data,
        "image_size": size,
        "held_out_images": len(pixels),
        "training_images": len(training),
        "families": len(set(families)),
        "largest_family": max(Counter(families).values()),
        "sets": {name: len(indices) for name, indices in subsets.items()},
        "headline": next(iter(subsets)),
        "settings": {name: getattr(options, name) for name in ("seed", "seeds", "rounds", "feature_size", "classes")},
        "decoding": dataclasses.asdict(decoding(model, options)),
        "tokenizer": {"codes_used_in_data_set": used, "perplexity_in_data_set": perplexity, **tokenizer_figures},
        "masked_token_loss": loss_figures,
        "inpainting": hole_figures,
        "seconds": watch.seconds,
    }
    write_atomically(
        {
            options.output / "inpaintings.png": png(visualize.triples(shown)),
            options.output / "reconstructions.png": png(
                reconstructions(pixels, decoded, shown_indices(subsets, options.seed))
            ),
            options.output / "report.md": markdown(report).encode(),
            options.output / "report.json": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
        }
    )
    return report


# --- which images -----------------------------------------------------------------------------------------------------


def choose_images(count: int, max_images: int | None, seed: int) -> np.ndarray:
    """The positions of the images to measure, in order. Raises DataError for fewer than two held-out images."""
    if count < 2:
        raise DataError(f"only {count} held-out image(s): figures need at least 2; add images")
    if max_images is None or max_images >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng((seed, 1)).permutation(count)[:max_images])


def make_subsets(families: Sequence[int], seed: int) -> Subsets:
    """The sets of images that figures are given for.

    Emoji come in families (skin tones, genders) of near copies, and a few families are huge: over all images, the
    figures would mostly say how well these few pictures do. So the headline is on one random image of each family.
    Where no family has two images, there is only the set of all.
    """
    everything = np.arange(len(families))
    order = np.random.default_rng((seed, 2)).permutation(len(families))
    first: dict[int, int] = {}
    for index in order:
        first.setdefault(families[index], int(index))
    if len(first) == len(families) or len(first) < 2:
        return {ALL: everything}
    return {BALANCED: np.sort(np.array(list(first.values()))), ALL: everything}


def shown_indices(subsets: Subsets, seed: int) -> list[int]:
    """The images of the pictures: drawn at random from the headline's set, in random order."""
    indices = next(iter(subsets.values()))
    return [int(i) for i in np.random.default_rng((seed, 3)).permutation(indices)[:PICTURES]]


def plain_views(images: ImageDataset, indices: Sequence[int] | np.ndarray, batch_size: int = 64) -> Iterator[Tensor]:
    """Unaugmented images as uint8 [up to batch_size, 3, S, S], in order."""
    for start in range(0, len(indices), batch_size):
        batch = np.stack([images.image(int(i)) for i in indices[start : start + batch_size]])
        yield torch.from_numpy(batch).permute(0, 3, 1, 2)


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """float [B, 3, S, S] in about [-1, 1] -> uint8: what is measured is what a file would hold."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def to_picture(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def from_picture(picture: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


# --- tokenizer --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def tokenize_views(model: MaskGIT, images: ImageDataset, flip: bool = True) -> Tensor:
    """Tokens int64 [n, N] of all images, on the CPU; with `flip` [2 n, N], the mirrored ones after the plain ones."""
    views: list[list[Tensor]] = [[], []]
    with progress_bar(len(images), "encoding the data set") as bar:
        for batch in plain_views(images, range(len(images))):
            for i in range(1 + flip):
                pixels = batch.flip(3) if i else batch
                views[i].append(model.tokenizer.encode(to_signed(pixels).to(model.device)).cpu())
            bar.update(len(batch))
    return torch.cat(views[0] + views[1])


@torch.inference_mode()
def measure_tokenizer(model: MaskGIT, pixels: Tensor, subsets: Subsets) -> tuple[Tensor, dict[str, Any], Tensor]:
    """How well images survive encoding and decoding.

    Args:
        pixels: uint8 [n, 3, S, S].

    Returns:
        Their tokens int64 [n, N]; the figures; the decoded images, uint8 [n, 3, S, S].
    """
    all_tokens, all_decoded = [], []
    with progress_bar(len(pixels), "reconstructing") as bar:
        for batch in pixels.split(64):
            tokens = model.tokenizer.encode(to_signed(batch).to(model.device))
            all_tokens.append(tokens.cpu())
            all_decoded.append(to_pixels(model.tokenizer.decode(tokens)).cpu())
            bar.update(len(batch))
    tokens, decoded = torch.cat(all_tokens), torch.cat(all_decoded)
    originals, copies = to_signed(pixels), to_signed(decoded)
    each_psnr, each_ssim = psnr(originals, copies), ssim(originals, copies)
    each_error = (originals - copies).square().flatten(1).mean(1)
    figures = {}
    for name, indices in subsets.items():
        used, perplexity = codebook_usage(tokens[indices], model.tokenizer.config.codebook_size)
        figures[name] = {
            "psnr": float(each_psnr[indices].mean()),
            "psnr_of_mean_error": psnr_of_mean_error(float(each_error[indices].mean())),
            "ssim": float(each_ssim[indices].mean()),
            "codes_used": used,
            "perplexity": perplexity,
        }
    return tokens, figures, decoded


# --- masked-token loss ------------------------------------------------------------------------------------------------


def stratified_masks(count: int, num_tokens: int, rounds: int, seed: int) -> Tensor:
    """Masks of ceil(gamma(r) N) random tokens, each image and round with its own r.

    The `rounds` values of an image's r are uniform in the `rounds` equal parts of [0, 1), one in each: a mean over
    them has the same expectation as with r ~ U[0, 1), and less variance.

    Returns:
        bool [rounds, count, num_tokens], True = masked; at least one in each row.
    """
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.rand(rounds, count, generator=generator, dtype=torch.float64)
    r = (torch.arange(rounds)[:, None] + jitter) / rounds
    counts = ceil_count(gamma(r, SCHEDULE), num_tokens).clamp(min=1)
    return random_masks(counts.flatten(), num_tokens, generator=generator).view(rounds, count, num_tokens)


def fixed_losses(training: Tensor, tokens: Tensor, codebook_size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Cross-entropy of one fixed distribution over the codes at each position, estimated on training tokens.

    Args:
        training: int64 [m, N].
        tokens: int64 [n, N], to be predicted.
        codebook_size: V.

    Returns:
        Losses [n, N] by the kind of smoothing: (count + a V q) / (m + a V) for every a in SMOOTHING, and q the uniform
        distribution (additive smoothing) or that of the codes over all positions. The caller takes the best.
        And whether the most frequent code at the position is right, bool [n, N].
    """
    positions = training.shape[1]
    counts = torch.zeros(positions, codebook_size, dtype=torch.float64)
    counts.T.index_put_((training, torch.arange(positions)), torch.ones((), dtype=torch.float64), accumulate=True)
    overall = counts.sum(0) + 1
    priors = {"uniform": torch.full_like(overall, 1 / codebook_size), "overall": overall / overall.sum()}
    seen = counts.gather(1, tokens.T).T  # [n, N]
    losses = {}
    for prior, q in priors.items():
        for a in SMOOTHING:
            total = a * codebook_size
            losses[f"{a} {prior}"] = -((seen + total * q[tokens]) / (len(training) + total)).log()
    return losses, counts.argmax(1) == tokens


def average(values: Tensor, masks: Tensor) -> tuple[float, float]:
    """Values [R, n, N] where masked, bool [R, n, N]: the mean over images and rounds of the mean over masked tokens
    (every r counts the same), and the mean over all masked tokens (large masks count more)."""
    kept = values.double() * masks
    return float((kept.sum(2) / masks.sum(2)).mean()), float(kept.sum() / masks.sum())


@torch.inference_mode()
def model_losses(model: MaskGIT, held_out: HeldOut, masks: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """The transformer's cross-entropy, float32 [R, n, N], and whether its best guess is right, bool [R, n, N]."""
    losses, hits = torch.empty(masks.shape), torch.empty(masks.shape, dtype=torch.bool)
    labels = None if held_out.labels is None else torch.tensor(held_out.labels)
    with progress_bar(masks.shape[0] * masks.shape[1], "masked-token loss") as bar:
        for round_, masked in enumerate(masks):
            for start in range(0, len(masked), batch_size):
                part = slice(start, start + batch_size)
                tokens = held_out.tokens[part].to(model.device)
                hidden = tokens.masked_fill(masked[part].to(model.device), model.transformer.config.mask_token_id)
                with torch.autocast(model.device.type, model.dtype, enabled=model.autocast):
                    logits = model.transformer(hidden, None if labels is None else labels[part].to(model.device))
                logits = logits.float()
                losses[round_, part] = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").cpu()
                hits[round_, part] = (logits.argmax(2) == tokens).cpu()
                bar.update(len(tokens))
    return losses, hits


def measure_loss(model: MaskGIT, held_out: HeldOut, training: Tensor, options: Options) -> dict[str, Any]:
    """The masked-token loss of the model and of the best fixed distribution per position, on the same masks."""
    masks = stratified_masks(len(held_out.tokens), held_out.tokens.shape[1], options.rounds, options.seed)
    losses, hits = model_losses(model, held_out, masks, options.batch_size)
    fixed, fixed_hits = fixed_losses(training, held_out.tokens, model.tokenizer.config.codebook_size)
    figures = {}
    for name, indices in held_out.subsets.items():
        some = masks[:, indices]
        loss, token_loss = average(losses[:, indices], some)
        # The best smoothing for these very tokens: generous to the fixed distribution.
        baselines = {kind: average(values[indices].expand_as(some), some) for kind, values in fixed.items()}
        best = min(baselines, key=lambda kind: baselines[kind][0])
        best_token_loss = min(by_token for _, by_token in baselines.values())
        figures[name] = {
            "loss": loss,
            "fixed_loss": baselines[best][0],
            "ratio": loss / baselines[best][0],
            "loss_over_tokens": token_loss,
            "fixed_loss_over_tokens": best_token_loss,
            "ratio_over_tokens": token_loss / best_token_loss,
            "accuracy": average(hits[:, indices], some)[0],
            "fixed_accuracy": average(fixed_hits[indices].expand_as(some), some)[0],
            "smoothing": best,
        }
    return figures


# --- inpainting -------------------------------------------------------------------------------------------------------


def fill_mean(pixels: Tensor, mask: np.ndarray) -> Tensor:
    """The hole in the mean colour of the known pixels. uint8 [3, H, W], bool [H, W] -> uint8 [3, H, W]."""
    hidden = torch.from_numpy(mask)
    mean = pixels[:, ~hidden].float().mean(1).round().byte()
    return torch.where(hidden, mean[:, None, None], pixels)


def fill_telea(pixels: Tensor, mask: np.ndarray) -> Tensor:
    """OpenCV's inpainting after Telea (2004). uint8 [3, H, W], bool [H, W] -> uint8 [3, H, W]."""
    cv2 = import_opencv()
    image = pixels.permute(1, 2, 0).contiguous().numpy()
    filled = cv2.inpaint(image, mask.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA)
    return torch.from_numpy(filled).permute(2, 0, 1)


def paste_decoded(pixels: Tensor, decoded: Tensor, mask: np.ndarray) -> Tensor:
    """The tokenizer's own copy of the original in the hole, pasted as the pipeline does; all uint8 [3, H, W]."""
    return from_picture(paste_known(to_picture(pixels), to_picture(decoded), mask))


class Fill(NamedTuple):
    """What a method made of some images."""

    indices: np.ndarray
    """Their positions among the held-out images, sorted."""
    images: Tensor
    """uint8 [len(indices), 3, S, S]."""


def measure_holes(
    model: MaskGIT, network: nn.Module, held_out: HeldOut, decoded: Tensor, options: Options, watch: Watch
) -> tuple[dict[str, Any], list[InpaintResult]]:
    """Fill holes in all images by all methods, and compare with the originals.

    Returns:
        The figures by hole, method and set; and the inpaintings to show: the first half with the first kind of hole,
        the second half with the second.
    """
    pixels = held_out.pixels
    size, count = pixels.shape[2], len(pixels)
    pictures = [to_picture(image) for image in pixels]
    others: dict[str, Callable[[int, np.ndarray], Tensor]] = {
        "OpenCV Telea": lambda i, mask: fill_telea(pixels[i], mask),
        "mean colour": lambda i, mask: fill_mean(pixels[i], mask),
        "tokenizer only (upper bound)": lambda i, mask: paste_decoded(pixels[i], decoded[i], mask),
    }
    everything, headline = np.arange(count), next(iter(held_out.subsets.values()))
    turns = [everything if turn == 0 else headline for turn in range(options.seeds)]
    wanted = shown_indices(held_out.subsets, options.seed)
    halves = (wanted[: (len(wanted) + 1) // 2], wanted[(len(wanted) + 1) // 2 :])
    shown: list[InpaintResult] = []
    fills: dict[tuple[str, str], list[Fill]] = {}
    masks: dict[str, np.ndarray] = {}
    total = len(HOLES) * sum(len(indices) for indices in turns)
    with watch("inpainting"), progress_bar(total, "inpainting") as bar:
        for hole, half in zip(HOLES, halves, strict=True):
            drawn = [make_mask(hole, size, size, image_seed(options.seed, f"{hole}/{i}") % 2**64) for i in range(count)]
            masks[hole] = np.stack(drawn)
            fills[hole, "MaskGIT"] = []
            for turn, indices in enumerate(turns):
                results = model.inpaint(
                    [pictures[i] for i in indices],
                    [drawn[i] for i in indices],
                    config=decoding(model, options),
                    seeds=[image_seed(options.seed + turn, int(i)) for i in indices],
                    labels=None if held_out.labels is None else [held_out.labels[i] for i in indices],
                    batch_size=options.batch_size,
                    progress=bar.update,
                )
                images = torch.stack([from_picture(result.image) for result in results])
                fills[hole, "MaskGIT"].append(Fill(indices, images))
                if turn == 0:
                    shown += [results[i] for i in half]
    with watch("other methods"):
        for hole in HOLES:
            for method, fill in others.items():
                images = torch.stack([fill(i, mask) for i, mask in enumerate(masks[hole])])
                fills[hole, method] = [Fill(everything, images)]

    figures: dict[str, Any] = {hole: {} for hole in HOLES}
    total = count + sum(len(indices) for versions in fills.values() for indices, _ in versions)
    with watch("Fréchet distance"), progress_bar(total, "features") as bar:

        def features(images: Tensor) -> Tensor:
            batches = []
            for batch in pooled_features(network, to_signed(images), options.feature_size):
                batches.append(batch)
                bar.update(len(batch))
            return torch.cat(batches)

        reference = features(pixels)
        for (hole, method), versions in fills.items():
            # One list per figure and set, with a value for each time the whole set was filled.
            values: dict[str, dict[str, list[float]]] = {
                name: {"frechet": [], "psnr_in_hole": [], "l1_in_hole": []} for name in held_out.subsets
            }
            for done, images in versions:
                ours, hidden = features(images), torch.from_numpy(masks[hole][done])
                absolute, square = hole_errors(to_signed(images), to_signed(pixels[done]), hidden)
                for name, indices in held_out.subsets.items():
                    if len(indices) > len(done):
                        continue
                    rows = np.searchsorted(done, indices)  # both are sorted
                    values[name]["frechet"].append(frechet_distance(ours[rows], reference[indices]))
                    # Of the mean error: a hole in plain white filled perfectly has no PSNR that could be averaged.
                    values[name]["psnr_in_hole"].append(psnr_of_mean_error(float(square[rows].mean())))
                    values[name]["l1_in_hole"].append(127.5 * float(absolute[rows].mean()))
            figures[hole][method] = {
                name: {figure: spread(numbers) for figure, numbers in table.items()} for name, table in values.items()
            }
    return figures, shown


def spread(numbers: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (absent for a single number)."""
    deviation = {"std": statistics.stdev(numbers)} if len(numbers) > 1 else {}
    return {"mean": statistics.fmean(numbers), **deviation, "values": numbers}


# --- the report -------------------------------------------------------------------------------------------------------


class Watch:
    """Seconds by stage: `with watch("loss"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 2)


def progress_bar(total: int, description: str) -> tqdm:
    """A bar that counts images; parts of images are shown whole."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
    return tqdm(total=total, desc=description, unit="image", bar_format=layout, dynamic_ncols=True)


def weights_digest(model: MaskGIT) -> str:
    """SHA-256 of all weights: which model the figures belong to."""
    digest = hashlib.sha256()
    for module in (model.tokenizer, model.transformer):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"CPU ({platform.machine()}, {capability}, {torch.get_num_threads()} threads)"
    return device.type


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return data.getvalue()


def reconstructions(pixels: Tensor, decoded: Tensor, indices: Sequence[int]) -> Image.Image:
    """Originals, each with what encoding and decoding makes of it beside it. Both uint8 [n, 3, S, S]."""
    factor = max(1, 128 // pixels.shape[2])
    pictures = []
    for i in indices:
        for image in (pixels[i], decoded[i]):
            picture = to_picture(image)
            side = picture.width * factor
            pictures.append(picture.resize((side, side), Image.Resampling.NEAREST))
    pairs = min(6, len(indices))
    return visualize.grid(pictures, 2 * pairs, ["original", "decoded"] * pairs)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; numbers are set flush right."""
    align = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, align, *rows)] + [""]


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    sets, settings = report["sets"], report["settings"]
    head = [f"{name} ({count})" for name, count in sets.items()]
    lines = [
        f"# Figures of {report['model']}",
        "",
        f"{report['held_out_images']} held-out images (validation side of {report['data']}) at {report['image_size']} "
        f"pixels. {report['date']}, torch {report['torch']}, {report['device']}, transformer in "
        f"{report['precision']}, {sum(report['seconds'].values()):.0f} s. Weights {report['weights_sha256'][:12]}.",
        "",
        f"    {report['command']}",
        "",
    ]
    if BALANCED in sets:
        lines += [
            f"Headline: **{BALANCED}**. The images fall into {report['families']} families of near copies (skin tones, "
            f"genders), the largest with {report['largest_family']}; over all images, the figures would mostly tell "
            "how well a few pictures do. So one image of each family, drawn at random, counts; both are given.",
            "",
        ]

    tokenizer, losses = report["tokenizer"], report["masked_token_loss"]
    lines += ["## Tokenizer", ""]
    rows = [
        ("PSNR, mean over images (dB)", "psnr", "{:.2f}"),
        ("PSNR of the mean squared error (dB)", "psnr_of_mean_error", "{:.2f}"),
        ("SSIM", "ssim", "{:.4f}"),
        ("codes in use", "codes_used", "{:.1%}"),
        ("perplexity of the codes", "perplexity", "{:.0f}"),
    ]
    lines += table(
        ["on held-out images", *head],
        [[label, *(form.format(tokenizer[name][key]) for name in sets)] for label, key, form in rows],
    )
    lines += [
        f"Over the whole data set (training and held-out, {report['training_images']} training images) "
        f"{tokenizer['codes_used_in_data_set']:.1%} of the codes are in use, "
        f"perplexity {tokenizer['perplexity_in_data_set']:.0f}.",
        "",
        "## Masked-token loss",
        "",
    ]
    rows = [
        ("loss (nats)", "loss", "{:.4f}"),
        ("best fixed distribution per position", "fixed_loss", "{:.4f}"),
        ("**loss / fixed**", "ratio", "{:.1%}"),
        ("accuracy", "accuracy", "{:.1%}"),
        ("accuracy of the fixed distribution", "fixed_accuracy", "{:.1%}"),
        ("loss, mean over all masked tokens", "loss_over_tokens", "{:.4f}"),
        ("best fixed distribution, likewise", "fixed_loss_over_tokens", "{:.4f}"),
        ("loss / fixed, likewise", "ratio_over_tokens", "{:.1%}"),
    ]
    lines += table(
        ["on held-out images", *head],
        [[label, *(form.format(losses[name][key]) for name in sets)] for label, key, form in rows],
    )
    smoothing = {name: losses[name]["smoothing"] for name in sets}
    lines += [
        f"ceil(gamma(r) N) tokens masked, gamma {SCHEDULE}, {settings['rounds']} masks for each image with its own r, "
        "one from each equal part of [0, 1) (r ~ U[0, 1), stratified). Mean over images and masks of the mean over "
        "masked tokens, if not said otherwise. The fixed distribution is estimated on the training images and their "
        "mirror images and meets the same masks; its smoothing is the best for these held-out tokens, of "
        f"{2 * len(SMOOTHING)} tried ({', '.join(f'{name}: {kind}' for name, kind in smoothing.items())}).",
        "",
        "## Inpainting",
        "",
    ]
    names = {"frechet": "Fréchet", "psnr_in_hole": "PSNR", "l1_in_hole": "L1"}
    columns = [f"{label}, {name}" for name in sets for label in names.values()]
    for hole, methods in report["inpainting"].items():
        rows_ = [
            [method, *(number(figures[name][key]) for name in sets for key in names)]
            for method, figures in methods.items()
        ]
        lines += table([HOLES[hole], *columns], rows_)
    config = report["decoding"]
    lines += [
        f"Decoding: {config['steps']} steps, softmax temperature {config['softmax_temperature']:g}, choice temperature "
        f"{config['choice_temperature']:g}, order by {config['order']}, "
        f"{'with' if settings['classes'] else 'without'} the class of each image; ± is the standard deviation "
        f"over {settings['seeds']} decodings of the "
        f"same holes (of the set {report['headline']!r} only). Fréchet: distance between originals and filled images "
        "in the pooled features of EfficientNet-Lite0 (ImageNet weights, images enlarged to "
        f"{settings['feature_size']} pixels); **not FID**, "
        "and to be compared only within a column, as it depends on the number of images. PSNR (dB, of the mean squared "
        'error) and L1 (of 255) inside the hole only. "Tokenizer only" pastes the decoded tokens of the original: '
        "the best that any transformer over these tokens could be expected to do.",
        "",
    ]
    return "\n".join(lines)


def number(figure: dict[str, Any]) -> str:
    """A mean, with its standard deviation if there is one, to about four digits."""
    decimals = 2 if figure["mean"] < 100 else 1 if figure["mean"] < 1000 else 0
    return " ± ".join(f"{figure[key]:.{decimals}f}" for key in ("mean", "std") if key in figure)


if __name__ == "__main__":
    sys.exit(main())
