"""Make the pictures of docs/gallery.md and docs/pictures.md, by the commands that they show: from a checkout's root.

python scripts/make_pictures.py                   # all of them
python scripts/make_pictures.py maps evolution    # some
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from maskgit.cli.inpaint import main as inpaint
from maskgit.data import read_image
from maskgit.files import SAMPLES, write_atomically
from maskgit.pictures.__main__ import main as evolution
from maskgit.pictures.strips import display_size, overview, resize

FOLDER = Path("docs/images")
SAMPLE = "maskgit/assets/samples/lorelei-333.png"

# Name of the picture: the command, its arguments, and which file that it writes is the picture.
PICTURES: dict[str, tuple[Callable[[list[str]], int], list[str], str]] = {
    "overview": (inpaint, [], "overview.grid.png"),
    **{mask: (inpaint, ["--mask", mask], "overview.grid.png") for mask in ("boxes", "strokes", "half")},
    "class-box": (inpaint, ["--box", "25%", "25%", "50%", "50%", "--class", "lorelei"], "overview.grid.png"),
    "outpainted": (inpaint, ["--outpaint", "0", "0", "50%", "0"], "overview.grid.png"),
    "all-classes": (inpaint, ["--generate", "24", "--class", "all"], "overview.grid.png"),
    "by-class": (inpaint, ["--generate", "12", "--class", "micah"], "overview.grid.png"),
    "guided": (inpaint, ["--generate", "12", "--class", "micah", "--guidance", "2"], "overview.grid.png"),
    "evolution": (evolution, ["--steps", "6"], "evolution.png"),
    "animation": (evolution, ["--steps", "6", "--animation", "webp"], "evolution.webp"),
    "maps": (inpaint, ["--images", SAMPLE, "--steps", "4", "--maps"], "lorelei-333.maps.png"),
}

VARIANTS, COUNT = "variants", 4


def make(name: str) -> None:
    """Write docs/images/NAME.webp."""
    with tempfile.TemporaryDirectory() as folder:
        if name == VARIANTS:
            picture = variants(Path(folder))
        else:
            command, arguments, file = PICTURES[name]
            run(command, [*arguments, "--output", folder])
            if file.endswith(".webp"):  # an animation, which stays as it is
                write_atomically({FOLDER / f"{name}.webp": Path(folder, file).read_bytes()})
                return
            picture = read_image(Path(folder, file))
        data = io.BytesIO()
        picture.save(data, "WEBP", quality=80, method=6)
        write_atomically({FOLDER / f"{name}.webp": data.getvalue()})


def run(command: Callable[[list[str]], int], arguments: list[str]) -> None:
    if command(arguments) != 0:
        raise SystemExit(f"{' '.join(arguments)}: the command failed")


def variants(folder: Path) -> Image.Image:
    """The sample images, each filled several times: a row for each."""
    run(inpaint, ["--variants", str(COUNT), "--no-save-steps", "--output", str(folder)])
    endings = [".png", *(f".variant{number}.png" for number in range(2, COUNT + 1))]
    rows = [[read_image(folder / f"{sample.stem}{ending}") for ending in endings] for sample in samples()]
    groups = [[read_image(sample), *row] for sample, row in zip(samples(), rows, strict=True)]
    enlarged = [[resize(picture, display_size(picture.size)) for picture in group] for group in groups]
    return overview(enlarged, ("original", *(f"variant {number}" for number in range(1, COUNT + 1))), 2)


def samples() -> list[Path]:
    return sorted(SAMPLES.glob("*.png"))


if __name__ == "__main__":
    known = [*PICTURES, VARIANTS]
    names = sys.argv[1:] or known
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: no picture named {unknown[0]}: choose from {', '.join(known)}")
    for name in names:
        make(name)
        path = FOLDER / f"{name}.webp"
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
