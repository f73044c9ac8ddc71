"""Reading regular files only, writing them whole, and seeing what would be replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maskgit.files import find_replaced, open_regular, write_atomically

ROOT = Path(__file__).resolve().parents[2]
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")

# Writes a file, and dies or waits when it is under its temporary name.
WRITER = """
import os, signal, sys
from pathlib import Path
from maskgit import files
def stop(*names):
    print("written", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
files.os.replace = stop
files.write_atomically({Path(sys.argv[1]): b"new"})
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    """A process that has written `path` under a temporary name; it is killed when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    return process


@needs_pipes
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"text"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to pipe").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link to pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a file but a pipe or a device") as caught:
            open_regular(path)
        assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_files_are_written_and_folders_made(tmp_path: Path) -> None:
    paths = [tmp_path / "deep" / "er" / "a", tmp_path / "b"]
    paths[1].write_bytes(b"old")
    write_atomically({path: path.name.encode() for path in paths})
    assert [path.read_bytes() for path in paths] == [b"a", b"b"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "deep", "er"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows: nothing is swept up")
def test_what_killed_writers_leave_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    dead = start_writer(path)
    dead.communicate()
    assert dead.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".tmp-*")
    living = start_writer(path)
    assert not left.exists()  # swept up by the second one
    (held,) = tmp_path.glob(".tmp-*")
    mine = [tmp_path / ".tmp-mine", tmp_path / f".tmp-{16 * '0'}x"]
    for one in mine:
        one.write_bytes(b"somebody's")
    (tmp_path / f".tmp-{16 * 'a'}").mkdir()
    write_atomically({tmp_path / "b": b"mine"})
    assert held.read_bytes() == b"new" and all(one.exists() for one in mine)
    assert (tmp_path / f".tmp-{16 * 'a'}").is_dir() and path.read_bytes() == b"old"
    living.communicate()


def test_what_would_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, other = tmp_path / "photos" / "a.png", tmp_path / "photos" / "b.png"
    original.parent.mkdir()
    for path in (original, other):
        path.write_bytes(b"picture")
    (tmp_path / "out").mkdir()
    (tmp_path / "linked").symlink_to("photos")
    (tmp_path / "out" / "symbolic.png").symlink_to("../photos/a.png")
    os.link(original, tmp_path / "out" / "A.PNG")  # as a disk looks that doesn't tell cases apart
    (tmp_path / "photos" / "nowhere.png").symlink_to("gone.png")
    monkeypatch.chdir(tmp_path)
    same = ["photos/a.png", "out/../photos/a.png", "linked/a.png", "out/symbolic.png", "out/A.PNG"]
    new = ["photos/c.png", "out/a.png", "linked/c.png"]
    for name in same:
        assert find_replaced([Path("out/new.png"), Path(name)], [other, original]) == [(Path(name), original)], name
        assert find_replaced([tmp_path / name], [other, Path("photos/a.png")]), name
    for name in new:
        assert find_replaced([Path(name)], [original, other]) == []
    (tmp_path / "out" / "a.png").write_bytes(b"picture")
    assert find_replaced([Path("out/a.png"), other], [original]) == []
    assert find_replaced([Path("linked/nowhere.png")], [tmp_path / "photos" / "nowhere.png"])
