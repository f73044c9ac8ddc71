"""The command: what it says, what it writes, and that it writes nothing when it fails."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit import MaskGIT
from maskgit.convert import conversion, convert
from maskgit.convert.__main__ import main
from maskgit.network.folder import load_model, load_tokenizer


@pytest.fixture
def folder(originals: ModuleType, tmp_path: Path) -> Path:
    """tokenizer.ckpt of 24 codes, small.pth (a transformer over 16 codes), large.pth (over 24), names.txt."""
    originals.write(originals.taming().tensors, tmp_path / "tokenizer.ckpt")
    tensors = originals.valeo_maskgit().tensors
    originals.write(tensors, tmp_path / "small.pth")
    # With 24 codes its 21 embeddings are too few; with 32 there are 6 classes.
    large = originals.Maker()
    large.matrix("tok_emb.weight", 32, 32)
    large.matrix("bias", 32, 17)
    originals.write(tensors | large.tensors, tmp_path / "large.pth")
    (tmp_path / "names.txt").write_text("".join(f"class {number}\n" for number in range(6)), encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    return main([str(folder / part) if part[0] not in "-0123456789" else part for part in arguments])


def test_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "large.pth", "tokenizer.ckpt", "out", "--class-names", "names.txt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"{folder / 'tokenizer.ckpt'}: tokenizer (taming-transformers), 24 codes of 8, 16x16 pixels"
    )
    assert "3 blocks, 32 wide, 16 heads, 6 classes" in lines[1]
    assert "16 assumed (--heads)" in lines[2]
    assert lines[-2:] == [
        f"wrote {folder / 'out'}",
        f"next: python inpaint.py --model {folder / 'out'} --images FOLDER",
    ]
    model = load_model(folder / "out")
    assert model.class_names == [f"class {number}" for number in range(6)]
    files = [part["file"] for part in model.metadata["converted_from"]]
    assert files == ["tokenizer.ckpt", "large.pth"]
    assert model.transformer.config.heads == 16
    picture = Image.new("RGB", (40, 30), "navy")
    (result,) = MaskGIT.from_pretrained(folder / "out", device="cpu").inpaint(
        [picture], [np.arange(30 * 40).reshape(30, 40) < 300], steps=2, labels=["class 5"]
    )
    assert result.image.size == (40, 30) and len(result.image.getcolors(1200)) > 5
    assert run(folder, "large.pth", "tokenizer.ckpt", "four", "--heads", "4") == 0
    assert "assumed" not in capsys.readouterr().out
    assert load_model(folder / "four").transformer.config.heads == 4


def test_tokenizer_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "tokenizer.ckpt", "out", "--image-size", "64") == 0
    assert "train.py transformer --tokenizer" in capsys.readouterr().out
    assert load_tokenizer(folder / "out").config.image_size == 64
    # Which then does for the transformer.
    assert run(folder, "out", "large.pth", "both") == 0
    assert load_model(folder / "both").tokenizer.config.image_size == 16


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["large.pth", "out"], "large.pth is a transformer .*; give the file of its tokenizer too"),
        (["tokenizer.ckpt", "tokenizer.ckpt", "out"], "are both tokenizers; a model has one"),
        (["tokenizer.ckpt", "large.pth", "small.pth", "out"], "large.pth and .*small.pth are both transformers"),
        (["tokenizer.ckpt", "small.pth", "out"], "small.pth: 21 embeddings are too few"),
        (
            ["tokenizer.ckpt", "large.pth", "out", "--heads", "5"],
            "large.pth: a width of 32 doesn't divide into 5 heads",
        ),
        (["tokenizer.ckpt", "large.pth", "out", "--heads", "0"], "doesn't divide into 0 heads"),
        (["tokenizer.ckpt", "nothing.pth", "out"], "nothing.pth: can't be read: No such file"),
        (["names.txt", "out"], "names.txt: not a checkpoint"),
        (["tokenizer.ckpt", "subfolder", "out"], "subfolder: a folder, but not a model folder of maskgit"),
        (["tokenizer.ckpt", "large.pth", "out", "--class-names", "short.txt"], "2 class names, but .* 6 classes"),
        (["tokenizer.ckpt", "large.pth", "out", "--class-names", "tokenizer.ckpt"], "tokenizer.ckpt: not a text file"),
        (["tokenizer.ckpt", "large.pth", "out", "--class-names", "no.txt"], "No such file"),
        (["tokenizer.ckpt", "out", "--class-names", "names.txt"], "class names were given, but no transformer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    (folder / "subfolder").mkdir()
    (folder / "short.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert run(folder, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not (folder / "out").exists()


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    assert run(folder, "tokenizer.ckpt", "out") == 0  # empty
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    assert run(folder, "tokenizer.ckpt", "large.pth", "out") == 1
    assert "exists already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / "out").iterdir()} == before
    assert run(folder, "tokenizer.ckpt", "names.txt") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tokenizer.ckpt", "large.pth"], "large.pth exists already: choose another name"),
        (["tokenizer.ckpt", "large.pth", "tokenizer.ckpt"], "tokenizer.ckpt is to be read: name the folder to be made"),
        (["tokenizer.ckpt", "large.pth", "link"], "link is to be read"),
        (["tokenizer.ckpt", "large.pth", "hard"], "hard is to be read"),
        (["tokenizer.ckpt", "below/../large.pth", "large.pth"], "large.pth is to be read"),
        (["tokenizer.ckpt", "below/large.pth", "below"], "below exists already, and holds .*large.pth, which is to be"),
        (["tokenizer.ckpt", "below/large.pth", "to-below"], "to-below exists already, and holds .*large.pth"),
        (["model", "model"], "model is to be read"),
        (["tokenizer.ckpt", "dangling"], "dangling exists already"),
        (["tokenizer.ckpt", "large.pth/out"], "large.pth/out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_inputs_are_safe(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """An output that is one of the inputs, or holds one, by whatever name."""
    assert run(folder, "tokenizer.ckpt", "model") == 0
    (folder / "below").mkdir()
    shutil.copy(folder / "large.pth", folder / "below")
    (folder / "link").symlink_to("tokenizer.ckpt")
    (folder / "to-below").symlink_to("below")
    (folder / "dangling").symlink_to("nowhere")
    os.link(folder / "large.pth", folder / "hard")

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}

    before = content()
    capsys.readouterr()
    assert run(folder, *arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and "delete" not in error, error
    assert content() == before


WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def convert_killed(folder: Path, files: list[str], point: int) -> bool:
    """Convert in a child process that ends at the given access to the output folder; whether it got that far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    accesses = itertools.count()

    def hook(event: str, arguments: tuple) -> None:
        if event in WRITES and str(folder / "out") in str(arguments[0]) and next(accesses) == point:
            os._exit(9)

    try:
        sys.addaudithook(hook)
        convert([folder / name for name in files], folder / "out")
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't be forked here")
def test_a_killed_conversion_does_not_block_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it was killed: no half model is taken for one, and the same command makes a whole one."""
    files = ["tokenizer.ckpt", "large.pth"]
    found = conversion.read_model([folder / name for name in files])
    monkeypatch.setattr(conversion, "read_model", lambda *_: found)  # once will do
    convert([folder / name for name in files], folder / "whole")
    whole = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    for point in itertools.count():
        killed = convert_killed(folder, files, point)
        config = folder / "out" / "config.json"
        if config.exists():  # then all of it is there
            load_model(folder / "out")
        else:
            assert killed
            convert([folder / name for name in files], folder / "out")
            assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == whole
        if not killed:
            break
        shutil.rmtree(folder / "out")
    assert point > 10


@pytest.mark.parametrize("exists", [False, True])
def test_a_conversion_that_fails_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    if exists:
        (folder / "out").mkdir()
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target == folder / "out" / "config.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    assert run(folder, "tokenizer.ckpt", "large.pth", "out") == 1
    assert "No space left" in capsys.readouterr().err
    assert (folder / "out").exists() == exists
    assert not exists or not any((folder / "out").iterdir())


def test_what_a_killed_conversion_left_is_all_that_goes(folder: Path) -> None:
    """Beside something else, it stays where it is."""
    (folder / "out" / ".partial-model").mkdir(parents=True)
    (folder / "out" / "mine.txt").write_text("mine")
    assert run(folder, "tokenizer.ckpt", "out") == 1
    assert (folder / "out" / "mine.txt").read_text() == "mine"
    (folder / "out" / "mine.txt").unlink()
    (folder / "out" / "transformer.safetensors").write_bytes(b"of the model that was not finished")
    assert run(folder, "tokenizer.ckpt", "out") == 0
    assert {path.name for path in (folder / "out").iterdir()} == {"config.json", "tokenizer.safetensors"}


def test_a_damaged_folder_as_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "tokenizer.ckpt", "old") == 0
    config = json.loads((folder / "old" / "config.json").read_text())
    config["tokenizer"]["groups"] = 7
    (folder / "old" / "config.json").write_text(json.dumps(config))
    assert run(folder, "old", "large.pth", "out") == 1
    assert "groups" in capsys.readouterr().err.lower()
    assert not (folder / "out").exists()


def test_names_that_are_no_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of files and of tensors: they must not reach the terminal as they are, nor keep the model from being written."""
    evil = os.fsdecode(b"e\x1b[31mvil\n\xff.ckpt")
    (folder / "tokenizer.ckpt").rename(folder / evil)
    assert run(folder, evil, "large.pth", "out") == 0
    out = capsys.readouterr().out
    assert r"e\x1b[31mvil\n\udcff.ckpt: tokenizer" in out and "\x1b" not in out
    assert load_model(folder / "out").metadata["converted_from"][0]["file"].endswith(r"\udcff.ckpt")
    torch.save({"tok\x1b[31m\nen": torch.ones(1)}, folder / "small.pth")
    assert run(folder, "small.pth", "other") == 1
    error = capsys.readouterr().err
    assert r"tok\x1b[31m\nen" in error and error.count("\n") == 1


def test_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 2
    assert run(folder, "tokenizer.ckpt") == 2
    assert "name one or two checkpoints" in capsys.readouterr().err
    assert run(folder, "tokenizer.ckpt", "out", "--heads", "many") == 2
    assert run(folder, "--help") == 0
    assert "FILE [FILE] OUT" in capsys.readouterr().out


def test_module(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "maskgit.convert", folder / "tokenizer.ckpt", folder / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"wrote {folder / 'out'}" in done.stdout
