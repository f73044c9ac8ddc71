"""inpaint.py from the outside: files in, files and an exit status out."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from maskgit.cli import inpaint as inpaint_cli
from maskgit.cli import jobs
from maskgit.cli.inpaint import main
from maskgit.cli.options import Options
from maskgit.data import reading
from maskgit.decoding import DECODERS
from maskgit.pipeline import MaskGIT, image_seed


def save(path: Path, width: int = 16, height: int = 16, mode: str = "RGB", seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels) if channels > 1 else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save_mask(path: Path, width: int = 16, height: int = 16, rows: slice = slice(4, 9)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), dtype=bool)
    mask[rows] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return mask


def run(model: Path, tmp_path: Path, *options: str, images: Path | None = None, output: str = "out") -> int:
    source = tmp_path / "images" if images is None else images
    common = ["--images", str(source), "--model", str(model), "--output", str(tmp_path / output), "--device", "cpu"]
    return main([*common, "--steps", "3", *options])


def results(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_images_of_every_kind(model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(images / "wide.png", 60, 20)
    save(images / "large.jpg", 110, 190)
    save(images / "grey.png", mode="L")
    save(images / "transparent.png", mode="RGBA")
    save(images / "one pixel.png", 1, 1)
    save(images / "sub" / "ünï çødé 🙂.png")
    Image.new("P", (5, 9)).save(images / "palette.gif")
    assert run(model, tmp_path) == 0
    names = ["grey", "large", "one pixel", "palette", "sub/ünï çødé 🙂", "transparent", "wide"]
    expected = {f"{name}{suffix}" for name in names for suffix in (".png", ".strip.png")}
    assert set(results(tmp_path / "out")) == expected | {"overview.grid.png"}
    for name, size in (("wide", (60, 20)), ("large", (110, 190)), ("palette", (5, 9)), ("one pixel", (1, 1))):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.size == size and image.mode == "RGB"
    out = capsys.readouterr().out
    assert "inpainted 7 images in" in out and re.search(r"\d (images/s|s/image), ", out) and "loaded in" in out
    assert f"results in {tmp_path / 'out'}" in out and "grey.strip.png" in out


def test_failures_do_not_stop_the_others(
    model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    for name in ("a", "b", "c", "d", "e", "f"):
        save(images / f"{name}.png")
        save_mask(masks / f"{name}.png")
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:60])  # truncated
    (images / "c.png").write_text("no image")
    (masks / "d.png").unlink()
    save_mask(masks / "e.png", 20, 16)  # another size
    (masks / "f.png").write_bytes(b"")
    assert run(model, tmp_path, "--mask", str(masks), "--batch-size", "2") == 1
    assert set(results(tmp_path / "out")) == {"a.png", "a.strip.png"}
    captured = capsys.readouterr()
    assert "5 of 6 images failed:" in captured.err and "inpainted 1 image in" in captured.out
    for name, reason in (
        ("b.png", "can't be decoded"),
        ("c.png", "not an image"),
        ("d.png", "no mask named d.png"),
        ("e.png", "the mask is 20x16, the image 16x16"),
        ("f.png", "the file is empty"),
    ):
        line = next(line for line in captured.err.splitlines() if line.startswith(f"  {images / name}: "))
        assert reason in line
    assert "Traceback" not in captured.err


def test_all_fail(model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "a.png").write_bytes(b"")
    assert run(model, tmp_path) == 1
    captured = capsys.readouterr()
    assert "1 of 1 images failed" in captured.err and "inpainted" not in captured.out


def test_a_batch_that_breaks_is_done_one_by_one(
    model: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "bad", "c"):
        save(images / f"{name}.png", width=17 if name == "bad" else 16)
    inpaint = MaskGIT.inpaint

    def picky(self, pictures, *args, **options):
        if any(picture.width == 17 for picture in pictures):
            raise RuntimeError("out of memory\nlong story")
        return inpaint(self, pictures, *args, **options)

    monkeypatch.setattr(MaskGIT, "inpaint", picky)
    assert run(model, tmp_path) == 1
    assert set(results(tmp_path / "out")) == {"a.png", "a.strip.png", "c.png", "c.strip.png", "overview.grid.png"}
    assert capsys.readouterr().err.rstrip().endswith("bad.png: out of memory")


def test_same_seed_same_pictures_whatever_the_batch_and_order(
    model: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        save(images / f"{i}.png", 16 + i, 20, seed=i)
    assert run(model, tmp_path, "--mask", "strokes", "--seed", "7") == 0
    first = results(tmp_path / "out")
    assert run(model, tmp_path, "--mask", "strokes", "--seed", "7", "--batch-size", "2", output="two") == 0
    assert results(tmp_path / "two") == first
    find_images = jobs.find_images
    monkeypatch.setattr(jobs, "find_images", lambda folder: find_images(folder)[::-1])
    assert run(model, tmp_path, "--mask", "strokes", "--seed", "7", "--batch-size", "3", output="reversed") == 0
    assert results(tmp_path / "reversed") == first
    assert run(model, tmp_path, "--mask", "strokes", "--seed", "7", output="alone", images=images / "3.png") == 0
    assert results(tmp_path / "alone") == {name: first[name] for name in ("3.png", "3.strip.png")}
    assert run(model, tmp_path, "--mask", "strokes", "--seed", "8", output="other") == 0
    assert results(tmp_path / "other") != first


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = save(images / "a.png")
    mask = save_mask(tmp_path / "mask.png")
    assert run(model, tmp_path, "--decoder", name, "--mask", str(tmp_path / "mask.png")) == 0
    assert "3 steps" in capsys.readouterr().out  # the option's, not the decoder's
    config = dataclasses.replace(DECODERS[name], steps=3)
    pipeline = MaskGIT.from_pretrained(model, device="cpu")
    expected = pipeline.inpaint([Image.fromarray(pixels)], [mask], config=config, seeds=[image_seed(0, "a.png")])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), np.asarray(expected[0].image))


def test_masks(model: Path, tmp_path: Path, images: Path) -> None:
    image = save(images / "a.png", 16, 32)
    output = tmp_path / "out" / "a.png"

    def changed(*options: str) -> np.ndarray:
        assert run(model, tmp_path, *options) == 0
        return (np.asarray(Image.open(output)) != image).any((1, 2))

    save_mask(tmp_path / "empty.png", 16, 32, slice(0))
    assert not changed("--mask", str(tmp_path / "empty.png")).any()
    save_mask(tmp_path / "full.png", 16, 32, slice(None))
    assert changed("--mask", str(tmp_path / "full.png")).all()
    rows = changed("--mask", "top")
    assert rows[:16].all() and not rows[20:].any()  # a patch is 4 rows of this image
    rows = changed("--mask", "top", "--invert-mask")
    assert rows[16:].all() and not rows[:12].any()
    save_mask(tmp_path / "masks" / "a.bmp", 16, 32, slice(0, 8))
    rows = changed("--mask", str(tmp_path / "masks"))
    assert rows[:8].all() and not rows[12:].any()
    rows = changed("--mask", str(tmp_path / "masks"), "--invert-mask")
    assert rows[8:].all() and not rows[:4].any()
    assert changed("--mask", str(tmp_path / "empty.png"), "--no-paste").any()


def test_masks_of_mirrored_folders(model: Path, tmp_path: Path, images: Path) -> None:
    for name, rows in (("x/a", slice(0, 4)), ("y/a", slice(12, 16))):
        save(images / f"{name}.png")
        save_mask(tmp_path / "masks" / f"{name}.png", rows=rows)
    assert run(model, tmp_path, "--mask", str(tmp_path / "masks")) == 0
    before = np.asarray(Image.open(images / "x" / "a.png"))
    x, y = (np.asarray(Image.open(tmp_path / "out" / name / "a.png")) for name in "xy")
    assert np.array_equal(x[8:], before[8:]) and np.array_equal(y[:8], before[:8])


def test_results_never_overwrite_each_other(model: Path, tmp_path: Path, images: Path) -> None:
    names = (
        "a.jpg",
        "a.png",
        "a.strip.png",
        "a.maps.png",
        "a.png.bmp",
        "b/a.png",
        "overview.grid.jpg",
        "b/overview.jpg",
    )
    for name in names:
        save(images / name)
    assert run(model, tmp_path, "--maps") == 0
    assert len(results(tmp_path / "out")) == 3 * len(names) + 1
    taken: set[str] = set()
    names = tuple(jobs.free_name(Path(name), taken, [".png"]) for name in ("a.png", "A.bmp", "A.BMP", "a.Bmp"))
    assert names == ("a", "A.bmp", "A.BMP-2", "a.Bmp-3")


def test_results_are_not_taken_for_input(model: Path, tmp_path: Path, images: Path) -> None:
    save(images / "a.png")
    for _ in range(2):
        assert run(model, tmp_path, output="images/out") == 0
    assert set(results(images)) == {"a.png", "out/a.png", "out/a.strip.png"}


def test_strips_without_steps(model: Path, tmp_path: Path, images: Path) -> None:
    save(images / "a.png")
    widths = []
    for option in ("--save-steps", "--no-save-steps"):
        assert run(model, tmp_path, option) == 0
        with Image.open(tmp_path / "out" / "a.strip.png") as strip:
            widths.append(strip.width)
    assert 1.9 < widths[0] / widths[1] < 2.1  # six pictures, three pictures


@pytest.mark.parametrize("when", ["loading", "inpainting"])
def test_interrupt(
    model: Path,
    tmp_path: Path,
    images: Path,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in "abc":
        save(images / f"{name}.png")
    write_results, written = inpaint_cli.write_results, []

    def interrupt(*args, **options):
        written.append(args)
        if len(written) == 2 or when == "loading":
            raise KeyboardInterrupt
        return write_results(*args)

    if when == "loading":
        monkeypatch.setattr(MaskGIT, "from_pretrained", interrupt)
    else:
        monkeypatch.setattr(inpaint_cli, "write_results", interrupt)
    assert run(model, tmp_path) == 130
    expected = "interrupted" if when == "loading" else f"interrupted: 1 of 3 images are done, in {tmp_path / 'out'}"
    assert capsys.readouterr().err.splitlines()[-1] == expected
    if when == "inpainting":
        assert set(results(tmp_path / "out")) == {"a.png", "a.strip.png"}


def test_only_one_batch_is_in_memory(
    model: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        save(images / f"{i}.png")
    events: list[str] = []
    read_picture, write_results = inpaint_cli.read_picture, inpaint_cli.write_results
    monkeypatch.setattr(inpaint_cli, "read_picture", lambda path: events.append("r") or read_picture(path))
    monkeypatch.setattr(inpaint_cli, "write_results", lambda *args: events.append("w") or write_results(*args))
    assert run(model, tmp_path, "--batch-size", "2") == 0
    assert "".join(events) == "rrww" * 3 + "w"  # the overview
    # Huge images make the batches smaller.
    monkeypatch.setattr(inpaint_cli, "_BATCH_PIXELS", 100)
    events.clear()
    assert run(model, tmp_path, "--batch-size", "2") == 0
    assert "".join(events) == "rw" * 6 + "w"


def test_script_and_odd_file_names(model: Path, tmp_path: Path, images: Path) -> None:
    """The script at the root runs, also where a file's name is no valid UTF-8."""
    root = Path(inpaint_cli.__file__).parents[2]
    if not (root / "inpaint.py").exists():
        pytest.skip("not run from a checkout")
    save(tmp_path / "a.png")
    try:
        shutil.copy(tmp_path / "a.png", os.fsencode(images) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes valid names only")
    command = [sys.executable, str(root / "inpaint.py"), "--images", str(images), "--model", str(model), "--steps", "2"]
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "inpainted 1 image" in done.stdout
    assert len(os.listdir(tmp_path / "outputs" / "inpaint")) == 2


# --- other tasks ------------------------------------------------------------------------------------------------------


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_folder_is_outpainted(model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save(images / "a.png", 20, 16), save(images / "sub" / "b.png", 32, 32, seed=1)
    (images / "bad.png").write_bytes(b"no image")
    arguments = ["--images", str(images), "--model", str(model), "--output", str(tmp_path / "out"), "--steps", "2"]
    assert main([*arguments, "--outpaint", "0", "25%", "50%", "3"]) == 1
    out = capsys.readouterr()
    assert "outpainted 2 images" in out.out and "bad.png: " in out.err and "strip" not in out.out
    for original, name in ((a, "a.png"), (b, "sub/b.png")):
        result = read(tmp_path / "out" / name)
        height, width = original.shape[:2]
        top = height // 4
        assert result.shape == (height + top + 3, width + width // 2, 3)
        assert np.array_equal(result[top + 8 : top + height - 8, :-16][:, : width - 16], original[8:-8, : width - 16])


def test_a_class_is_pasted_into_a_box(class_model: Path, tmp_path: Path, images: Path) -> None:
    original = save(images / "a.png", 32, 32)
    arguments = ["--images", str(images), "--model", str(class_model), "--steps", "3", "--no-save-steps"]
    arguments += ["--box", "25%", "8", "50%", "40%"]
    results = {}
    for name in ("cats", "dogs & co", "1", None):
        output = tmp_path / str(name)
        assert main([*arguments, "--output", str(output), *(["--class", name] if name else [])]) == 0
        results[name] = read(output / "a.png")
        known = np.ones((32, 32), dtype=bool)
        known[8 : 8 + 13, 8:24] = False
        assert np.array_equal(results[name][known], original[known])
    assert np.array_equal(results["dogs & co"], results["1"])
    assert not np.array_equal(results["cats"], results["1"]) and not np.array_equal(results["cats"], results[None])
    assert main([*arguments, "--output", str(tmp_path / "g"), "--class", "cats", "--guidance", "4"]) == 0
    assert not np.array_equal(read(tmp_path / "g" / "a.png"), results["cats"])


def test_pictures_from_nothing(class_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(class_model), "--steps", "2", "--class", "cats"]
    assert main([*arguments, "--generate", "5", "--batch-size", "2", "--output", str(tmp_path / "five")]) == 0
    assert "generated 5 images" in capsys.readouterr().out
    assert main([*arguments, "--generate", "3", "--output", str(tmp_path / "three")]) == 0
    files = sorted(path.name for path in (tmp_path / "five").iterdir())
    assert files == [*(f"000{i}.png" for i in range(5)), "overview.grid.png"]
    pictures = [read(tmp_path / "five" / name) for name in files[:5]]
    assert pictures[0].shape == (16, 16, 3) and not np.array_equal(pictures[0], pictures[1])
    for name, picture in zip(files, pictures[:3], strict=False):
        assert np.array_equal(read(tmp_path / "three" / name), picture)


def test_a_box_outside_the_picture(
    model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images / "a.png")
    arguments = ["--images", str(images), "--model", str(model), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--box", "90", "0", "5", "5"]) == 1
    assert "the box is outside this picture of 16x16" in capsys.readouterr().err


# --- pictures of a run ------------------------------------------------------------------------------------------------


def test_overview(model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masked, filled and original side by side, for each image by its name."""
    colors = {"a": (200, 30, 40), "b": (40, 180, 60), "c": (50, 60, 190)}
    for name, color in colors.items():
        Image.new("RGB", (64, 64), color).save(images / f"{name}.png")
    save_mask(tmp_path / "mask.png", 64, 64, slice(48, 64))
    assert run(model, tmp_path, "--mask", str(tmp_path / "mask.png")) == 0
    assert "overview.grid.png shows all of them" in capsys.readouterr().out
    picture = read(tmp_path / "out" / "overview.grid.png")
    width, height = picture.shape[1] // 6, picture.shape[0] // 2
    for i, color in enumerate(colors.values()):
        for part in range(3):
            seen = picture[i // 2 * height :, (3 * (i % 2) + part) * width :][:height, :width]
            share = (seen == color).all(-1).sum() / 128**2
            # The last row of 16 tokens is hatched, or filled by a model that knows nothing, and blends in above.
            assert share == pytest.approx(1 if part == 2 else 0.75, abs=0.1), (i, part)
    # A single image has its strip.
    assert run(model, tmp_path, images=images / "a.png", output="one") == 0
    assert set(results(tmp_path / "one")) == {"a.png", "a.strip.png"}


def test_overview_of_many(
    model: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inpaint_cli, "_SHOWN", 2)
    for name in "abc":
        save(images / f"{name}.png")
    assert run(model, tmp_path) == 0
    assert "overview.grid.png shows the first 2 of them" in capsys.readouterr().out
    assert 6 * 128 < read(tmp_path / "out" / "overview.grid.png").shape[1] < 7 * 128


def test_maps(class_model: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = save(images / "a.png", 32, 48)
    save(images / "b.png", 8, 8)
    save_mask(tmp_path / "mask.png", 32, 48, slice(12, 36))
    arguments = ("--mask", str(tmp_path / "mask.png"), "--class", "cats", "--guidance", "1", "--maps")
    assert run(class_model, tmp_path, *arguments, images=images / "a.png") == 0
    assert "a.png  and  a.strip.png  and  a.maps.png" in capsys.readouterr().out
    assert run(class_model, tmp_path, *arguments[:-1], images=images / "a.png", output="plain") == 0
    first = results(tmp_path / "out")
    plain = results(tmp_path / "plain")
    assert plain == {name: first[name] for name in ("a.png", "a.strip.png")}  # maps don't change the result
    maps = read(tmp_path / "out" / "a.maps.png")
    assert maps.shape[1] > 4 * 85 and maps.shape[0] > 3 * 128

    # Another point: its own token is framed. 8 of 32 pixels to the right is column 2 of 8, 50% down is row 4.
    assert run(class_model, tmp_path, *arguments, "--map-at", "8", "50%", images=images / "a.png", output="at") == 0
    assert results(tmp_path / "at")["a.png"] == first["a.png"]
    assert results(tmp_path / "at")["a.maps.png"] != first["a.maps.png"]
    point = jobs.query_point(Options(map_at=("8", "50%")), jobs.Job(None, "a", tmp_path), Image.fromarray(original))
    assert point == (8, 24) and jobs.query_token(point, (32, 48), (8, 8)) == (4, 2)
    assert jobs.query_token((31, 47), (32, 48), (8, 8)) == (7, 7) and jobs.query_token(None, (1, 1), (8, 8)) is None

    # A point outside one of the pictures fails that one; where nothing is filled there is nothing to show.
    assert run(class_model, tmp_path, "--maps", "--map-at", "20", "20", output="some") == 1
    assert "b.png: --map-at 20 20 is outside this picture of 8x8" in capsys.readouterr().err
    assert "a.maps.png" in results(tmp_path / "some")
    save_mask(tmp_path / "empty.png", 32, 48, slice(0))
    assert run(class_model, tmp_path, "--mask", str(tmp_path / "empty.png"), "--maps", images=images / "a.png") == 0


# --- a real folder ----------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files of many kinds, among them bad ones, in sub-folders."""
    folder = tmp_path_factory.mktemp("photos")
    save(folder / "plain.png", 16, 16)
    save(folder / "animals" / "plain.jpg", 24, 18)
    save(folder / "alpha.png", mode="RGBA")
    noise = np.random.default_rng().integers(0, 2**16, (20, 16), dtype=np.uint16)
    Image.fromarray(noise).save(folder / "sixteen.png")
    Image.fromarray((noise >> 8).astype(np.uint8)).convert("CMYK").save(folder / "cmyk.jpg")
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue", "lime")]
    frames[0].save(folder / "animals" / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 12), "red").save(folder / "turned.jpg", exif=exif)
    (folder / "truncated.png").write_bytes((folder / "plain.png").read_bytes()[:200])
    (folder / "text.jpg").write_text("no picture")
    (folder / "animals" / "empty.png").write_bytes(b"")
    (folder / "huge.png").write_bytes(png_header(60_000, 60_000))
    return folder


GOOD = {
    "plain": (16, 16), "animals/plain": (24, 18), "alpha": (16, 16), "sixteen": (16, 20), "cmyk": (16, 20),
    "animals/moving": (16, 12), "turned": (12, 20),
}  # fmt: skip
BAD = {
    "truncated.png": "can't be decoded: ", "text.jpg": "not an image", "animals/empty.png": "the file is empty",
    "huge.png": "too large",
}  # fmt: skip


@pytest.mark.parametrize(
    "options, done, enlarged",
    [
        (["--mask", "strokes", "--maps"], "inpainted", 0),
        (["--outpaint", "0", "0", "50%", "0"], "outpainted", 0.5),
        (["--box", "25%", "25%", "50%", "50%", "--class", "dogs & co"], "inpainted", 0),
    ],
    ids=["inpaint", "outpaint", "class"],
)
def test_a_folder_with_bad_files(
    class_model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    done: str,
    enlarged: float,
) -> None:
    """Every good file is done and every bad one named, in each task; doing it again gives the same files."""
    before = results(photos)
    assert run(class_model, tmp_path, *options, images=photos, output="deep/out") == 1
    captured = capsys.readouterr()
    assert f"{done} {len(GOOD)} images in" in captured.out
    assert f"{len(BAD)} of {len(GOOD) + len(BAD)} images failed:" in captured.err and "Traceback" not in captured.err
    lost = [line for line in captured.err.splitlines() if line.startswith("not in the result: ")]
    assert lost == [
        "not in the result: all frames or pages but number 1 (of animals/moving.gif)",
        "not in the result: the exact colors of CMYK, which become RGB (of cmyk.jpg)",
    ]
    failed = captured.err[captured.err.index("images failed:") :].splitlines()[1:]
    for name, reason in BAD.items():
        assert any(line.startswith(f"  {photos / name}: {reason}") for line in failed), name
    assert len(failed) == len(BAD)
    # The bar, printed anew in place: never backwards, and all of the files at its end.
    counts = [float(count) for count in re.findall(rf" ([\d.]+)/{len(GOOD) + len(BAD)} ", captured.err)]
    assert counts == sorted(counts) and counts[-1] == len(GOOD) + len(BAD)

    output = tmp_path / "deep" / "out"
    written = results(output)
    suffixes = [
        ".png",
        *([".strip.png"] if done == "inpainted" else []),
        *([".maps.png"] if "--maps" in options else []),
    ]
    assert set(written) == {f"{name}{suffix}" for name in GOOD for suffix in suffixes} | {"overview.grid.png"}
    for name, (width, height) in GOOD.items():
        with Image.open(output / f"{name}.png") as image:
            mode = {"alpha": "RGBA", "sixteen": "I;16"}.get(name, "RGB")
            assert image.mode in (mode, mode[0]) and image.size == (width + round(enlarged * width), height), name
            image.load()
    assert results(photos) == before
    (output / "plain.png").write_bytes(b"left by somebody")
    assert run(class_model, tmp_path, *options, images=photos, output="deep/out") == 1
    assert results(output) == written


@pytest.mark.parametrize("options", [["--mask", "center"], ["--outpaint", "2", "1", "0", "0"]])
def test_results_carry_what_their_files_do(model: Path, tmp_path: Path, images: Path, options: list[str]) -> None:
    """Known pixels bit by bit, the color profile, EXIF; upright."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = profile[:16] + b"GRAY" + profile[20:]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a phone"
    stored = {
        "rgba": Image.fromarray(save(tmp_path / "x.png", 20, 12, "RGBA")),
        "la": Image.fromarray(save(tmp_path / "x.png", 20, 12, "LA")),
        "sixteen": Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (12, 20), dtype=np.uint16)),
    }
    for name, image in stored.items():
        image.save(images / f"{name}.png", exif=exif, icc_profile=profile if name == "rgba" else grey)
    assert run(model, tmp_path, *options) == 0
    left, top = (2, 1) if options[0] == "--outpaint" else (0, 0)
    for name, image in stored.items():
        shown = np.rot90(np.asarray(image), -1)  # a quarter turn clockwise
        with Image.open(tmp_path / "out" / f"{name}.png") as result:
            pixels = np.asarray(result)
            assert result.getexif()[0x010F] == "a phone" and 0x0112 not in result.getexif()
            assert result.info["icc_profile"] == (profile if name == "rgba" else grey)
        known = np.ones(pixels.shape[:2], dtype=bool)
        if left:
            known[:], known[top:, left:] = False, True
        else:
            known[5:15, 3:9] = False  # the centre of 12x20
        assert np.array_equal(pixels[known], shown[known[top:, left:]])


def test_a_picture_that_is_too_large(
    model: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reading, "MOST_PIXELS", 1000)
    save(images / "a.png", 50, 20)
    save(images / "b.png", 77, 13)
    assert run(model, tmp_path) == 1
    reason = "too large: 77x13 pixels, at most 1,000 are read; scale it down"
    assert f"  {images / 'b.png'}: {reason}" in capsys.readouterr().err
    assert set(results(tmp_path / "out")) == {"a.png", "a.strip.png"}


def test_a_margin_that_is_too_large(
    model: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "MOST_PIXELS", 1000)
    save(images / "a.png", 16, 16)
    save(images / "b.png", 32, 20)
    assert run(model, tmp_path, "--outpaint", "0", "0", "200%", "0") == 1
    captured = capsys.readouterr()
    assert f"  {images / 'b.png'}: with --outpaint 0 0 200% 0 it would have 96x20 pixels; at most 1,000" in captured.err
    assert set(results(tmp_path / "out")) == {"a.png"}
