"""`train.py tokens`, and stage 2 trained from what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import maskgit.data.parts
from maskgit.data import DataError, ImageFolder, in_validation
from maskgit.network.folder import load_model, load_tokenizer, save_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.training.checkpoint import list_checkpoints, load_checkpoint
from maskgit.training.cli import main
from maskgit.training.settings import TokensConfig, TrainingError, TransformerTraining
from maskgit.training.tokens import training_tokens, write_tokens

ROOT = Path(__file__).resolve().parents[3]


def words(tokenizer: Path, pictures: Path, output: Path, *more: str) -> list[str]:
    options = {"tokenizer": tokenizer, "data": pictures, "output": output, "device": "cpu"}
    return ["tokens", *(str(x) for name, value in options.items() for x in (f"--{name}", value)), *more]


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(output / "checkpoints")[-1][1])[0]


@pytest.mark.parametrize("several, expected", [((2, 20), [2] * 2), ((2, 40), [0] * 2), ((1, 20), [0] * 2)], ids=str)
def test_processes_that_train_tokenize_many_images_together(
    several: tuple[int, int],
    expected: list[int],
    settings: Any,
    unbroken: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Into the very tokens of one process."""
    processes, many = several
    real, seen = maskgit.data.parts.write_in_parts, []

    def watched(file: Path, description: Any, shape: Any, work: Any, processes: int, device: torch.device) -> None:
        seen.append(processes)
        real(file, description, shape, work, processes, device)

    monkeypatch.setattr("maskgit.data.tokens.write_in_parts", watched)
    monkeypatch.setattr("maskgit.training.tokens.ROWS", many)
    accelerator = SimpleNamespace(main_process_first=contextlib.nullcontext)
    engine: Any = SimpleNamespace(processes=processes, device=torch.device("cpu"), accelerator=accelerator)
    config = TransformerTraining(**(settings["transformer"] | {"output": tmp_path}))
    tokens = training_tokens(config, load_tokenizer(unbroken["tokenizer"] / "model"), engine)
    assert seen == expected
    for shard in (tokens.train, tokens.held_out):
        theirs = unbroken["transformer"] / "tokens" / shard.folder.name
        for name in ("tokens.npy", "tokens.json"):
            assert (shard.folder / name).read_bytes() == (theirs / name).read_bytes()


