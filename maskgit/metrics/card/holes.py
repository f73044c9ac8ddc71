"""What a model's card says of the filling of holes, measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskgit.console import progress_bar
from maskgit.data.pixels import to_signed
from maskgit.decoding import DecodeConfig
from maskgit.metrics import held_out
from maskgit.metrics.card.measuring import extract, timed
from maskgit.metrics.card.settings import Options
from maskgit.metrics.figures import spread
from maskgit.metrics.held_out import HeldOut, from_picture
from maskgit.metrics.pairs import hole_errors, psnr_of_mean_error
from maskgit.metrics.sets import frechet_distance, monge_distance
from maskgit.pipeline import InpaintResult, MaskGIT

HOLES = {"center": "center hole, half the side", "boxes": "random boxes"}
"""Mask makers whose holes are filled, and their names in the report."""

OURS = "MaskGIT"

PICTURES = 24
"""Images in each picture."""


def shown_indices(count: int, seed: int) -> list[int]:
    """The images of the pictures: of `count`, drawn at random, in random order."""
    return [int(i) for i in np.random.default_rng((seed, 3)).permutation(count)[:PICTURES]]


def measure_holes(
    model: MaskGIT,
    network: nn.Module,
    images: HeldOut,
    decoded: Tensor,
    reference: Tensor,
    config: DecodeConfig,
    options: Options,
    seconds: dict[str, float],
) -> tuple[dict[str, Any], list[InpaintResult]]:
    """Fill holes in all images by all methods, and compare with the originals.

    Args:
        decoded: uint8 [n, 3, S, S], what the tokenizer makes of the images.
        reference: the originals' features, float64 [n, D].

    Returns:
        The figures by hole and method; and the inpaintings to show: the first half with the first kind of hole, the
        second half with the second.
    """
    pixels, count = images.pixels, len(images.pixels)
    wanted = shown_indices(count, options.seed)
    halves = (wanted[: (len(wanted) + 1) // 2], wanted[(len(wanted) + 1) // 2 :])
    masks = {hole: held_out.hole_masks(hole, range(count), pixels.shape[2], options.seed) for hole in HOLES}
    # What the images became by hole and method, uint8 [n, 3, S, S] each; of ours, one for each seed.
    fills: dict[str, dict[str, list[Tensor]]] = {hole: {OURS: []} for hole in HOLES}
    shown: list[InpaintResult] = []
    with timed(seconds, "inpainting"), progress_bar(len(HOLES) * options.seeds * count, "inpainting") as bar:
        for hole, half in zip(HOLES, halves, strict=True):
            for turn in range(options.seeds):
                results = held_out.inpaint(
                    model,
                    pixels,
                    masks[hole],
                    range(count),
                    options.seed + turn,
                    config=config,
                    labels=images.labels,
                    batch_size=options.batch_size,
                    progress=bar.update,
                )
                fills[hole][OURS].append(torch.stack([from_picture(result.image) for result in results]))
                if turn == 0:
                    shown += [results[i] for i in half]
    with timed(seconds, "other methods"):
        for hole, drawn in masks.items():
            others = {
                held_out.TELEA: map(held_out.fill_telea, pixels, drawn),
                "mean colour": map(held_out.fill_mean, pixels, drawn),
                held_out.TOKENIZER_ONLY: map(held_out.paste_decoded, pixels, decoded, drawn),
            }
            fills[hole] |= {name: [torch.stack([*filled])] for name, filled in others.items()}

    def compare(filled: Tensor, drawn: np.ndarray, what: str) -> dict[str, float]:
        absolute, square = hole_errors(to_signed(filled), to_signed(pixels), torch.from_numpy(drawn))
        ours = extract(network, filled, options, what)
        return {
            "frechet": frechet_distance(ours, reference),
            "monge": monge_distance(ours, reference),
            # Of the mean error: a hole in plain white filled perfectly has no PSNR that could be averaged.
            "psnr_in_hole": psnr_of_mean_error(float(square.mean())),
            "l1_in_hole": 127.5 * float(absolute.mean()),
        }

    with timed(seconds, "features of filled images"):
        return {
            hole: {
                method: _spread([compare(filled, masks[hole], f"{method}, {hole}") for filled in versions])
                for method, versions in methods.items()
            }
            for hole, methods in fills.items()
        }, shown


def _spread(versions: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Figures of each time that holes were filled: mean and deviation of each figure."""
    return {key: spread([version[key] for version in versions]) for key in versions[0]}
