"""Both stages, run for a few steps: they learn, resume exactly, refuse what can't be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_train import (
    SAVED,
    STAGES,
    STEPS,
    TASKS,
    Interrupted,
    assert_same_run,
    curve,
    interrupt_at,
    last_state,
    watch_training,
)
from torch import Tensor

import maskgit.training.transformer
from maskgit.config import PRESETS, TokenizerConfig
from maskgit.data import DataError
from maskgit.network.folder import load_model, load_tokenizer, save_tokenizer
from maskgit.network.partial import masked_rows
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit.training.checkpoint import CheckpointError, list_checkpoints
from maskgit.training.settings import TrainingError


@pytest.fixture
def copy(unbroken: dict[str, Path], tmp_path: Path) -> Any:
    """copy(stage): the unbroken run, to be damaged."""

    def copy(stage: str) -> Path:
        return Path(shutil.copytree(unbroken[stage], tmp_path / stage))

    return copy


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_what_stage_1_leaves(unbroken: dict[str, Path]) -> None:
    output = unbroken["tokenizer"]
    figures = json.loads((output / "validation.json").read_text())
    assert figures.keys() == {"step", "psnr", "ssim", "l1", "codes_used", "perplexity"} and figures["step"] == STEPS
    assert [step for step, _ in curve(output)] == list(range(STEPS))
    assert [step for step, _ in curve(output, "validation/psnr")] == [4, 8]
    assert [step for step, _ in curve(output, "train/discriminator")] == list(range(2, STEPS))
    assert any(revived for step, revived in curve(output, "train/revived") if step >= SAVED)
    assert [rate for _, rate in curve(output, "train/lr")][:3] == pytest.approx([2.5e-3, 5e-3, 5e-3])
    # The newest two, and the best.
    l1 = dict(curve(output, "validation/l1"))
    best = min(l1, key=lambda step: l1[step])
    assert [step for step, _ in list_checkpoints(output / "checkpoints")] == sorted({best, SAVED, STEPS})
    assert (output / "checkpoints" / "best").read_text() == f"step-{best:09d}\n"
    # The averaged weights are what is saved.
    weights, _ = last_state(output)
    saved = load_tokenizer(output / "model").state_dict()
    for name, tensor in saved.items():
        assert torch.equal(tensor, weights[f"ema.module.{name}"]), name
    assert any(not torch.equal(tensor, weights[f"model.{name}"]) for name, tensor in saved.items())
    assert Image.open(output / "reconstructions.png").size[0] == 16 * 16


def test_what_stage_2_leaves(unbroken: dict[str, Path]) -> None:
    output = unbroken["transformer"]
    model = load_model(output / "model")
    assert model.class_names == ["above", "below"] and model.transformer.config.num_classes == 2
    figures = json.loads((output / "validation.json").read_text())
    assert {"loss", "token_loss", "accuracy"} < figures.keys()
    assert model.metadata["validation"] == {name: value for name, value in figures.items() if name != "step"}
    assert (output / "inpaintings.png").exists()
    shards = {name: np.load(output / "tokens" / name / "tokens.npy").shape for name in ("train", "val")}
    assert shards["train"][0] == 3 and shards["val"][0] == 2 and shards["train"][1] + shards["val"][1] == 30
    ours, theirs = model.tokenizer.state_dict(), load_tokenizer(unbroken["tokenizer"] / "model").state_dict()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_of_a_short_run(
    stage: str, run: Any, unbroken: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved is the average of all steps' weights, written out; hardly any of it is of the first one's."""
    seen: list[dict[str, Tensor]] = []
    real = TASKS[stage].training_step

    def training_step(self: Any, batch: Any, step: int) -> dict[str, Tensor]:
        logged = real(self, batch, step)
        seen.append({name: parameter.detach().double().clone() for name, parameter in self.model.named_parameters()})
        return logged

    monkeypatch.setattr(TASKS[stage], "training_step", training_step)
    run(stage, tmp_path, steps=5, ema=0.999)
    shares = [1 - decay for decay in (0, 2 / 11, 3 / 12, 4 / 13, 5 / 14)]  # of each step's weights
    weights, _ = last_state(tmp_path)
    for name in seen[0]:
        expected = torch.zeros_like(seen[0][name])
        for share, step in zip(shares, seen, strict=True):
            expected += share * (step[name] - expected)
        torch.testing.assert_close(weights[f"ema.module.{name}"].double(), expected, rtol=1e-5, atol=1e-6, msg=name)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls(stage: str, run: Any, unbroken: dict[str, Path], tmp_path: Path) -> None:
    plain = {"perceptual": "none", "adversarial_weight": 0.0} if stage == "tokenizer" else {"dropout": 0.0}
    changes = {"steps": 60, "batch_size": 8, "save_every": 100, "validate_every": 100, "precision": "float32"}
    run(stage, tmp_path, **changes, **plain)
    losses = [value for _, value in curve(tmp_path)]
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    assert last < 0.6 * first, (first, last)


