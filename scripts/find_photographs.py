"""Photographs to try inpainting on: those of Debian's wallpaper packages, which anyone can fetch and nobody ships here.

    python scripts/find_photographs.py --output photographs      # on Debian or Ubuntu, with its package sources

Writes OUTPUT/test (twelve, on which docs/photographs.md reports) and OUTPUT/train (the others, for a model of one's
own). Authors and licences are in the packages, whose copyright files are put beside the pictures.

With `--crops 20000`, OUTPUT/crops too: squares of OUTPUT/train at all scales, from a pixel of the photograph for one of
the model's to all of its height, to train a model on that knows what it meets in windows around holes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskgit.console import UsageError, run_command

PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": (
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace "
        "Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich friends_by_Aitzol_Berasategi "
        "greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi "
        "seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi"
    ),
    "lomiri-wallpapers-20.04": "Kleiber_by_Lukas_Baubkus",
    "mate-backgrounds": "Blinds Dune LadyBird RainDrops Storm TwoWings Wood",
    "plasma-workspace-wallpapers": (
        "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path summer_1am"
    ),
}
"""By package. The rest of them are drawings and gradients."""

TEST = frozenset(
    (
        "Dragonfly_by_Bolly aitzgorri_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi "
        "picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt Kleiber_by_Lukas_Baubkus LadyBird "
        "EveningGlow FallenLeaf OneStandsOut Path"
    ).split()
)


@dataclass(frozen=True)
class Options:
    """Fetch the photographs of Debian's wallpaper packages."""

    output: Path = Path("photographs")
    """Folder for them; files that are there already stay."""
    crops: int = 0
    """Squares to cut out of those that aren't for testing."""
    size: int = 64
    """Their side: that of the model."""


def fetch(options: Options) -> None:
    """Raises UsageError: a package can't be had here, or hasn't what it should."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UsageError(f"this needs {tool}, which Debian and Ubuntu have")
    for package, names in PHOTOGRAPHS.items():
        with tempfile.TemporaryDirectory() as folder:
            unpack(package, Path(folder))
            for name in names.split():
                found = [path for path in Path(folder).rglob("*.jpg") if name in (path.stem, path.parts[-4])]
                if not found:
                    raise UsageError(f"{package}: has no photograph {name} in this version")
                largest = max(found, key=lambda path: path.stat().st_size)
                put(largest, options.output / ("test" if name in TEST else "train") / f"{name}.jpg")
            put(next(Path(folder).rglob("copyright")), options.output / f"{package}.copyright.txt")
    if options.crops:
        crop(sorted((options.output / "train").glob("*.jpg")), options.output / "crops", options.crops, options.size)


def unpack(package: str, folder: Path) -> None:
    print(f"fetching {package}", file=sys.stderr)
    download = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
    files = list(folder.glob("*.deb"))
    if download.returncode or not files:
        raise UsageError(f"{package}: apt-get download failed: {download.stderr.strip().splitlines()[-1:]}")
    subprocess.run(["dpkg-deb", "-x", files[0], folder], check=True)


def put(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def crop(photographs: Sequence[Path], folder: Path, count: int, size: int) -> None:
    """Write as many crops of each photograph: their sides' logarithms are uniform, and so are their places."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number, path in enumerate(tqdm(photographs, unit="photograph", disable=None)):
        image = Image.open(path).convert("RGB")
        for i in range(number, count, len(photographs)):
            side = round(size * (min(image.size) / size) ** generator.random())
            left, top = (int(generator.integers(length - side + 1)) for length in image.size)
            box = (left, top, left + side, top + side)
            small = image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3)
            small.save(folder / f"{path.stem}-{i:06}.png")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Options, fetch, argv)


if __name__ == "__main__":
    sys.exit(main())
