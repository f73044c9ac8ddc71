"""How good are generated or filled pictures: `python -m maskgit.metrics REAL GENERATED`. Needs the extra [metrics].

python -m maskgit.metrics photos samples                                # two sets of pictures
python -m maskgit.metrics photos outputs/inpaint --masks holes          # pictures and originals of the same name
python -m maskgit.metrics statistics.npz samples --network inception    # statistics made by pytorch-fid
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from maskgit.console import UsageError, printable, printable_message, progress_bar, require_at_least, run_command
from maskgit.data import DataError
from maskgit.data.masks import MAKERS, find_mask_for, load_mask, make_mask
from maskgit.data.pixels import to_signed
from maskgit.data.reading import read_image
from maskgit.metrics.features import EfficientNetFeatures, FeatureNetwork, WeightsError, extract_features, inception
from maskgit.metrics.figures import ERRORS
from maskgit.metrics.folders import cache_folder, find_pictures, folder_features, match_pictures, read_statistics
from maskgit.metrics.held_out import from_picture
from maskgit.metrics.pairs import (
    SSIM_WINDOW,
    hole_errors,
    import_torchmetrics,
    perceptual_distance,
    psnr_of_mean_error,
    ssim,
)
from maskgit.metrics.sets import Gaussian, Manifold, class_score, frechet_distance, manifold_scores, monge_distance
from maskgit.pipeline import resolve_device
from maskgit.tokenizer.losses import PerceptualLoss, efficientnet_stages

SPLITS, SPLIT_SIZE = 10, 500
"""A class score is the mean over so many splits, where each has at least so many pictures; else there is one split."""

FIXED_MASKS = ("center", "left", "right", "top", "bottom")
"""Masks that can be made again, because there is no chance in them."""

NOT_COMPARABLE = "not FID, not MIND, not Inception score: not comparable with published figures"
NETWORKS = {
    "inception": ("Inception v3", "", "FID", "MIND", "Inception score"),
    "efficientnet-lite0": (
        "EfficientNet-Lite0", NOT_COMPARABLE, "Fréchet distance", "Monge distance", "class-entropy score",
    ),
}  # fmt: skip
"""Of each network: its title, a note, and what the two distances and the class score in its features are called."""

SCORE_OF_SPLITS = "{0[mean]:.3f} ± {0[std]:.3f} ({0[splits]} splits)"
MANIFOLD = {name: (name, "{:.4f}  (k = {neighbors})") for name in Manifold._fields}
PAIRS = {
    "psnr": ("PSNR", "{:.2f} dB (of the mean squared error)"),
    "l1_of_255": ("L1", "{:.2f} of 255"),
    "ssim": ("SSIM", "{:.4f}"),
    "perceptual_distance_not_lpips": ("perceptual distance", "{:.4f} (as LPIPS, in EfficientNet-Lite0: not LPIPS)"),
}
"""Titles and formats in the table, by the figure's name in the report."""


@dataclass(frozen=True)
class Options:
    """Compare generated pictures with real ones.

    As sets: FID, MIND, Inception score, precision, recall, density and coverage, in the features of the Inception
    network (whose weights you have to download once) and of a network that comes with its weights. With --pairs or
    --masks also picture by picture: PSNR, SSIM and a perceptual distance.
    """

    real: Annotated[Path, tyro.conf.Positional]
    """Folder of real pictures, at any depth; or pytorch-fid's statistics of some, an .npz file of mu and sigma, which
    is enough for the FID."""
    generated: Annotated[Path, tyro.conf.Positional]
    """Folder of generated pictures. What inpaint.py writes beside them (*.strip.png, *.maps.png, *.grid.png) is left
    out."""
    network: Literal["all", "inception", "efficientnet-lite0", "none"] = "all"
    """Whose features sets are compared in; none: only pairs. `all` says so and goes on where Inception's weights are
    missing, `inception` fails."""
    inception_weights: Path | None = None
    """File of Inception's weights. Default: where pytorch-fid keeps it, in $TORCH_HOME/hub/checkpoints."""
    pairs: bool = False
    """Compare each generated picture with the real one of its name, too."""
    masks: str | None = None
    """Compare pairs in a hole only: an image (white is the hole), a folder of them named like the pictures, or one of
    center, left, right, top, bottom, as inpaint.py's --mask. Implies --pairs."""
    invert_mask: bool = False
    """Black is the hole."""
    neighbors: int = 3
    """k of precision, recall, density and coverage."""
    batch_size: int = 32
    """Pictures that go through a network together."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    cache: bool = True
    """Keep the real pictures' features for the next time."""
    cache_folder: Path | None = None
    """Where they are kept. Default: maskgit in $XDG_CACHE_HOME, or in ~/.cache."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def check(self) -> None:
        """Raise UsageError if values make no sense, or not together."""
        require_at_least(self, {"batch_size": 1, "neighbors": 1})
        if self.network == "none" and not self.pairwise:
            raise UsageError("--network none leaves nothing to do without --pairs or --masks")
        if self.real.suffix == ".npz" and (self.network != "inception" or self.pairwise):
            enough = "statistics are enough for the FID only: use --network inception, without pairs"
            raise UsageError(f"{printable(self.real)}: {enough}")
        if self.invert_mask and self.masks is None:
            raise UsageError("--invert-mask without --masks")

    @property
    def pairwise(self) -> bool:
        """Whether pictures are compared one by one."""
        return self.pairs or self.masks is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: the process's) and return its exit status."""
    return run_command(Options, compare, argv, prog="python -m maskgit.metrics", errors=ERRORS)


