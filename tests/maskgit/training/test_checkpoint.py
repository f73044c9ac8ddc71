"""Checkpoints are whole or absent, and a damaged one is named."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from pathlib import Path
from typing import Any

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
    """And named by a file, which takes the place of the link that an older release has made."""
    name = tmp_path / "best"
    name.symlink_to("step-000000003", target_is_directory=True)
    for step, best in ((5, None), (10, 10), (15, 10), (20, 10), (25, 25), (30, 25)):
        save_checkpoint(tmp_path, step, WEIGHTS, STATE, keep=2, best=best)
        assert name.is_symlink() == (best is None)
        if best is not None:
            assert name.read_text() == f"step-{best:09d}\n"
            load_checkpoint(tmp_path / name.read_text().strip())
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


@pytest.mark.parametrize("code", ["EACCES", "EPERM", "EINVAL", "ENOTSUP", "ENOSYS", "EBADF"])
@pytest.mark.parametrize("function", ["open", "fsync"])
def test_without_links_and_without_flushing_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: str
) -> None:
    """Windows, exFAT, network disks: links and folders' descriptors are refused, files are flushed all the same."""
    real, error, flushed = getattr(os, function), OSError(getattr(errno, code), os.strerror(getattr(errno, code))), []

    def refuse(*_: object, **__: object) -> None:
        raise error

    def refuse_folders(target: int | Path, *rest: int, **options: Any) -> int | None:
        if stat.S_ISDIR(os.stat(target).st_mode) and not options:  # shutil.rmtree has some, where folders can be opened
            raise error
        flushed.append(target)
        return real(target, *rest, **options)

    for link in ("symlink", "link"):
        monkeypatch.setattr(os, link, refuse)
    monkeypatch.setattr(os, function, refuse_folders)
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, WEIGHTS, STATE, keep=1, best=5)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [5, 15]
    assert (tmp_path / "best").read_text() == "step-000000005\n"
    assert function == "open" or len(flushed) == 3 * 3  # weights, state, name of the best


def test_a_folder_that_can_not_be_flushed_for_another_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def broken_disk(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", broken_disk)
    with pytest.raises(CheckpointError, match="the checkpoint can't be written: .*Input/output error"):
        save_checkpoint(tmp_path, 5, WEIGHTS, STATE, keep=1)


def test_an_old_one_that_can_not_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a program has a file of it open: training goes on, and it goes the next time."""
    save_checkpoint(tmp_path, 5, WEIGHTS, STATE, keep=1)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "step-000000005":
            raise PermissionError(13, "used by another process")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="step-000000005: .* can't be removed: .*used"):
        patch.setattr(Path, "rename", refuse)
        save_checkpoint(tmp_path, 10, WEIGHTS, STATE, keep=1)
    save_checkpoint(tmp_path, 15, WEIGHTS, STATE, keep=1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [15]


@pytest.mark.parametrize("room", [0, 700, 3_000, 100_000, 399_000, 400_700])
def test_a_full_disk_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Wherever in PyTorch's file of some 401 kB it is full; its own words are of positions in the archive."""

    class FullDisk(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *rest: (
            io.BufferedWriter(FullDisk(path, "w")) if str(path).endswith("state.pt") else real(path, *rest)
        ),
    )
    state = STATE | {"moments": torch.randn(100_000)}
    with pytest.raises(CheckpointError, match=r"step-000000010: the checkpoint can't be written: .*No space left"):
        save_checkpoint(tmp_path, 10, WEIGHTS, state, keep=1)
    assert not list(tmp_path.iterdir())


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
