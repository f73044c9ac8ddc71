"""How well holes in photographs are filled, in windows and squeezed, beside OpenCV: tables and pictures.

    python scripts/find_photographs.py
    python scripts/measure_photographs.py --model MODEL --output outputs/photographs

Each photograph is cut into 2 x 2 cells, each of which gets a hole of the same kind at a random place: a scratch of 400
pixels, 5 wide; a stamp, letters of 64 pixels; a square of 60 pixels; a square of 300, of which there are two at most
(--large). All holes of one kind are filled at once. Compared is, for each hole, a square around its middle of 128
pixels, of 600 for the largest: Fréchet distance of the pooled features of EfficientNet-Lite0 (not FID), and the
distance in that network's features at the hole, as LPIPS without its learned weights; lower is better. Both only
compare within a column.

Writes OUTPUT/figures.json, OUTPUT/figures.md and for each kind OUTPUT/KIND.webp: the first hole of every photograph.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from maskgit.console import UsageError, markdown_table, progress_bar, require_at_least, run_command
from maskgit.data.pixels import to_signed
from maskgit.data.reading import read_image
from maskgit.files import write_atomically
from maskgit.machine import describe
from maskgit.metrics.features import EfficientNetFeatures, extract_features
from maskgit.metrics.figures import json_bytes, weights_digest
from maskgit.metrics.held_out import import_opencv
from maskgit.metrics.pairs import perceptual_distance
from maskgit.metrics.sets import frechet_distance
from maskgit.pictures.strips import overview
from maskgit.pipeline import MaskGIT, image_seed
from maskgit.tokenizer.losses import PerceptualLoss, efficientnet_stages

COLUMNS, ROWS = 2, 2
RADIUS = 3  # of OpenCV's methods
SHOWN = 128  # side of a picture on the sheets
FEATURES = 224  # and of one that is compared

KINDS = {"scratch": 128, "stamp": 128, "60 pixels": 128, "300 pixels": 600}
"""Kinds of holes, and the side of the square around each that is compared."""

LARGEST = "300 pixels"

METHODS = ("windows", "squeezed", "OpenCV Telea", "OpenCV Navier-Stokes")


@dataclass(frozen=True)
class Options:
    """Fill holes in photographs in several ways, and compare."""

    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    photographs: Path = Path("photographs/test")
    """Folder of them, as scripts/find_photographs.py makes it."""
    output: Path = Path("outputs/photographs")
    """Folder for figures and pictures."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Which kinds of holes."""
    most: int | None = None
    """Photographs to use at most. Default: all."""
    large: int = 2
    """Holes of 300 pixels in each photograph, which take longest."""
    steps: int | None = None
    """Decoding steps. Default: the model's, as the next two."""
    softmax_temperature: float | None = None
    """Divides the logits."""
    choice_temperature: float | None = None
    """How much chance there is in which tokens are kept."""
    seed: int = 0
    """Of places and decoding."""


