"""--resume with the same folders written differently, with more steps, and after advice; errors name what there is."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_train import as_words, assert_same_run, curve, failure, make_pictures

import maskgit.data.parts
from maskgit.data import DataError
from maskgit.network.folder import save_tokenizer
from maskgit.tokenizer import VQGAN
from maskgit.training.checkpoint import list_checkpoints
from maskgit.training.cli import main
from maskgit.training.run_file import changed_settings, run_settings
from maskgit.training.settings import TokenizerTraining, TransformerTraining

QUICK = {"device": "cpu", "model": "tiny", "steps": 2, "batch_size": 4, "save_every": 1, "validation_images": 4}


# --- the same places --------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a finished run `run` on `pictures`, a link to these, and other pictures."""
    folder = tmp_path / "project"
    make_pictures(folder / "pictures")
    make_pictures(folder / "others")
    (folder / "link").symlink_to(folder / "pictures", target_is_directory=True)
    monkeypatch.chdir(folder)
    assert main(["tokenizer", *as_words(QUICK | {"data": "pictures", "output": "run"})]) == 0
    return folder


RESUME = ["tokenizer", "--resume", *as_words(QUICK)]


@pytest.mark.parametrize(
    ("data", "output"), [("pictures", "pictures"), ("pictures", "pictures/run"), ("pictures", "link/run"), (".", "new")]
)
def test_no_run_among_its_images(project: Path, data: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((project / "pictures").rglob("*"))
    said = failure(capsys, "tokenizer", *as_words(QUICK | {"data": data, "output": output}))
    assert f"--output {output}: lies in --data {data}" in said
    assert sorted((project / "pictures").rglob("*")) == before


def test_the_same_folder_written_differently(project: Path, monkeypatch: Any) -> None:
    ways = [(".", "./pictures/"), (".", "run/../pictures"), (".", "link"), (".", project / "pictures")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is gone")
        for here, data in (*ways, ("run", "../pictures"), ("..", "project/pictures")):
            monkeypatch.chdir(project / here)
            assert main([*RESUME, "--data", str(data), "--output", str(project / "run")]) == 0


def test_another_folder(project: Path, capsys: Any, monkeypatch: Any) -> None:
    line = failure(capsys, *RESUME, "--data", "others", "--output", "run")
    assert f"data (was {project / 'pictures'}, now {project / 'others'})" in line
    # The same words mean another folder elsewhere.
    (project / "elsewhere").mkdir()
    make_pictures(project / "elsewhere" / "pictures")
    monkeypatch.chdir(project / "elsewhere")
    line = failure(capsys, *RESUME, "--data", "pictures", "--output", project / "run")
    assert f"data (was {project / 'pictures'}, now {project / 'elsewhere' / 'pictures'})" in line


def test_a_project_that_was_moved(project: Path, tmp_path: Path, monkeypatch: Any) -> None:
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"--data: {project / 'pictures'} is gone; .* {tmp_path}/moved/pictures"):
            assert main([*RESUME, "--data", "pictures", "--output", "run"]) == 0
    # What goes on remembers the new place.
    with pytest.warns(UserWarning, match="is gone"):
        assert main([*RESUME, "--data", "pictures", "--output", "run", "--steps", "3"]) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is gone")
        assert main([*RESUME, "--data", "./pictures", "--output", "run", "--steps", "3"]) == 0


def test_places_that_are_no_folders(tmp_path: Path, monkeypatch: Any) -> None:
    """The embedded data set isn't a folder of its name; archives are a pattern."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "avatars").mkdir()
    embedded = run_settings(TokenizerTraining())
    assert changed_settings(embedded, TokenizerTraining()) == []
    assert changed_settings(embedded, TokenizerTraining(data="./avatars")) == ["data (was avatars, now ./avatars)"]
    (tmp_path / "shards").mkdir()
    archives = run_settings(TokenizerTraining(data="shards/{0..3}.tar"))
    assert changed_settings(archives, TokenizerTraining(data=f"{tmp_path}/shards/../shards/{{0..3}}.tar")) == []
    (change,) = changed_settings(archives, TokenizerTraining(data="shards/{0..4}.tar"))
    assert change == f"data (was {tmp_path}/shards/{{0..3}}.tar, now {tmp_path}/shards/{{0..4}}.tar)"
    for name in ("tokenizer", "init", "tokens"):
        there = run_settings(TransformerTraining(**{name: Path("shards")}))
        assert changed_settings(there, TransformerTraining(**{name: tmp_path / "shards"})) == []
        assert len(changed_settings(there, TransformerTraining(**{name: tmp_path}))) == 1
    assert changed_settings(run_settings(TransformerTraining()), TransformerTraining(init=Path("shards"))) == [
        "init (was None, now shards)"
    ]


def test_nested_settings_are_named_as_options(capsys: Any, project: Path) -> None:
    words = ["--data", "pictures", "--output", "run", "--augment.flip", "0.25", "--lr", "0.5"]
    line = failure(capsys, *RESUME, *words)
    assert "other settings: lr (was 0.001, now 0.5), augment.flip (was 0.5, now 0.25); " in line


# --- more steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_more_steps(stage: str, run: Any, unbroken: Any, tmp_path: Path, capsys: Any) -> None:
    """At a constant learning rate, what comes out is the longer run."""
    run(stage, tmp_path / "long", min_lr=5e-3, steps=8)
    for steps, resume in ((3, False), (5, True), (8, True)):
        run(stage, tmp_path / "short", min_lr=5e-3, steps=steps, resume=resume)
        assert json.loads((tmp_path / "short" / "run.json").read_text())["settings"]["steps"] == steps
    assert_same_run(tmp_path / "short", tmp_path / "long")
    assert "from step 5 to 8 instead of 5: the learning rate goes on at 0.005, where it was to be 0.005" in (
        capsys.readouterr().out
    )
    # An older run.json or command has the run as it was.
    with pytest.raises(RuntimeError, match=r"steps \(was 8, now 5\)"):
        run(stage, tmp_path / "short", min_lr=5e-3, steps=5, resume=True)


def test_more_steps_of_a_cosine(run: Any, unbroken: Any, tmp_path: Path, capsys: Any) -> None:
    """The rate goes on where the longer cosine is: half-way down at half of the steps."""
    for steps in (4, 8):
        run("tokenizer", tmp_path, steps=steps, resume=steps == 8, warmup=0, lr=1e-3)
    rates = [rate for _, rate in curve(tmp_path, "train/lr")]
    assert rates[:4] == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.4645e-4], rel=1e-4)  # (1 + cos(pi/4)) / 2 = 0.85355
    assert rates[4] == pytest.approx(5e-4) and rates[6] == pytest.approx(1.4645e-4, rel=1e-4)
    assert "from step 4 to 8 instead of 4: the learning rate goes on at 0.0005, where it was to be 0\n" in (
        capsys.readouterr().out
    )


# --- advice -----------------------------------------------------------------------------------------------------------


def help_of(*words: str) -> set[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main([*words, "--help"])
    return set(re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", text.getvalue()))


@functools.cache
def options(command: str) -> set[str]:
    """The options of a command, as its help lists them, and those of all commands."""
    return help_of(command) | help_of()


def advised(line: str) -> set[str]:
    return set(re.findall(r"(?<!\w)--[a-z][a-z0-9.-]*[a-z0-9]", line)) - {"--nproc-per-node"}  # torchrun's


def test_advice_after_other_settings_can_be_followed(project: Path, capsys: Any) -> None:
    line = failure(capsys, *RESUME, "--data", "pictures", "--output", "run", "--lr", "0.5")
    advice = re.search(r"\((--config .* --resume)", line)
    assert advice and advised(line) <= options("tokenizer")
    assert main([*advice[1].split(), "--steps", "3"]) == 0
    assert list_checkpoints(Path("run/checkpoints"))[-1][0] == 3
    line = failure(capsys, "tokenizer", *as_words(QUICK | {"data": "pictures", "output": "run"}))
    assert "go on with --resume (and more --steps, if it is through)" in line
    assert main([*RESUME, "--data", "pictures", "--output", "run", "--steps", "4"]) == 0


def test_images_that_have_changed(run: Any, unbroken: Any, tmp_path: Path) -> None:
    """A run never goes on with tokens of others; a new one makes its own."""
    data, output = few(tmp_path / "data", [f"{i}.png" for i in range(12)]), tmp_path / "run"

    def train(**changes: Any) -> None:
        run("transformer", output, data=str(data), val_fraction=0.5, save_every=1, **changes)

    def made() -> list[bytes]:
        return [(output / "tokens" / split / "tokens.json").read_bytes() for split in ("train", "val")]

    train(steps=1)
    before = made()
    train(steps=2, resume=True)
    for path in data.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(DataError, match="tokens.npy: is there already, made with other images; choose another"):
        train(steps=3, resume=True)
    assert made() == before and list_checkpoints(output / "checkpoints")[-1][0] == 2
    shutil.rmtree(output / "checkpoints")
    train(steps=1, resume=True)  # from the start
    assert all(new != old for new, old in zip(made(), before, strict=True))


def few(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * i, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize("command", ["tokenizer", "transformer", "tokens"])
def test_few_images(command: str, unbroken: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """They can be trained on, but not validated: what the message says helps."""
    here = maskgit.data.parts._compute_here  # without processes of its own
    monkeypatch.setattr(maskgit.data.parts, "_compute", lambda parts, work, _, device: here(parts, work, device))
    data = few(tmp_path / "data", [f"{i}.png" for i in range(4)])
    words = [command, "--data", data, "--output", tmp_path / "out", "--device", "cpu"]
    if command != "tokens":
        words += ["--model", "tiny", "--steps", 1, "--batch-size", 2]
    if command != "tokenizer":
        words += ["--tokenizer", unbroken["tokenizer"] / "model"]
    if command == "tokens":
        words += ["--processes", 1]
    line = failure(capsys, *words)
    assert "none of the 4 image(s) can be used for the split 'val' with val_fraction=0.1" in line
    assert line.endswith("add images, or change --val-fraction") and "--val-fraction" in options(command)
    if command != "tokens":
        assert failure(capsys, *words, "--dry-run") == line
    assert main([*map(str, words), "--val-fraction", "0.5"]) == 0
    line = failure(capsys, *words, "--val-fraction", "1.5")
    assert "--val-fraction 1.5: must be between 0 and 1" in line


def test_both_stages_hold_out_the_same(run: Any, unbroken: Any, tmp_path: Path) -> None:
    run("transformer", tmp_path, steps=1, val_fraction=0.5)
    names = {
        split: [json.loads(line) for line in (tmp_path / "tokens" / split / "names.jsonl").read_text().splitlines()]
        for split in ("train", "val")
    }
    assert len(names["val"]) > 8 and not set(names["val"]) & set(names["train"])


@pytest.mark.parametrize(
    "words",
    [
        "tokenizer --steps 0",
        "tokenizer --steps 1000000000",
        "tokenizer --batch-size 6 --accumulate 4",
        "tokenizer --precision fp16",
        "tokenizer --val-fraction 0",
        "tokenizer --decoder-of TOKENIZER --model embedded",
        "tokenizer --resume --output RUN --data others",
        "tokenizer --output RUN",
        "tokenizer --lr nan",
        "transformer --tokens nowhere",
        "transformer --tokens SHARDS --tokenizer OTHER",
        "transformer --tokens SHARDS --hole-share 0.5",
        "transformer --hole-masks few",
        "transformer --hole-share 0.5 --hole-masks nowhere",
        "transformer --init nowhere",
        "transformer --init MODEL --model embedded",
        "transformer --image-size 0",
        "transformer --eval-every 3",
        "transformer --fsdp",
        "transformer --mask-ratio 2",
        "transformer --kernels triton",
        "transformer --precision fp16",
        "tokens --views 0",
        "tokens --hole-masks few",
        "tokens --val-data few",
        "tokens --data nowhere",
        "tokens --processes 0",
    ],
)
def test_errors_name_options_of_their_command(
    words: str, unbroken: Any, pictures: Path, tiny_tokenizer: VQGAN, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.chdir(tmp_path)
    save_tokenizer(tmp_path / "other", tiny_tokenizer)
    few(tmp_path / "few", ["one/1.png", "two/2.png"])
    places = {"RUN": unbroken["tokenizer"], "OTHER": tmp_path / "other", "SHARDS": unbroken["transformer"] / "tokens"}
    places |= {"TOKENIZER": unbroken["tokenizer"] / "model", "MODEL": unbroken["transformer"] / "model"}
    command, *rest = words.split()
    others = {"--device": "cpu", "--data": pictures, "--output": "new", "--model": "tiny"}
    others |= {"--tokenizer": places["TOKENIZER"]} if command != "tokenizer" else {}
    rest = [str(places.get(word, word)) for word in rest]
    for name, value in others.items():
        if name not in rest and name in help_of(command):
            rest += [name, str(value)]
    line = failure(capsys, command, *rest)
    # `train.py tokens` is what one of them sends to.
    known = options(command) | (options("tokens") if "train.py tokens" in line else set())
    assert advised(line) <= known, line
