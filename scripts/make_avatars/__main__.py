"""Make the pictures of the data set `avatars`: drawings that DiceBear puts together from parts, by style and seed.

    cd scripts/make_avatars && npm ci && pip install -r requirements.txt && cd ../..     # Node 18 or newer
    python scripts/make_avatars --output avatars --per-style 5000    # a folder to train on, for --data avatars
    python scripts/make_avatars                                      # what the package holds: avatars.zip, its notice

The same versions give the same pixels. A picture that a lower seed of its style has given already is left out, and a
picture has the same name in a folder and in the package, by which it is held out or not: so whatever a folder holds
besides what the package does, nothing that is held out is trained on.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1] / "maskgit" / "assets"
SIZE = 64
STYLES = (
    *("adventurer", "big-smile", "fun-emoji", "lorelei", "micah", "miniavs"),
    *("notionists", "open-peeps", "personas", "pixel-art", "thumbs", "toon-head"),
)
PACKAGED = 500  # of each style
TRIES = 20  # seeds drawn for each picture wanted, before a style counts as exhausted

Credit = dict[str, str]


def draw(style: str, first: int, count: int) -> Iterator[Any]:
    """Whom a style is by, [Credit], then {style, seed, svg} for `count` seeds from `first`; see draw.mjs."""
    command = ["node", str(HERE / "draw.mjs"), str(first), str(count), style]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"{style} wasn't drawn: draw.mjs says why above")


def render(svg: str) -> Image.Image:
    """An SVG as 64x64 RGB."""
    import resvg_py

    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGB")


def webp(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "WEBP", lossless=True, quality=100, method=4)
    return data.getvalue()


def make_style(style: str, wanted: int) -> tuple[Credit, dict[str, bytes]]:
    """Who drew a style, and its first `wanted` distinct pictures as WebP files by name, "lorelei/12.webp"."""
    seen: set[bytes] = set()
    files: dict[str, bytes] = {}
    credit: Credit = {}
    for first in range(0, TRIES * wanted, wanted):
        credits, *drawings = draw(style, first, wanted)
        credit = credits[0]
        for drawing in drawings:
            picture = render(drawing["svg"])
            if picture.tobytes() not in seen and len(files) < wanted:
                seen.add(picture.tobytes())
                files[f"{style}/{drawing['seed']}.webp"] = webp(picture)
        if len(files) == wanted:
            break
    return credit, files


def notice(credits: list[Credit]) -> str:
    """Whom the pictures are by, and under which terms."""
    lines = [
        "The pictures of the data set `avatars` are drawings of the styles below, put together from their parts by",
        "DiceBear (https://www.dicebear.com, its code under the MIT License). Changed was no more than this: they have",
        f"colored backgrounds, notionists are enlarged, and all are rendered at {SIZE}x{SIZE} pixels.",
    ]
    for credit in credits:
        lines += [
            "",
            f"{credit['style']}: {credit['title']} by {credit['creator']} ({credit['homepage']})",
            f"  source: {credit['source']}",
            f"  license: {credit['license']} ({credit['terms']})",
        ]
    return "\n".join(lines) + "\n"


def write_package(made: list[tuple[Credit, dict[str, bytes]]], path: Path) -> None:
    """The zip that the package holds: pictures, index and notice. The same pictures give the same bytes."""
    credits = [credit for credit, _ in made]
    files = {name: data for _, pictures in made for name, data in pictures.items()}
    index = {"size": SIZE, "styles": credits, "pictures": list(files)}
    text = notice(credits)
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w") as archive:

        def add(name: str, data: bytes, compression: int) -> None:
            # A ZipInfo carries 1980-01-01 unless told otherwise: nothing in the file depends on the clock.
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, 0o644 << 16, compression
            archive.writestr(info, data)

        add("NOTICE.txt", text.encode(), zipfile.ZIP_DEFLATED)
        add("index.json", json.dumps(index, ensure_ascii=False, indent=0).encode(), zipfile.ZIP_DEFLATED)
        for name, data in files.items():
            add(name, data, zipfile.ZIP_STORED)
    os.replace(temporary, path)
    path.with_name("AVATARS_NOTICE.txt").write_text(text, encoding="utf-8")


def write_folder(made: list[tuple[Credit, dict[str, bytes]]], folder: Path) -> None:
    """A folder for each style, as `--data` takes it, with the notice beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "NOTICE.txt").write_text(notice([credit for credit, _ in made]), encoding="utf-8")
    for _, pictures in made:
        for name, data in pictures.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="an empty or new folder for pictures; by default the package's zip")
    parser.add_argument(
        "--per-style", type=int, default=PACKAGED, metavar="N", help="pictures of each style (%(default)s)"
    )
    args = parser.parse_args()
    if args.per_style < 1:
        parser.error(f"--per-style {args.per_style}: must be at least 1")
    if args.output is not None and args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        parser.error(f"--output {args.output}: is there already; choose a new folder")
    if shutil.which("node") is None:
        sys.exit("node was not found: install Node.js 18 or newer")
    if not (HERE / "node_modules").is_dir():
        sys.exit(f"DiceBear is missing: run `npm ci` in {HERE}")
    if importlib.util.find_spec("resvg_py") is None:
        sys.exit(f"resvg-py is missing: pip install -r {HERE / 'requirements.txt'}")
    with ProcessPoolExecutor() as pool:
        work = pool.map(functools.partial(make_style, wanted=args.per_style), STYLES)
        made = list(tqdm(work, total=len(STYLES), desc="drawing", unit="style", disable=None))
    for style, (_, files) in zip(STYLES, made, strict=True):
        if len(files) < args.per_style:
            print(f"{style} has no more than {len(files)} pictures in {TRIES * args.per_style} seeds")
    if args.output is None:
        write_package(made, ASSETS / "avatars.zip")
    else:
        write_folder(made, args.output)
    count = sum(len(files) for _, files in made)
    print(f"{args.output or ASSETS / 'avatars.zip'}: {count} pictures of {len(STYLES)} styles")


if __name__ == "__main__":
    main()