def places(size: tuple[int, int], generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """The middle of a square of 600 pixels in each cell of a picture (width, height)."""
    width, height, half = size[0] // COLUMNS, size[1] // ROWS, max(KINDS.values()) // 2
    if min(width, height) < 2 * half:
        raise UsageError(
            f"a photograph of {size[0]}x{size[1]}: at least {2 * half * COLUMNS}x{2 * half * ROWS} are needed"
        )
    for row in range(ROWS):
        for column in range(COLUMNS):
            x, y = (int(generator.integers(half, side - half + 1)) for side in (width, height))
            yield column * width + x, row * height + y


def draw_hole(draw: ImageDraw.ImageDraw, kind: str, x: int, y: int, generator: np.random.Generator) -> None:
    """Around a place of a mask."""
    angle = generator.uniform(0, math.pi)
    if kind == "scratch":
        dx, dy = 200 * math.cos(angle), 200 * math.sin(angle)
        draw.line((x - dx, y - dy, x, y, x + dx, y + dy), fill=255, width=5)
    elif kind == "stamp":
        draw.text((x, y), "SAMPLE", fill=255, font=ImageFont.load_default(64), anchor="mm")
    else:
        half = int(kind.split()[0]) // 2
        draw.rectangle((x - half, y - half, x + half - 1, y + half - 1), fill=255)


def opencv(flag: str) -> Callable[[Image.Image, np.ndarray], Image.Image]:
    cv2 = import_opencv()

    def fill(image: Image.Image, mask: np.ndarray) -> Image.Image:
        filled = cv2.inpaint(np.asarray(image), mask.astype(np.uint8), RADIUS, getattr(cv2, flag))
        return Image.fromarray(filled)

    return fill


def squares(image: Image.Image, middles: Sequence[tuple[int, int]], side: int) -> list[Image.Image]:
    return [image.crop((x - side // 2, y - side // 2, x + side // 2, y + side // 2)) for x, y in middles]


def measure(options: Options) -> None:
    """Raises UsageError: no photographs, or too small ones."""
    require_at_least(options, {"most": 1, "steps": 1, "large": 1})
    paths = sorted(options.photographs.glob("*.jpg"))[: options.most]
    if unknown := set(options.kinds) - set(KINDS):
        raise UsageError(f"--kinds {' '.join(unknown)}: choose from {', '.join(KINDS)}")
    if not paths:
        raise UsageError(
            f"--photographs {options.photographs}: no photographs; scripts/find_photographs.py fetches them"
        )
    model = MaskGIT.from_pretrained(options.model)
    settings = {name: getattr(options, name) for name in ("steps", "softmax_temperature", "choice_temperature")}
    how = {name: value for name, value in settings.items() if value is not None}
    seconds: dict[str, float] = defaultdict(float)

    def ours(crop: str) -> Callable[[Image.Image, np.ndarray], Image.Image]:
        return lambda image, mask: model.inpaint(image, mask, crop=crop, seed=options.seed, **how).image

    ways = zip(METHODS, (ours("auto"), ours("off"), opencv("INPAINT_TELEA"), opencv("INPAINT_NS")), strict=True)
    methods = dict(ways)
    found: dict[str, dict[str, list[Image.Image]]] = {kind: defaultdict(list) for kind in options.kinds}
    with progress_bar(len(paths) * len(options.kinds) * len(METHODS), "filling", "fill") as bar:
        for path in paths:
            image = read_image(path)
            for kind in options.kinds:
                generator = np.random.default_rng(image_seed(options.seed, f"{path.stem}/{kind}") % 2**64)
                middles = list(places(image.size, generator))[: options.large if kind == LARGEST else None]
                drawn = Image.new("L", image.size)
                for middle in middles:
                    draw_hole(ImageDraw.Draw(drawn), kind, *middle, generator)
                mask = np.asarray(drawn) > 127
                found[kind]["original"] += squares(image, middles, KINDS[kind])
                found[kind]["hole"] += squares(Image.fromarray(mask), middles, KINDS[kind])
                for name, fill in methods.items():
                    start = time.perf_counter()
                    found[kind][name] += squares(fill(image, mask), middles, KINDS[kind])
                    seconds[name] += time.perf_counter() - start
                    bar.update()
    report = {
        "model": options.model,
        "weights": weights_digest(model),
        "photographs": len(paths),
        "seed": options.seed,
    } | how
    report |= {"figures": figures(found), "seconds": dict(seconds), "machine": describe(model.device)}
    files = {
        options.output / f"{kind.replace(' ', '-')}.webp": sheet(found[kind], len(paths)) for kind in options.kinds
    }
    text = "\n".join(tables(report["figures"]))
    options.output.mkdir(parents=True, exist_ok=True)
    contents = {options.output / "figures.json": json_bytes(report), options.output / "figures.md": text.encode()}
    write_atomically({**files, **contents})
    print(text)
    print(f"seconds: {json.dumps({name: round(value, 1) for name, value in seconds.items()})}")
    print(f"pictures in {options.output}")


def figures(found: dict[str, dict[str, list[Image.Image]]]) -> dict[str, dict[str, dict[str, float]]]:
    """By kind and method: Fréchet distance, and mean distance in features at the hole."""
    network, perceptual = EfficientNetFeatures().eval(), PerceptualLoss(efficientnet_stages())

    def tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
        small = [picture.resize((FEATURES, FEATURES), Image.Resampling.BICUBIC) for picture in pictures]
        return to_signed(torch.from_numpy(np.stack([np.array(one) for one in small])).permute(0, 3, 1, 2))

    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind, pictures in found.items():
        holes = [hole.convert("L").resize((FEATURES, FEATURES), Image.Resampling.BOX) for hole in pictures["hole"]]
        masks = torch.from_numpy(np.stack([np.asarray(hole) > 0 for hole in holes]))
        reference, original = extract_features(network, pictures["original"]), tensor(pictures["original"])
        results[kind] = {}
        for method in METHODS:
            filled = tensor(pictures[method])
            batches = [slice(start, start + 16) for start in range(0, len(filled), 16)]
            apart = [perceptual_distance(perceptual, filled[at], original[at], masks[at]) for at in batches]
            results[kind][method] = {
                "frechet": frechet_distance(extract_features(network, pictures[method]), reference),
                "perceptual": float(torch.cat(apart).mean()),
            }
    return results


def tables(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """One in Markdown for each figure."""
    lines: list[str] = []
    for figure, name in (("frechet", "Fréchet distance"), ("perceptual", "distance in features, at the hole")):
        rows = [[method, *(f"{kind[method][figure]:.3g}" for kind in results.values())] for method in METHODS]
        lines += markdown_table([name, *results], rows)
    return lines


def sheet(pictures: dict[str, list[Image.Image]], photographs: int) -> bytes:
    """The first hole of every photograph: masked, by each method, original."""
    groups = []
    for at in range(0, len(pictures["original"]), len(pictures["original"]) // photographs):
        masked = pictures["original"][at].copy()
        masked.paste("white", (0, 0), pictures["hole"][at].convert("L"))
        group = [masked, *(pictures[name][at] for name in (*METHODS, "original"))]
        groups.append([picture.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS) for picture in group])
    file = io.BytesIO()
    captions = ("hole", "windows", "squeezed", "Telea", "Navier-Stokes", "original")
    overview(groups, captions, 2).save(file, "webp", quality=80, method=6)
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Options, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