def test_trained_from_shards_as_from_images(
    here: None, run: Any, unbroken: dict[str, Path], pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    """The same run, bit for bit, without the images."""
    shards, copy = tmp_path / "shards", Path(shutil.copytree(pictures, tmp_path / "pictures"))
    tokenizer = unbroken["tokenizer"] / "model"
    assert main(words(tokenizer, copy, shards, "--views", "3")) == 0
    out = capsys.readouterr().out
    assert "3 views, 0 holes in each, 16 tokens an image" in out
    for name in ("train", "val"):
        ours, theirs = (np.load(path / name / "tokens.npy") for path in (shards, unbroken["transformer"] / "tokens"))
        assert np.array_equal(ours, theirs)
    shutil.rmtree(copy)
    run("transformer", tmp_path / "run", tokens=shards, data="gone", views=1)
    ours, theirs = final_weights(tmp_path / "run"), final_weights(unbroken["transformer"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert load_model(tmp_path / "run" / "model").class_names == ["above", "below"]
    assert not (tmp_path / "run" / "tokens").exists()
    # An earlier run's own tokens do as well.
    run("transformer", tmp_path / "again", tokens=unbroken["transformer"] / "tokens", data="gone", steps=1)


def test_holes_and_another_size(here: None, run: Any, unbroken: Any, pictures: Path, tmp_path: Path) -> None:
    tokenizer, shards = unbroken["tokenizer"] / "model", tmp_path / "shards"
    assert main(words(tokenizer, pictures, shards, "--holes", "2", "--image-size", "24")) == 0
    assert np.load(shards / "train" / "holes.npy").shape[::3] == (2, 36)
    assert np.load(shards / "val" / "holes.npy").shape[0] == 1
    figures = run("transformer", tmp_path / "run", tokens=shards, image_size=24, hole_share=0.5, steps=2)
    assert "loss in holes" in figures
    with pytest.raises(DataError, match="made by another tokenizer .or at another image size"):
        run("transformer", tmp_path / "other", tokens=shards)


def test_validation_images_of_their_own(here: None, unbroken: Any, pictures: Path, tmp_path: Path) -> None:
    tokenizer, val = unbroken["tokenizer"] / "model", Path(shutil.copytree(pictures, tmp_path / "val"))
    for path in sorted(val.glob("*/*"))[::2]:
        path.unlink()
    assert main(words(tokenizer, pictures, tmp_path / "shards", "--val-data", str(val))) == 0
    sizes = [len(np.load(tmp_path / "shards" / split / "labels.npy")) for split in ("train", "val")]
    assert sizes == [30, 15]
    shutil.rmtree(val / "above")
    with pytest.raises(DataError, match="--val-data .*val: has 1 classes, and .* has 2; both need the same ones"):
        write_tokens(TokensConfig(tmp_path / "b", tokenizer, str(pictures), str(val), device="cpu"))


def test_the_share_that_is_held_out(here: None, unbroken: Any, pictures: Path, tmp_path: Path) -> None:
    assert main(words(unbroken["tokenizer"] / "model", pictures, tmp_path, "--val-fraction", "0.4")) == 0
    names = [json.loads(line) for line in (tmp_path / "val" / "names.jsonl").read_text().splitlines()]
    everything = [ImageFolder(pictures, 16).name(i) for i in range(30)]
    assert names == [name for name in everything if in_validation(name, 0.4)]


def test_errors(capsys: Any, here: None, run: Any, unbroken: Any, pictures: Path, tmp_path: Path) -> None:
    tokenizer = unbroken["tokenizer"] / "model"

    def failure(*arguments: str) -> str:
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return captured.err.strip().splitlines()[-1]

    assert "--processes 0: must be at least 1" in failure("tokens", "--processes", "0")
    assert "--val-fraction 1.0: must be between 0 and 1" in failure("tokens", "--val-fraction", "1")
    assert "nowhere: no such folder" in failure(*words(tokenizer, Path("nowhere"), tmp_path), "--dry-run")
    assert "nowhere: no such folder" in failure(*words(tokenizer, Path("nowhere"), tmp_path))
    assert "image_size 18 is not a multiple of the patch size 4" in failure(
        *words(tokenizer, pictures, tmp_path, "--image-size", "18")
    )
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        run("transformer", tmp_path / "run", tokens=tmp_path / "nowhere")
    assert main(words(tokenizer, pictures, tmp_path / "shards")) == 0
    with pytest.raises(DataError, match="holes.json is not there; write a token shard"):
        run("transformer", tmp_path / "run", tokens=tmp_path / "shards", hole_share=0.5)
    save_tokenizer(tmp_path / "other", VQGAN(load_tokenizer(tokenizer).config))
    with pytest.raises(DataError, match="made by another tokenizer"):
        run("transformer", tmp_path / "run", tokens=tmp_path / "shards", tokenizer=tmp_path / "other")
    with pytest.raises(TrainingError, match="--views 0: must be at least 1"):
        TokensConfig(views=0)


def test_no_other_shard_is_replaced(here: None, unbroken: Any, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    """Hours of work may be in it."""
    tokenizer, shards = unbroken["tokenizer"] / "model", tmp_path / "shards"
    assert main(words(tokenizer, pictures, shards)) == 0
    whole = {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    assert main(words(tokenizer, pictures, shards, "--views", "3", "--seed", "1")) == 1
    error = capsys.readouterr().err
    assert f"{shards / 'train' / 'tokens.npy'}: is there already, made with other views, seed; choose another" in error
    assert {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()} == whole
    assert main(words(tokenizer, pictures, shards)) == 0


def test_shards_do_not_go_into_the_input(
    here: None, unbroken: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By whatever path it is named; nor both shards into one folder."""
    tokenizer, data = unbroken["tokenizer"] / "model", Path(shutil.copytree(pictures, tmp_path / "data" / "train"))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "val").symlink_to(data)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "train").symlink_to(tokenizer)
    monkeypatch.chdir(tmp_path / "other")
    before = sorted(tmp_path.rglob("*"))

    def refused(*arguments: Any) -> str:
        assert main(words(*arguments)) == 1
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    for output in (tmp_path / "data", tmp_path / "link", Path("../data"), Path("../other/../link"), Path("../other")):
        assert f"is the folder of --data {data}; choose another" in refused(tokenizer, data, output)
    assert "is the folder of --data ../link/train; choose another" in refused(
        tokenizer, Path("../link/train"), Path("../data")
    )
    val = ["--val-data", str(data)]
    assert f"is the folder of --val-data {data}" in refused(tokenizer, pictures, Path("."), *val)
    assert f"is the folder of --tokenizer {tokenizer}" in refused(tokenizer, pictures, Path("../model"))
    (tmp_path / "both" / "train").mkdir(parents=True)
    (tmp_path / "both" / "val").symlink_to("train")
    before = sorted(tmp_path.rglob("*"))
    assert "val is the folder of the other shard" in refused(tokenizer, pictures, tmp_path / "both")


def test_shards_of_other_classes(here: None, run: Any, unbroken: Any, pictures: Path, tmp_path: Path) -> None:
    assert main(words(unbroken["tokenizer"] / "model", pictures, tmp_path / "shards")) == 0
    (tmp_path / "shards" / "val" / "images.json").write_text('{"class_names": ["below", "above"]}')
    with pytest.raises(DataError, match="val.images.json: names 2 classes, and .*train.images.json other 2"):
        run("transformer", tmp_path / "run", tokens=tmp_path / "shards")


@pytest.mark.slow
def test_sigkill(unbroken: Any, pictures: Path, tmp_path: Path) -> None:
    """Killed while its processes work, which end with it; started again, it ends with the same bytes."""
    tokenizer, whole = unbroken["tokenizer"] / "model", unbroken["transformer"] / "tokens"
    arguments = words(tokenizer, pictures, tmp_path / "killed", "--processes", "1", "--views", "3")
    script = "import maskgit.data.parts as p, sys; p.ROWS = 4\nfrom maskgit.training.cli import main\n"
    script += f"if __name__ == '__main__': sys.exit(main({arguments!r}))"
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "train" / "tokens.parts"
    while process.poll() is None and len(list(folder.glob("0-*.npy"))) < 2:
        time.sleep(0.005)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and len(list(folder.glob("*.npy"))) >= 2 and children
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not folder.exists()
    for name in ("train", "val"):
        ours, theirs = (np.load(path / name / "tokens.npy") for path in (tmp_path / "killed", whole))
        assert np.array_equal(ours, theirs)


def _children(process: int) -> list[int]:
    """Of Linux's /proc: processes started by this one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(status.parent.name))
    return found
