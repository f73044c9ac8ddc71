"""Checkpoints are whole or absent, and a damaged one is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import maskgit.training.checkpoint as checkpoint
from maskgit.training.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint

WEIGHTS = {"a": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3)}  # one of them not contiguous
STATE = {"settings": {"lr": 0.1}, "optimizers": [{"state": {0: {"step": torch.tensor(5.0)}}}]}


def test_round_trip(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, WEIGHTS, STATE, keep=2)
    assert path.name == "step-000000007"
    weights, state = load_checkpoint(path)
    assert weights.keys() == WEIGHTS.keys() and all(torch.equal(weights[name], WEIGHTS[name]) for name in weights)
    assert state == STATE


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000):
        save_checkpoint(tmp_path, step, WEIGHTS, STATE, keep=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [100, 1000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000100", "step-000001000"]


def test_the_best_is_kept_too(tmp_path: Path) -> None:
    """And named by a link, whatever a killed process left of one."""
    link = tmp_path / "best"
    for step, best in ((5, None), (10, 10), (15, 10), (20, 10), (25, 25), (30, 25)):
        (tmp_path / ".best.partial").symlink_to("nowhere")
        save_checkpoint(tmp_path, step, WEIGHTS, STATE, keep=2, best=best)
        (tmp_path / ".best.partial").unlink(missing_ok=True)
        assert link.is_symlink() == (best is not None)
        if best is not None:
            assert link.resolve() == tmp_path / f"step-{best:09d}"
            load_checkpoint(link)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [25, 30]
    save_checkpoint(tmp_path, 35, WEIGHTS, STATE, keep=1, best=25)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [25, 35]
    # The user has removed the best one: there is nothing to point at.
    shutil.rmtree(tmp_path / "step-000000025")
    save_checkpoint(tmp_path, 40, WEIGHTS, STATE, keep=1, best=25)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [40]


def test_leftovers_are_no_checkpoints(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, WEIGHTS, STATE, keep=2)
    leftover = tmp_path / ".step-000000009.partial"
    leftover.mkdir()
    (leftover / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes())
    (tmp_path / "step-9").mkdir()
    assert list_checkpoints(tmp_path) == [(7, path)]
    save_checkpoint(tmp_path, 9, WEIGHTS, STATE, keep=2)  # the same step, done again
    assert [step for step, _ in list_checkpoints(tmp_path)] == [7, 9]
    assert not leftover.exists()
    assert list_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize("again", [False, True], ids=["an old one goes", "the same step again"])
def test_killed_while_one_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    class Killed(BaseException):
        pass

    def removes_one_file(folder: Path, ignore_errors: bool = False) -> None:
        if ignore_errors:  # of a folder that isn't there
            return
        (folder / "weights.safetensors").unlink()
        raise Killed

    save_checkpoint(tmp_path, 7, WEIGHTS, STATE, keep=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", removes_one_file)
        save_checkpoint(tmp_path, 7 if again else 14, WEIGHTS, STATE, keep=1)
    for _, path in list_checkpoints(tmp_path):
        load_checkpoint(path)
    save_checkpoint(tmp_path, 21, WEIGHTS, STATE, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000021"]


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        assert not list_checkpoints(tmp_path) or done[-1] == tmp_path.name
        fsync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", spy)
    save_checkpoint(tmp_path, 7, WEIGHTS, STATE, keep=2)
    assert done == ["weights.safetensors", "state.pt", ".step-000000007.partial", tmp_path.name]


@pytest.mark.parametrize("function", ["save_file", "_flush"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    save_checkpoint(tmp_path, 5, WEIGHTS, STATE, keep=1)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, function, refuse)
    with pytest.raises(CheckpointError, match="step-000000010: the checkpoint can't be written: .*No space left"):
        save_checkpoint(tmp_path, 10, WEIGHTS, STATE, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    load_checkpoint(tmp_path / "step-000000005")


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, None])
def test_damaged(tmp_path: Path, name: str, share: float | None) -> None:
    path = save_checkpoint(tmp_path, 7, WEIGHTS, STATE, keep=2)
    data = (path / name).read_bytes()
    if share is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        CheckpointError, match=f"step-000000007/{name}: the checkpoint can't be read: .+; remove .*step"
    ):
        load_checkpoint(path)


def test_no_code_is_run(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, WEIGHTS, STATE, keep=2)
    torch.save({"evil": os.system}, path / "state.pt")
    with pytest.raises(CheckpointError, match="state.pt"):
        load_checkpoint(path)