def compare(options: Options) -> None:
    """Measure, and print the report."""
    options.check()
    report = measure(options)
    print(json.dumps(report, indent=2, ensure_ascii=False) if options.json else table(report))


def measure(options: Options) -> dict[str, Any]:
    """Everything that the options ask for.

    Raises:
        DataError, ImageError, MaskError: pictures or masks that are missing, damaged or don't fit each other.
        WeightsError, ImportError: a network's weights or packages are missing.
        OSError, RuntimeError, ValueError: a device, file or option that can't be used.
    """
    start = time.perf_counter()
    device = resolve_device(options.device)
    # What is wrong with packages and folders is found out before the first network runs.
    if options.pairwise:
        import_torchmetrics()
    pairs = match_pictures(options.real, options.generated) if options.pairwise else []
    check_masks(options.masks)
    real = [] if options.real.suffix == ".npz" else find_pictures(options.real)
    generated = find_pictures(options.generated)
    report: dict[str, Any] = {
        "real": str(options.real),
        "generated": str(options.generated),
        "real_images": len(real) or None,
        "generated_images": len(generated),
    }
    names = {"all": list(NETWORKS), "none": []}.get(options.network, [options.network])
    for folder, files in ((options.real, real), (options.generated, generated)):
        if names and files and len(files) <= max(1, options.neighbors * bool(real)):
            raise DataError(
                f"{folder}: {len(files)} image(s): sets are compared from 2 on, and with more than the --neighbors "
                f"{options.neighbors} (--network none for pairs only)"
            )
    for name in names:
        try:
            network = inception(options.inception_weights) if name == "inception" else EfficientNetFeatures()
        except WeightsError as error:
            if options.network == "inception" or options.inception_weights is not None:
                raise
            print(printable_message(f"note: {error}\n  Going on without the FID."), file=sys.stderr)
            report[name] = {"missing": str(error)}
            continue
        network = network.to(device).to(memory_format=torch.channels_last)
        report[name] = compare_sets(network, real, generated, options)
    if options.pairwise:
        where = "picture" if options.masks is None else "hole"
        report["pairs"] = {"where": where, **compare_pairs(pairs, options, device)}
    report["seconds"] = round(time.perf_counter() - start, 1)
    return report


# --- sets -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def compare_sets(
    network: FeatureNetwork, real: Sequence[Path], generated: Sequence[Path], options: Options
) -> dict[str, Any]:
    """The figures of one network; `real` is empty where there are statistics only."""

    def extract(folder: Path, files: Sequence[Path]) -> Tensor:
        with progress_bar(len(files), f"{network.name}, {printable(folder.name)}") as bar:
            return extract_features(network, files, options.batch_size, bar.update)

    reference: Gaussian | Tensor
    if real:
        cache = (options.cache_folder or cache_folder()) if options.cache else None
        reference = folder_features(network, options.real, real, lambda: extract(options.real, real), cache)
    else:
        reference = read_statistics(options.real)
    ours = extract(options.generated, generated)
    if isinstance(reference, Gaussian) and len(reference.mean) != ours.shape[1]:
        raise DataError(
            f"{options.real}: statistics of {len(reference.mean)} features, where {network.name} has {ours.shape[1]}"
        )
    device = next(network.parameters()).device
    splits = SPLITS if len(generated) >= SPLITS * SPLIT_SIZE else 1
    mean, std = class_score(network.logits(ours.to(device)), splits)
    _, note, distance, monge, score = NETWORKS[network.name]
    figures: dict[str, Any] = {
        "note": note or None,
        key(distance): frechet_distance(reference, ours),
        key(score): {"mean": mean, "splits": splits, **({"std": std} if splits > 1 else {})},
    }
    if isinstance(reference, Tensor):
        sets = reference.to(device), ours.to(device)
        figures[key(monge)] = monge_distance(*sets)
        figures |= {"neighbors": options.neighbors, **manifold_scores(*sets, options.neighbors)._asdict()}
    smallest, dimensions = min(len(files) for files in (real, generated) if files), ours.shape[1]
    if smallest <= dimensions:
        figures["caution"] = (
            f"{smallest} pictures for {dimensions} features: the distance is far above that of large sets; "
            "compare it between sets of equal size only"
        )
    return figures


