"""`--dry-run` says what a run takes, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskgit.config import preset
from maskgit.data import DataError
from maskgit.network.transformer import Transformer
from maskgit.training import dry_run as module
from maskgit.training import pace
from maskgit.training.cli import main
from maskgit.training.dry_run import dry_run
from maskgit.training.engine import Engine
from maskgit.training.pace import kept_activations, measure_cost
from maskgit.training.settings import TokenizerTraining, TokensConfig
from maskgit.training.tokenizer import TokenizerTask, tokenizer_architecture
from maskgit.training.tokens import write_tokens


def report(stage: str, settings: dict[str, dict[str, Any]], capsys: Any, **changes: Any) -> str:
    values = settings[stage] | changes
    words = [str(x) for name, value in values.items() for x in (f"--{name.replace('_', '-')}", value)]
    assert main([stage, "--dry-run", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_report(stage: str, settings: Any, unbroken: Any, capsys: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    text = report(stage, settings, capsys, output=output, steps=5, batch_size=54)
    assert not output.exists() and text.endswith("nothing was written\n")
    images = int(re.search(r"data +(\d+) images, (\d+) held out", text)[1])
    assert f"5 of 54 images: {5 * 54 / images:.1f} epochs" in text
    assert "average" in text and "optimizer" in text and "from 3 steps of 8 images" in text


def test_sizes_of_a_real_preset(unbroken: Any, settings: Any, capsys: Any, tmp_path: Path) -> None:
    """Parameters and memory of the embedded model, in its own numbers."""
    changes = {"model": "embedded", "tokenizer": "maskgit/assets/embedded", "ema": 0.0, "batch_size": 2}
    changes |= {"views": 3, "hole_share": 0.5, "holes": 2, "accumulate": 2, "output": tmp_path / "run"}
    root = Path(__file__).resolve().parents[3]
    text = report("transformer", settings, capsys, **(changes | {"tokenizer": root / changes["tokenizer"]}))
    config = preset("embedded").transformer
    labels = 2 + 1  # of the pictures
    block = 4 * config.dim**2 + 2 * config.dim * config.mlp_dim + config.mlp_dim + 9 * config.dim
    parameters = config.depth * block + (1024 + 1 + labels + 257) * config.dim + 256 * 1024
    parameters += config.dim**2 + 7 * config.dim  # head and the norms
    assert f"transformer of {parameters / 1e6:.2f} million" in text
    assert f"{4 * parameters / 2**30:.2f} GiB weights" in text and f"{8 * parameters / 2**30:.2f} GiB optimizer" in text
    assert "average" not in text and "512 tokens a step" in text and "from 3 steps of 1 images" in text
    matrices = config.depth * (4 * config.dim**2 + 2 * config.dim * config.mlp_dim)  # of which Muon keeps one moment
    text = report("transformer", settings, capsys, **(changes | {"tokenizer": root / changes["tokenizer"], "muon": 4}))
    assert f"{(8 * parameters - 4 * matrices) / 2**30:.2f} GiB optimizer" in text
    images = int(re.search(r"data +(\d+) images", text)[1])
    assert f"tokens of 3 views will take {3 * 3 * images * 256 * 2 / 1e6:,.1f} MB" in text


def test_from_shards(settings: Any, unbroken: Any, capsys: Any, tmp_path: Path) -> None:
    shards = unbroken["transformer"] / "tokens"
    text = report("transformer", settings, capsys, tokens=shards, data="gone", output=tmp_path / "run")
    assert f"2 classes ({shards}, 3 views)" in text


def test_damaged_images_are_looked_for(
    settings: Any, pictures: Path, unbroken: Any, capsys: Any, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    first = sorted((copy / "above").iterdir())[0]
    first.write_bytes(first.read_bytes()[:60])
    for stage in ("tokenizer", "transformer"):
        text = report(stage, settings, capsys, data=copy, output=tmp_path / "run")
        assert f"1 of 25 that were read can't be used and will be left out, such as {first}: " in text
    for path in copy.rglob("*.png"):
        path.write_bytes(b"none")
    with pytest.raises(DataError, match="none of the 25 images that were read can be used, such as "):
        list(dry_run(TokenizerTraining(**settings["tokenizer"] | {"data": str(copy), "output": tmp_path / "run"})))


# --- other commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [0, 2])
def test_tokens(holes: int, unbroken: Any, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    """As many and as large as the shards are that come of it."""
    config = TokensConfig(
        output=tmp_path / "shards",
        tokenizer=unbroken["tokenizer"] / "model",
        data=str(pictures),
        views=3,
        holes=holes,
        processes=1,
        device="cpu",
    )
    text = "\n".join(dry_run(config))
    assert not (tmp_path / "shards").exists() and text.endswith("nothing was written")
    write_tokens(config)
    arrays = [np.load(path) for path in tmp_path.rglob("*.npy") if path.name != "labels.npy"]
    assert len(arrays) == (4 if holes else 2)
    count, size = (sum(values) for values in zip(*((a.size // 16, a.nbytes) for a in arrays), strict=True))
    assert f"16 an image, 3 views with {holes} holes in each: {count:,} to tokenize, {size / 1e6:,.1f} MB" in text
    each = float(re.search(r"time +([\d.e+]+) ms a view, .* with 1 processes on one core each", text)[1])
    assert 0 < each < 60_000


def test_a_whole_model(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["model", "--data", str(pictures), "--model", "tiny-classes", "--device", "cpu", "--dry-run"]
    assert main([*words, "--minutes", "2", "--image-size", "24", "--output", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    stages = re.split(r"stage \d of 3, ", text)[1:]
    assert [stage.split()[0].strip(":,") for stage in stages] == ["tokenizer", "tokens", "transformer"]
    assert "pictures of 24x24 pixels, 36 tokens each" in stages[0] and "36 an image, 1 views" in stages[1]
    for stage, minutes in ((stages[0], 0.6), (stages[2], 1.4)):
        steps = int(re.search(r"steps +([\d,]+) of ", stage)[1].replace(",", ""))
        each, validation = map(float, re.search(r"time +(\S+) s a step, (\S+) s a validation", stage).groups())
        # Of the transformer's, tokenizing takes some.
        assert 0.3 * 60 * minutes < steps * each + 5 * validation < 1.05 * 60 * minutes


# --- in bounded time --------------------------------------------------------------------------------------------------


def test_what_is_known_comes_first(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def measure(*_: Any) -> None:
        raise AssertionError("timed too early")

    monkeypatch.setattr(module, "measure_cost", measure)
    lines = dry_run(TokenizerTraining(**settings["tokenizer"] | {"output": tmp_path / "run", "batch_size": 50}))
    known = [next(lines) for _ in range(8)]
    assert [line.split()[0] for line in known] == "data data 25 model pictures steps warning: timing".split()
    assert "of 50 images takes some of the 25 training images more than once" in known[6]
    with pytest.raises(AssertionError, match="timed too early"):
        next(lines)


@pytest.mark.parametrize(
    "seconds, fixed, images, steps, in_all",
    [
        (0.01, 0.0, 8, 3, 0.34),  # one, one, eight; and eight three times
        (1.0, 0.0, 8, 3, 34.0),
        (3.0, 0.0, 2, 3, 30.0),
        (8.3, 0.0, 1, 2, 33.2),
        (15.0, 0.0, 1, 1, 30.0),
        (50.0, 0.0, 1, 1, 50.0),  # nothing but the first one
        (1.0, 2.0, 2, 3, 22.0),  # an update of two seconds, however many images
    ],
)
def test_images_and_steps_that_there_is_time_for(
    seconds: float,
    fixed: float,
    images: int,
    steps: int,
    in_all: float,
    settings: Any,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """Of steps that take so long for each image, and for the update."""
    passed = [0.0]

    def training_step(self: Any, batch: Any, step: int) -> dict[str, torch.Tensor]:
        passed[0] += fixed + seconds * len(batch)
        self.model.decoder.last_layer.square().sum().backward()
        return {}

    monkeypatch.setattr(pace, "_now", lambda device: passed[0])
    monkeypatch.setattr(TokenizerTask, "training_step", training_step)
    config = TokenizerTraining(**settings["tokenizer"] | {"output": tmp_path, "perceptual": "none", "batch_size": 8})
    engine = Engine(config)
    task = TokenizerTask(config, tokenizer_architecture(config), engine)
    samples = [task.dataset[i, i] for i in range(8)]
    cost = measure_cost(task, engine, samples, 32, 7)
    assert (cost.images, cost.steps) == (images, steps)
    assert cost.seconds == pytest.approx(seconds) and passed[0] == pytest.approx(in_all)
    assert cost.of_step(32) == pytest.approx(fixed + 32 * seconds)


def test_activations_are_what_autograd_keeps() -> None:
    """Of x -> relu(W x) -> square: x, relu's result, and nothing twice."""
    layer = torch.nn.Linear(30, 20, bias=False)
    x = torch.randn(10, 30)
    with kept_activations(layer) as kept:
        layer(x).relu().square().sum().backward()
    assert sum(storage.nbytes() for storage in kept.values()) == 4 * (10 * 30 + 10 * 20)


def test_activations_grow_with_the_batch(tiny_transformer_config: Any) -> None:
    model = Transformer(tiny_transformer_config)
    sizes = []
    for batch in (2, 4, 8):
        with kept_activations(model) as kept:
            model(torch.zeros(batch, 16, dtype=torch.int64)).sum().backward()
        sizes.append(sum(storage.nbytes() for storage in kept.values()))
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) > 0.9 * sizes[1]


def test_what_is_wrong_is_said(capsys: Any) -> None:
    def failure(*words: str) -> str:
        assert main([*words, "--dry-run", "--device", "cpu"]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "nowhere: no such folder" in failure("tokenizer", "--data", "nowhere")
    for option in ("--steps", "--batch-size", "--accumulate", "--warmup"):
        assert f"{option} {10**30}: must be at most 999999999" in failure("tokenizer", option, str(10**30))
    assert "--batch-size 10: must be a multiple of 3" in failure("tokenizer", "--batch-size", "10", "--accumulate", "3")
    assert "nowhere" in failure("transformer", "--tokenizer", "nowhere")
    assert "--graphs: needs an NVIDIA GPU" in failure("transformer", "--graphs")
