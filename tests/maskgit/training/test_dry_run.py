"""`--dry-run` says what a run takes, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgit.config import preset
from maskgit.network.transformer import Transformer
from maskgit.training.cli import main
from maskgit.training.dry_run import kept_activations


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
    images = int(re.search(r"data +(\d+) images", text)[1])
    assert f"tokens of 3 views will take {3 * 3 * images * 256 * 2 / 1e6:,.1f} MB" in text


def test_from_shards(settings: Any, unbroken: Any, capsys: Any, tmp_path: Path) -> None:
    shards = unbroken["transformer"] / "tokens"
    text = report("transformer", settings, capsys, tokens=shards, data="gone", output=tmp_path / "run")
    assert f"2 classes ({shards}, 3 views)" in text


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
