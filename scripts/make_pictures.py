"""Make the pictures of docs/pictures.md, by the commands that it shows: run from the root of a checkout.

python scripts/make_pictures.py                   # all of them
python scripts/make_pictures.py maps evolution    # some
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from maskgit.cli.inpaint import main as inpaint
from maskgit.files import write_atomically
from maskgit.pictures.__main__ import main as evolution

FOLDER = Path("docs/images")
SAMPLE = "maskgit/assets/samples/lorelei-333.png"

# Name of the picture: the command, its arguments, and which file that it writes is the picture.
PICTURES = {
    "overview": (inpaint, [], "overview.grid.png"),
    "outpainted": (inpaint, ["--outpaint", "0", "0", "50%", "0"], "overview.grid.png"),
    "generated": (inpaint, ["--generate", "12", "--class", "Food & Drink"], "overview.grid.png"),
    "evolution": (evolution, ["--steps", "6"], "evolution.png"),
    "animation": (evolution, ["--steps", "6", "--animation", "webp"], "evolution.webp"),
    "maps": (inpaint, ["--images", SAMPLE, "--steps", "4", "--maps"], "lorelei-333.maps.png"),
}


def make(name: str) -> None:
    """Write docs/images/NAME.webp."""
    command, arguments, file = PICTURES[name]
    with tempfile.TemporaryDirectory() as folder:
        if command([*arguments, "--output", folder]) != 0:
            raise SystemExit(f"{name}: the command failed")
        made = Path(folder, file)
        if made.suffix != ".webp":  # which is an animation, and stays as it is
            with Image.open(made) as image:
                made = made.with_suffix(".webp")
                image.save(made, quality=60, method=6)
        write_atomically({FOLDER / f"{name}.webp": made.read_bytes()})
    print(f"{FOLDER / name}.webp: {(FOLDER / f'{name}.webp').stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    names = sys.argv[1:] or list(PICTURES)
    if unknown := [name for name in names if name not in PICTURES]:
        raise SystemExit(f"error: no picture named {unknown[0]}: choose from {', '.join(PICTURES)}")
    for name in names:
        make(name)