def test_loss_is_over_masked_tokens_only(run: Any, unbroken: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """The first logged loss is the cross-entropy written out for the masks and views of that step."""
    seen = watch_training(monkeypatch)
    run("transformer", tmp_path, steps=1, precision="float32")
    masked = seen["held"] == 16
    assert torch.equal(seen["held"][~masked], seen["tokens"][~masked])
    assert 1 <= masked.sum(1).min() and len(masked.sum(1).unique()) > 1  # each image its own share
    scores = seen["logits"].log_softmax(-1)
    picked = scores.gather(-1, seen["tokens"][..., None])[..., 0]
    assert float(seen["loss"]) == pytest.approx(-float(picked[masked].mean()), rel=1e-5)


def test_activation_checkpointing(run: Any, unbroken: dict[str, Path], tmp_path: Path) -> None:
    """Blocks are computed anew with the same dropout."""
    run("transformer", tmp_path, activation_checkpointing=True)
    assert_same_run(tmp_path, unbroken["transformer"])


@pytest.mark.slow
@pytest.mark.usefixtures("cpp_compiler")
def test_compiled(run: Any, unbroken: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same dropout and losses, for which one compilation does, however many tokens the loss counts."""
    monkeypatch.setattr(maskgit.training.transformer, "_ROWS_STRIDE", 4)
    rows = set()
    monkeypatch.setattr(
        maskgit.training.transformer,
        "masked_rows",
        lambda masked, count: (rows.add(count), masked_rows(masked, count))[1],
    )
    run("transformer", tmp_path / "plain", precision="float32")
    torch._dynamo.reset()  # what other tests have compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        run("transformer", tmp_path / "compiled", precision="float32", compile=True)
    assert len(rows) > 2
    plain, compiled = curve(tmp_path / "plain"), curve(tmp_path / "compiled")
    assert len(plain) == STEPS
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_unbroken(
    stage: str, workers: int, run: Any, unbroken: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(7, stage, patch)  # two steps behind the checkpoint at 5
        run(stage, tmp_path)
    assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [4, SAVED]  # 4: validated, so the best
    # A killed process also leaves this.
    leftover = tmp_path / "checkpoints" / ".step-000000008.partial"
    shutil.copytree(tmp_path / "checkpoints" / "step-000000005", leftover)
    (leftover / "weights.safetensors").write_bytes(b"half")
    run(stage, tmp_path, resume=True, workers=workers)
    assert_same_run(tmp_path, unbroken[stage])
    assert not leftover.exists()
    file = "tokenizer.safetensors" if stage == "tokenizer" else "transformer.safetensors"
    assert (tmp_path / "model" / file).read_bytes() == (unbroken[stage] / "model" / file).read_bytes()


def test_the_seed_matters(run: Any, unbroken: dict[str, Path], tmp_path: Path) -> None:
    """Else the equalities above would show nothing."""
    run("tokenizer", tmp_path, seed=1, steps=3)
    assert curve(tmp_path)[0] != curve(unbroken["tokenizer"])[0]


@pytest.mark.parametrize("stage", STAGES)
def test_resume_without_a_checkpoint_starts(
    stage: str, run: Any, unbroken: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(3, stage, patch)
        run(stage, tmp_path)
    run(stage, tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken[stage])


def test_resume_after_the_end(run: Any, copy: Any, unbroken: dict[str, Path]) -> None:
    """Killed between the last checkpoint and the export: the model is written all the same."""
    output = copy("transformer")
    shutil.rmtree(output / "model")
    run("transformer", output, resume=True)
    for path in (unbroken["transformer"] / "model").iterdir():
        assert (output / "model" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("stage", STAGES)
def test_occupied_output(stage: str, run: Any, copy: Any) -> None:
    output = copy(stage)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=f"{output} already holds a run: go on with --resume"):
        run(stage, output, seed=3)
    with pytest.raises(TrainingError, match=r"other settings: lr \(was 0.005, now 0.1\), seed \(was 0, now 3\)"):
        run(stage, output, resume=True, lr=0.1, seed=3)
    # Nothing has been written over, the tokens of stage 2 included.
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_another_stage_in_the_output(run: Any, copy: Any) -> None:
    with pytest.raises(TrainingError, match="other settings: "):
        run("transformer", copy("tokenizer"), resume=True)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
def test_truncated_checkpoint(name: str, run: Any, copy: Any) -> None:
    output = copy("tokenizer")
    damaged = output / "checkpoints" / "step-000000008" / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=f"{damaged}: the checkpoint can't be read"):
        run("tokenizer", output, resume=True)


def test_checkpoint_of_other_networks(run: Any, copy: Any, pictures: Path, tmp_path: Path) -> None:
    """The same settings, but the pictures now have three classes."""
    output, settings = copy("transformer"), tmp_path / "transformer" / "checkpoints" / "step-000000008"
    third = pictures / "third"
    third.mkdir()
    try:
        Image.new("RGB", (20, 20)).save(third / "1.png")
        with pytest.raises(DataError, match=f"made with other images; .* remove {output / 'tokens' / 'train'}"):
            run("transformer", output, resume=True)
        for split in ("train", "val"):  # as that says
            shutil.rmtree(output / "tokens" / split)
        with pytest.raises(
            CheckpointError, match=f"{settings}: does not fit the networks of this run: .*size mismatch"
        ):
            run("transformer", output, resume=True)
        file = output / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"git": "0123abc"}))
        before = file.read_bytes()
        with pytest.raises(CheckpointError, match="its revision is 0123abc; presets of --model can be others"):
            run("transformer", output, resume=True, steps=STEPS + 4)
        assert file.read_bytes() == before  # a run that can't go on still says how it was begun
    finally:
        shutil.rmtree(third)


@pytest.mark.parametrize("changes, old", [({"qk_norm": True}, False), ({"heads": 4}, False), ({"qk_norm": True}, True)])
def test_checkpoint_of_a_network_with_the_same_weights(
    changes: dict[str, Any], old: bool, run: Any, copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset that was another one: no shape tells them apart, and older checkpoints didn't say."""
    output = copy("transformer")
    file = output / "checkpoints" / "step-000000008" / "state.pt"
    if old:
        state = torch.load(file, weights_only=True)
        del state["architectures"]
        torch.save(state, file)
    tiny = PRESETS["tiny-classes"]
    other = dataclasses.replace(tiny, transformer=dataclasses.replace(tiny.transformer, **changes))
    ((field, value),) = changes.items()
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS, "tiny-classes", other)
        message = f"does not fit the networks of this run: {field} of the model was .* and is {value}"
        with pytest.raises(CheckpointError, match=message):
            run("transformer", output, resume=True, steps=STEPS + 1)
    run("transformer", output, resume=True, steps=STEPS + 1)


# --- what a run is given ----------------------------------------------------------------------------------------------


def test_pictures_without_classes(run: Any, unbroken: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(30):
        Image.new("RGB", (16, 16), (8 * i, 0, 0)).save(folder / f"{i}.png")
    run("transformer", tmp_path / "out", data=str(folder), steps=1)
    assert "flat has no classes" in capsys.readouterr().out
    assert load_model(tmp_path / "out" / "model").transformer.config.num_classes == 0


def test_going_on_from_a_model(run: Any, unbroken: Any, tmp_path: Path, tiny_tokenizer: VQGAN) -> None:
    start = unbroken["transformer"] / "model"
    run("transformer", tmp_path / "a", init=start, lr=0.0, ema=0.0, dropout=0.0, steps=1)
    ours, theirs = (load_model(folder).transformer for folder in (tmp_path / "a" / "model", start))
    assert ours.config.dropout != theirs.config.dropout  # that may change
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(TrainingError, match="another transformer than .*: num_classes is 2 there and 0 here"):
        run("transformer", tmp_path / "b", init=start, model="tiny")
    save_tokenizer(tmp_path / "other", tiny_tokenizer)
    with pytest.raises(TrainingError, match="its tokenizer is not the one"):
        run("transformer", tmp_path / "c", init=start, tokenizer=tmp_path / "other")


def test_the_decoder_alone(run: Any, unbroken: Any, tmp_path: Path, tiny_tokenizer_config: TokenizerConfig) -> None:
    start = unbroken["tokenizer"] / "model"
    run("tokenizer", tmp_path / "a", decoder_of=start, ema=0.0)
    ours, theirs = (load_tokenizer(folder).state_dict() for folder in (tmp_path / "a" / "model", start))
    for name, tensor in ours.items():
        decodes = name.startswith(("post_quant_conv.", "decoder."))
        assert torch.equal(tensor, theirs[name]) != decodes, name
    # A transformer goes on with it.
    model = unbroken["transformer"] / "model"
    run("transformer", tmp_path / "b", tokenizer=tmp_path / "a" / "model", init=model, steps=1)
    other = dataclasses.replace(tiny_tokenizer_config, codebook_size=5)
    save_tokenizer(tmp_path / "other", VQGAN(other))
    with pytest.raises(TrainingError, match="--decoder-of .*other: its tokenizer is built otherwise"):
        run("tokenizer", tmp_path / "c", decoder_of=tmp_path / "other")


def test_class_dropout(run: Any, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    forward = Transformer.forward

    def spy(self: Transformer, tokens: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor:
        assert labels is not None
        if self.training:
            seen.append(labels)
        return forward(self, tokens, labels, **options)

    monkeypatch.setattr(Transformer, "forward", spy)
    run("transformer", tmp_path / "half", class_dropout=0.5, steps=4, batch_size=64)
    hidden = (torch.cat(seen) == 2).double().mean()  # of two classes
    assert abs(hidden - 0.5) < 4.5 * (0.25 / 256) ** 0.5
    seen.clear()
    run("transformer", tmp_path / "none", class_dropout=0.0, steps=4)
    assert set(torch.cat(seen).tolist()) == {0, 1}
