"""What a run reports, and where."""

from __future__ import annotations

import builtins
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_train import as_words, curve, make_pictures

from maskgit.config import HaltonConfig, preset
from maskgit.network.folder import make_transformer
from maskgit.tokenizer import VQGAN
from maskgit.training import loop
from maskgit.training.cli import main
from maskgit.training.settings import LoopConfig
from maskgit.training.tokenizer import TokenizerTask
from maskgit.training.tracking import Speed, Tracker, peak_flops
from maskgit.training.transformer import TransformerTask


def config(output: Path, **changes: Any) -> LoopConfig:
    return LoopConfig(output=output, steps=10, batch_size=4, lr=1e-3, **changes)


def test_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    speed = Speed(images=32, tokens=256, flops=2e9, peak=1e12, device=torch.device("cpu"))
    now = 104.0
    figures = speed.figures(step=10)
    memory = figures.pop("memory_gib")
    assert figures == {"images_per_second": 80.0, "tokens_per_second": 80.0 * 256, "flops_utilization": 0.16}
    assert 0.1 < memory < 100  # PyTorch alone takes more than that
    now = 105.0
    assert speed.figures(step=11)["images_per_second"] == 32.0  # since the last time
    speed.restart(11)
    now = 106.0
    unknown = Speed(images=32, tokens=0, flops=2e9, peak=None, device=torch.device("cpu"))
    now = 107.0
    assert unknown.figures(1).keys() == {"images_per_second", "memory_gib"}


@pytest.mark.parametrize(
    "name, precision, peak",
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA A10G", "bf16", 70e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("NVIDIA GeForce GTX 1080", "bf16", None),
    ],
)
def test_peaks(name: str, precision: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), precision) == peak
    assert peak_flops(torch.device("cpu"), precision) is None


def test_operations_are_counted(tiny_tokenizer: VQGAN) -> None:
    """Against PyTorch's counter, which sees what is really multiplied."""
    for architecture in (preset("embedded").transformer, HaltonConfig(num_tokens=256, dim=512, depth=2)):
        with torch.device("meta"), tracking_counter() as counter:
            model = make_transformer(architecture)
            labels = torch.zeros(1, dtype=torch.int64) if architecture.num_classes else None
            model(torch.zeros(1, architecture.num_tokens, dtype=torch.int64), labels)
        ours = TransformerTask.flops_per_image(SimpleNamespace(model=model))  # type: ignore[arg-type]
        # The class token, or the register, is one more that goes through the blocks.
        assert ours == pytest.approx(3 * counter.get_total_flops(), rel=0.02)
    images = torch.zeros(2, 3, 16, 16)
    with tracking_counter() as counter:
        tiny_tokenizer.decode_latents(tiny_tokenizer.latents(images))
    theirs = 3 * counter.get_total_flops() / len(images)
    assert TokenizerTask.flops_per_image(SimpleNamespace(model=tiny_tokenizer)) == theirs  # type: ignore[arg-type]


def tracking_counter() -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


def test_a_process_that_does_not_log(tmp_path: Path) -> None:
    with Tracker(config(tmp_path), 0, write=False) as tracker:
        tracker.add_scalars("train", {"a": 1.0}, 0)
        tracker.add_image("picture", np.zeros((4, 4, 3), dtype=np.uint8), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package, extra", [("torch.utils.tensorboard", "train"), ("wandb", "wandb")])
def test_a_missing_package(package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name}")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=rf"needs .*: pip install 'maskgit-inpaint\[{extra}\]'"):
        Tracker(config(tmp_path, wandb=True), 0)


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run goes on with its curves; TensorBoard has the same figures."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    logged: list[dict[str, Any]] = []
    ids = []
    for first in (0, 2):
        with Tracker(config(tmp_path / "run", wandb=True), first) as tracker:
            real = tracker.wandb_run.log
            tracker.wandb_run.log = lambda values, step, real=real: (logged.append(values), real(values, step=step))
            tracker.add_scalars("train", {"loss": 1.5 - first}, first)
            tracker.add_image("picture", np.zeros((4, 4, 3), dtype=np.uint8), first + 1)
            ids.append(tracker.wandb_run.id)
            assert tracker.wandb_run.project == "maskgit" and tracker.wandb_run.config["lr"] == 1e-3
    assert ids[0] == ids[1] == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert [list(values) for values in logged] == [["train/loss"], ["picture"]] * 2
    assert isinstance(logged[1]["picture"], wandb.Image)
    stored = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert stored and all(path.stat().st_size for path in stored)
    assert curve(tmp_path / "run") == [(0, 1.5), (2, -0.5)]


def test_weights_and_biases_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(OSError, match="--wandb: No API key configured.; WANDB_MODE=offline logs to .*/wandb only"):
        Tracker(config(tmp_path, wandb=True), 0)
    assert "WANDB_RUN_ID" not in os.environ


def test_a_collapsed_codebook_is_reported(
    run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """All vectors at the same code."""
    monkeypatch.setattr(
        "maskgit.tokenizer.quantizer.Codebook.nearest",
        lambda self, vectors: torch.zeros(len(vectors), dtype=torch.int64),
    )
    monkeypatch.setattr("maskgit.training.health.COLLAPSED", 0.1)  # of 16 codes, one is more than 5 %
    run("tokenizer", tmp_path, steps=1, adversarial_weight=0.0, perceptual="none")
    assert (
        "warning: the codebook has collapsed: 6.2% of 16 codes are used, with a perplexity of 1.0"
        in capsys.readouterr().out
    )


def test_what_is_logged_and_said(run: Any, unbroken: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    run("transformer", tmp_path, steps=4)
    for name in ("loss", "accuracy", "gradient_norm", "lr", "images_per_second", "tokens_per_second", "memory_gib"):
        assert len(curve(tmp_path, f"train/{name}")) == 4, name
    captured = capsys.readouterr()
    assert "accuracy=" in captured.err and "images_per" in captured.err  # cut off where the terminal ends
    for word in (
        f"{tmp_path}/model",
        f"{tmp_path}/checkpoints (best: loss ",
        "inpaintings.png",
        f"--logdir {tmp_path}/log",
    ):
        assert word in captured.out


def test_the_bar_has_a_loss_from_the_first_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, set[str]]] = []

    class Bar(loop.tqdm):
        def set_postfix(self, ordered_dict: Any = None, **options: Any) -> None:
            shown.append((self.n, set(ordered_dict)))

    monkeypatch.setattr(loop, "tqdm", Bar)
    make_pictures(tmp_path / "pictures")
    settings = {"device": "cpu", "model": "tiny", "steps": 5, "batch_size": 4, "validation_images": 4, "log_every": 2}
    assert main(["tokenizer", *as_words(settings | {"data": tmp_path / "pictures", "output": tmp_path / "run"})]) == 0
    assert [step for step, _ in shown] == [1, 2, 4, 5] and all("loss" in names for _, names in shown)
    assert [step for step, _ in curve(tmp_path / "run", "train/loss")] == [1, 3, 4]  # the log: as asked for
