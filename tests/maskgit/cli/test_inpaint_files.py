"""What inpaint.py reads and what it may write: originals stay, results are known as such, nothing else is opened."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit.cli.inpaint import main
from maskgit.cli.options import Options, chosen_classes
from maskgit.config import TransformerConfig
from maskgit.console import UsageError
from maskgit.decoding import DecodeConfig
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture
def work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_tokenizer: VQGAN,
    tiny_transformer_config: TransformerConfig,
) -> Path:
    """The current folder: a model, photos/a.png and photos/b.png, masks of the same names."""
    MaskGIT(tiny_tokenizer, Transformer(tiny_transformer_config), device="cpu").save_pretrained(tmp_path / "model")
    for number, name in enumerate(("photos/a.png", "photos/b.png")):
        save(tmp_path / name, seed=number)
    hole = np.zeros((16, 16), dtype=np.uint8)
    hole[4:12, 4:12] = 255
    (tmp_path / "masks").mkdir()
    for name in ("masks/a.png", "masks/b.png"):
        Image.fromarray(hole).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def run(*options: str) -> int:
    return main(["--model", "model", "--device", "cpu", "--steps", "2", *options])


def contents(folder: Path, below: str = ".") -> dict[str, bytes | str]:
    """All files below a folder, and where links lead."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted((folder / below).rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith(start)]


# --- originals --------------------------------------------------------------------------------------------------------


def symbolic(name: str, target: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).symlink_to(os.path.relpath(target, Path(name).parent))