# --- pairs ------------------------------------------------------------------------------------------------------------


def compare_pairs(pairs: Sequence[tuple[Path, Path]], options: Options, device: torch.device) -> dict[str, Any]:
    """PSNR, SSIM and perceptual distance of pictures where their masks are True.

    Raises:
        DataError: sizes that differ, pictures too small for SSIM, a mask with no hole.
        ImageError, MaskError: a file that can't be used.
    """
    network = PerceptualLoss(efficientnet_stages()).to(device)
    figures = []
    with progress_bar(len(pairs), "pairs") as bar:
        for original_path, result_path in pairs:
            original, result = read_image(original_path), read_image(result_path)
            if original.size != result.size:
                sizes = " and ".join("x".join(map(str, picture.size)) for picture in (original, result))
                raise DataError(f"{original_path} and {result_path} differ in size: {sizes}")
            if min(original.size) < SSIM_WINDOW:
                raise DataError(f"{original_path}: smaller than {SSIM_WINDOW} pixels, the window of SSIM")
            hole = get_mask(options, original_path, original.size)
            if not hole.any():
                raise DataError(f"{original_path}: its mask has no hole")
            masks = torch.from_numpy(hole)[None].to(device)
            a, b = (to_signed(from_picture(picture)[None].to(device)) for picture in (original, result))
            values = (*hole_errors(a, b, masks), ssim(a, b, masks), perceptual_distance(network, a, b, masks))
            figures.append([float(value) for value in values])
            bar.update()
    absolute, square, similarity, distance = map(statistics.fmean, zip(*figures, strict=True))
    return {
        "images": len(pairs),
        # Of the mean error: a hole that is filled perfectly has no PSNR that could be averaged.
        "psnr": psnr_of_mean_error(square),
        "l1_of_255": 127.5 * absolute,
        "ssim": similarity,
        "perceptual_distance_not_lpips": distance,
    }


def check_masks(wanted: str | None) -> None:
    """Raise DataError if --masks is none of what it may be."""
    if wanted in MAKERS and wanted not in FIXED_MASKS:
        raise DataError(f"--masks {wanted}: there is chance in it; name a folder of the masks that were used")
    if wanted and wanted not in FIXED_MASKS and not (Path(wanted).is_dir() or Path(wanted).is_file()):
        raise DataError(f"--masks {wanted}: no such file or folder, and not one of {', '.join(FIXED_MASKS)}")


def get_mask(options: Options, path: Path, size: tuple[int, int]) -> np.ndarray:
    """Where an original file, of a size (W, H), is compared: bool [H, W]; all of it without --masks."""
    if options.masks is None:
        return np.ones(size[::-1], dtype=bool)
    if options.masks in FIXED_MASKS:
        return make_mask(options.masks, size[1], size[0]) ^ options.invert_mask
    source = Path(options.masks)
    if source.is_dir():
        mirrored = source / path.relative_to(options.real).parent
        source = find_mask_for(path, mirrored if mirrored.is_dir() else source)
    return load_mask(source, size, options.invert_mask)


# --- output -----------------------------------------------------------------------------------------------------------


def key(words: str) -> str:
    """A figure's name as a key of the report."""
    return words.lower().replace("é", "e").replace(" ", "_").replace("-", "_")


def table(report: dict[str, Any]) -> str:
    """The report in lines of text."""
    lines = []
    for side in ("real", "generated"):
        count = report[f"{side}_images"]
        lines.append(f"{side:<10} {printable(report[side])} ({'statistics' if count is None else f'{count} images'})")
    for name, (title, note, distance, monge, score) in NETWORKS.items():
        if figures := report.get(name):
            lines += ["", f"{title}: {note}" if note else title]
            if "missing" in figures:
                lines.append("  weights missing: no FID")
                continue
            score_form = SCORE_OF_SPLITS if "std" in figures[key(score)] else "{0[mean]:.3f}"
            forms = {key(name): (name, "{:.3f}") for name in (distance, monge)} | {key(score): (score, score_form)}
            lines += rows(forms | MANIFOLD, figures)
            lines += [f"  ({figures['caution']})"] if "caution" in figures else []
    if pairs := report.get("pairs"):
        where = "in the hole" if pairs["where"] == "hole" else "whole pictures"
        lines += ["", f"{pairs['images']} pairs, {where}", *rows(PAIRS, pairs)]
    return "\n".join([*lines, "", f"{report['seconds']} s"])


def rows(forms: dict[str, tuple[str, str]], figures: dict[str, Any]) -> list[str]:
    """A line for each figure that there is, by its title and its format."""
    found = {name: form for name, form in forms.items() if name in figures}
    return [f"  {title:<22}{form.format(figures[name], **figures)}" for name, (title, form) in found.items()]


if __name__ == "__main__":
    sys.exit(main())