def hard(name: str, target: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    os.link(target, name)


A = "photos/a.png"


@pytest.mark.parametrize(
    ("prepare", "options", "named"),
    [
        (None, f"--images {A} --output photos", A),
        (None, "--images photos --output photos", A),
        (None, f"--images {A} --output ./masks/../photos/", A),
        (None, "--images {here}/photos --output photos", "{here}/" + A),
        (None, f"--images {A} --output photos --outpaint 1 1 1 1", A),
        (lambda: symbolic("linked", "photos"), f"--images {A} --output linked", A),
        (lambda: symbolic("linked", "photos"), "--images linked/a.png --output photos", "linked/a.png"),
        (lambda: symbolic("out/a.png", A), f"--images {A} --output out", A),
        (lambda: symbolic("out/a.png", "photos/b.png"), "--images photos --output out", "photos/b.png"),
        (lambda: hard("out/a.png", A), f"--images {A} --output out", A),
        # What two disks see, one of which doesn't tell cases apart.
        (lambda: (os.rename(A, "photos/A.PNG"), hard("photos/A.png", "photos/A.PNG")),
         "--images photos/A.PNG --output photos", "photos/A.PNG"),
        # Everything that is written besides.
        (lambda: symbolic("out/a.strip.png", A), f"--images {A} --output out", A),
        (lambda: hard("out/a.maps.png", "photos/b.png"), "--images photos --output out --maps", "photos/b.png"),
        (lambda: hard("out/overview.grid.png", "photos/b.png"), "--images photos --output out", "photos/b.png"),
        (lambda: os.rename("photos/b.png", "photos/overview.grid.png"), "--images photos --output photos", A),
        # Masks.
        (None, f"--images {A} --mask masks/a.png --output masks", "masks/a.png"),
        (lambda: symbolic("out/a.png", "masks/a.png"), f"--images {A} --mask masks/a.png --output out", "masks/a.png"),
        (lambda: symbolic("out/a.png", "masks/b.png"), "--images photos --mask masks --output out", "masks/b.png"),
        (None, "--images photos --mask masks --output ./masks", "is the folder of the masks"),
        # Somebody's, among the images or where pictures are generated.
        (lambda: Image.open(A).save("photos/a.jpg"), "--images photos/a.jpg --output photos", A),
        (lambda: os.rename("photos/b.png", "photos/a.strip.png"), f"--images {A} --output photos", A),
        (lambda: os.rename(A, "photos/0001.png"), "--generate 3 --output photos", "photos/0001.png"),
    ],
)  # fmt: skip
def test_originals_are_never_replaced(
    work: Path, prepare, options: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if prepare:
        prepare()
    before = contents(work)
    monkeypatch.setattr(MaskGIT, "from_pretrained", lambda *args, **options: pytest.fail("work was done"))
    assert run(*options.format(here=work).split()) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: --output ") and message.endswith("; choose another --output")
    assert named.format(here=work) in message
    assert contents(work) == before


def test_how_many_would_be_replaced(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(work / "photos" / "sub" / "c.png")
    assert run("--images", "photos", "--output", "photos") == 2
    assert "of photos/a.png (and 2 more), which is one of the images" in capsys.readouterr().err


def test_what_is_no_original_may_be_replaced(work: Path) -> None:
    for name in ("out/a.png", "out/a.strip.png"):
        save(work / name, seed=5)
    assert run("--images", A, "--output", "out") == 0
    first = contents(work, "out")
    assert run("--images", A, "--output", "out") == 0  # what an earlier run has left
    assert contents(work, "out") == first and len(first) == 2
    assert run("--generate", "2", "--output", "many") == run("--generate", "3", "--output", "many") == 0
    # Of a link elsewhere only the link goes.
    save(work / "other.png", seed=6)
    before = (work / "other.png").read_bytes()
    (work / "out" / "a.png").unlink()
    symbolic("out/a.png", "other.png")
    assert run("--images", A, "--output", "out") == 0
    assert (work / "other.png").read_bytes() == before and contents(work, "out") == first


# --- results among the images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (".", ["a", "b", "sub/c"]),
        ("photos", ["photos/a", "photos/b", "photos/sub/c"]),
        ("photos/out", ["photos/out/a", "photos/out/b", "photos/out/sub/c"]),
        ("photos/sub", ["photos/sub/a", "photos/sub/b", "photos/sub/sub/c"]),
    ],
)
def test_results_may_lie_among_the_images(
    work: Path, output: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save(work / "photos/sub/c.png", seed=3)
    for name in ("a", "b", "sub/c"):  # so that results have other names
        path = work / "photos" / f"{name}.png"
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    before = contents(work)
    written = {f"{name}{suffix}" for name in expected for suffix in (".png", ".strip.png", ".maps.png")}
    written.add((Path(output) / "overview.grid.png").as_posix())
    assert run("--images", "photos", "--output", output, "--maps") == 0
    after = contents(work)
    assert set(after) == set(before) | written and before.items() <= after.items()
    # Again, with other options and fewer images: nothing that the first run has written is read.
    (work / "photos/b.jpg").unlink()
    capsys.readouterr()
    assert run("--images", "photos", "--output", output) == 0
    assert "inpainted 2 images" in capsys.readouterr().out
    assert set(contents(work)) == set(after) - {"photos/b.jpg"}


def test_images_below_the_output_folder_are_not_lost(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results are known by what they are, not by where they lie."""
    save(work / "photos/out/mine.png")
    for _ in range(2):
        assert run("--images", "photos", "--output", "photos/out") == 0
        assert "inpainted 3 images" in capsys.readouterr().out
    assert (work / "photos/out/out/mine.png").exists()
    # Results of one run are the images of another.
    assert run("--images", "photos/out/a.png", "--output", "second") == 0
    assert run("--images", "second", "--output", ".") == 0
    assert (work / "a.png").exists()
    # With the same output folder they are not, and the message says what to do.
    capsys.readouterr()
    assert run("--images", "second", "--output", "second") == 2
    assert "--images second: only results of earlier runs with --output second; " in capsys.readouterr().err
    # Renamed or edited, a result is somebody's picture.
    (work / "second/a.png").rename(work / "second/best.png")
    before = (work / "second/best.png").read_bytes()
    assert run("--images", "second/best.png", "--output", "second") == 2
    assert (work / "second/best.png").read_bytes() == before


# --- masks ------------------------------------------------------------------------------------------------------------


def test_warnings_of_masks_name_the_file_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (16, 16)).save("nothing.png")
    assert run("--images", "photos", "--mask", "nothing.png", "--output", "out", "--batch-size", "1") == 0
    error = capsys.readouterr().err
    assert lines(error, "warning") == ["warning: nothing.png: the mask covers nothing"]
    # Images and masks swapped.
    assert run("--images", "masks", "--mask", "photos", "--output", "swapped") == 0
    warned = lines(capsys.readouterr().err, "warning")
    assert len(warned) == 2 and all("the mask looks like a photograph" in line for line in warned)
    assert warned[0].startswith("warning: photos/a.png: ") and warned[1].startswith("warning: photos/b.png: ")
    # Doubts are those of the mask as it is used.
    Image.new("L", (16, 16), 255).save("all.png")
    assert run("--images", A, "--mask", "all.png", "--output", "full") == 0
    assert "warning: all.png: the mask covers 100%" in capsys.readouterr().err
    assert run("--images", A, "--mask", "all.png", "--invert-mask", "--output", "none") == 0
    assert "warning: all.png: the mask covers nothing" in capsys.readouterr().err
    assert run("--images", "photos", "--mask", "masks", "--output", "good") == 0
    assert not lines(capsys.readouterr().err, "warning")


# --- what is no file --------------------------------------------------------------------------------------------------


@needs_pipes
def test_pipes_are_never_opened(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("photos/pipe.png", "masks/a.bmp", "pipe.png"):
        os.mkfifo(name)
    (work / "photos/link.png").symlink_to("pipe.png")
    assert run("--images", "photos", "--mask", "masks", "--output", "out") == 0
    assert "inpainted 2 images" in capsys.readouterr().out
    assert run("--images", "photos/pipe.png", "--output", "out") == 2
    assert "photos/pipe.png" in capsys.readouterr().err
    assert run("--images", A, "--mask", "pipe.png", "--output", "out") == 2
    assert "--mask pipe.png: " in capsys.readouterr().err


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_cannot_act_on_the_terminal(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "e\x1b[31mvil\nname\u202egnp"
    try:
        save(work / "in" / f"{evil}.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    (work / "in" / f"bad{evil}.png").write_bytes(b"no image")
    (work / "in" / "👩‍🚀 ünï.png").write_bytes((work / A).read_bytes())
    mask = f"mask{evil}.png"
    Image.new("L", (16, 16)).save(mask)
    assert run("--images", "in", "--mask", mask, "--output", f"out{evil}") == 1
    captured = capsys.readouterr()
    escaped = r"e\x1b[31mvil\nname\u202egnp"
    assert f"  {escaped}.png  and" in captured.out and f"out{escaped}" in captured.out
    assert "  👩‍🚀 ünï.png  and" in captured.out
    assert f"warning: mask{escaped}.png: the mask covers nothing" in captured.err
    assert f"  in/bad{escaped}.png: not an image" in captured.err
    assert run("--images", f"in/{evil}.png", "--output", "in") == 2
    assert run("--images", f"{evil}.png", "--mask", f"{evil}", "--output", "in") == 2
    errors = capsys.readouterr().err
    assert len(lines(errors, "error: ")) == len(errors.splitlines()) == 2
    for text in (captured.out, captured.err, errors):
        assert "\x1b[31m" not in text and "\u202e" not in text


# --- numbers and other options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--box", "--outpaint", "--map-at"])
@pytest.mark.parametrize("number", ["9" * 400 + "%", "9" * 5000, "9" * 5000 + "%", "0." + "1" * 5000 + "%"])
def test_absurd_lengths(work: Path, option: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--maps"] if option == "--map-at" else ["1", "1", "1"]
    arguments = [option, "1", number, *rest] if option == "--map-at" else [option, number, *rest]
    assert run("--images", A, "--output", "out", *arguments) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: {option} ") and "at most 9 digits" in message and len(message) < 200


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--box", "999999999%", "0", "5", "5"], 1, "the box is outside this picture of 16x16"),
        (["--outpaint", "999999999", "0", "0", "0"], 1, "are made"),
        (["--kernels", "cuda"], 2, "error: --kernels must be one of auto, triton, torch, got 'cuda'"),
        (["--steps", "9" * 400], 2, "error: --steps must be at most 10,000"),
        (["--device", "privateuseone"], 2, "device 'privateuseone' can't be used here"),
        (["--class", "9" * 5000], 2, "the model was trained without classes; leave --class out"),
    ],
)
def test_absurd_options(
    work: Path, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--images", A, "--output", "out", *arguments) == status
    assert words in capsys.readouterr().err


def test_absurdly_many(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--generate", "9" * 400, "--output", "out") == 2
    assert "--generate: at most 1,000,000 in one run" in capsys.readouterr().err
    assert run("--images", A, "--output", "out", "--batch-size", "9" * 30) == 0


def test_a_model_s_own_settings_are_no_options(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = MaskGIT.from_pretrained("model", device="cpu")
    model.decoding = DecodeConfig(steps=8, stop_after=6)
    model.save_pretrained("model")
    assert run("--images", A, "--output", "out") == 2  # of 2 steps
    error = capsys.readouterr().err
    assert "stop_after must be in [1, 2]" in error and "choose a --decoder" in error and "--stop-after" not in error
    assert run("--images", A, "--output", "out", "--decoder", "maskgit") == 0


def test_classes_are_named_before_they_are_numbered(
    work: Path, tiny_tokenizer: VQGAN, tiny_transformer_config: TransformerConfig
) -> None:
    transformer = Transformer(dataclasses.replace(tiny_transformer_config, num_classes=3))
    MaskGIT(tiny_tokenizer, transformer, ["2", "zwei", "7"], device="cpu").save_pretrained("classes")
    model = MaskGIT.from_pretrained("classes", device="cpu")
    texts = ("2", "zwei", "7", "0", "1")
    assert [chosen_classes(Options(class_=text), model) for text in texts] == [[0], [1], [2], [0], [1]]
    assert chosen_classes(Options(), model) == [None]
    assert chosen_classes(Options(class_="all", generate=1), model) == [0, 1, 2]
    for text in ("3", "drei", "9" * 5000):
        with pytest.raises(UsageError, match=f"^--class {text[:10]}"):
            chosen_classes(Options(class_=text), model)
    model.class_names[1] = "all"  # which goes before the word
    for generate in (None, 5):
        assert chosen_classes(Options(class_="all", generate=generate), model) == [1]
