"""Token shards that something has happened to: named, made again, and nobody else's files replaced."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit.data import AugmentConfig, DataError, ImageDataset, parts, token_files
from maskgit.data.arrays import open_array
from maskgit.data.tokens import HIDDEN, class_names, open_shard, tokenize
from maskgit.tokenizer import VQGAN

ARRAYS = ("tokens.npy", "holes.npy", "labels.npy")
DESCRIPTIONS = ("tokens.json", "holes.json", "images.json")


class Noise(ImageDataset):
    """Five random pictures of two classes."""

    image_size = 16
    class_names = ["a", "b"]
    labels = np.array([0, 1, 1, 0, 1])

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(256, size=(20, 24, 3), dtype=np.uint8))


@pytest.fixture
def make(tiny_tokenizer: VQGAN, tmp_path: Path) -> Callable[..., Any]:
    options = {"views": 3, "augment": AugmentConfig(), "seed": 7, "device": torch.device("cpu"), "hole_share": 0.5}
    return lambda **changes: tokenize(tiny_tokenizer, Noise(), tmp_path / "shard", **options | changes)


@pytest.fixture
def folder(make: Callable[..., Any], tmp_path: Path) -> Path:
    make()
    return tmp_path / "shard"


def open_all(folder: Path, tokenizer: VQGAN) -> None:
    open_shard(folder, tokenizer, hole_share=0.5)
    class_names(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- damage -----------------------------------------------------------------------------------------------------------


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def npz(values: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, values)
    return file.getvalue()


def with_header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def shape_of(shape: str, kind: str = "<u2") -> bytes:
    return with_header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()) + bytes(64)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "a magic string": lambda data: data[:6],
    "half a header": lambda data: data[:40],
    "no values": lambda data: data[:128],
    "one byte less": lambda data: data[:-1],
    "one byte more": lambda data: data + b"x",
    "text": lambda data: b"no array at all, but a text that is somewhat longer than a header would be" * 3,
    "a broken header": lambda data: with_header(b"{'descr': '<u2', 'fortran_order': False, 'shape': (((( \n"),
    "an evaluated header": lambda data: with_header(b"__import__('os').system('touch evaluated')\n"),
    "a nested header": lambda data: with_header(b"(" * 9000 + b")" * 9000 + b"\n"),
    "a version to come": lambda data: data[:6] + b"\x09\x00" + data[8:],
    "another kind of number": lambda data: npy(np.load(io.BytesIO(data)).astype(np.float32)),
    "the other byte order": lambda data: npy(np.load(io.BytesIO(data)).astype(">i8")),
    "objects": lambda data: npy(np.array([{}], dtype=object)),
    "an archive": lambda data: npz(np.load(io.BytesIO(data))),
    "a number": lambda data: npy(np.load(io.BytesIO(data)).ravel()[0]),
    "one dimension more": lambda data: npy(np.load(io.BytesIO(data))[None]),
    "no images": lambda data: npy(np.load(io.BytesIO(data))[..., :0]),
    "fewer images": lambda data: npy(np.load(io.BytesIO(data))[..., :-1]),
    "columns first": lambda data: npy(np.asfortranarray(np.load(io.BytesIO(data))[..., None].repeat(2, -1))),
    "10^15 views": lambda data: shape_of("(1000000000000000, 5, 16)"),
    "10^40 images": lambda data: shape_of(f"({10**40},)", "<i8"),
    "less than no images": lambda data: shape_of("(2, -5, 16)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_arrays(
    damage: str, folder: Path, tiny_tokenizer: VQGAN, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that names the file and what helps; which then does help."""
    monkeypatch.chdir(folder.parent)
    whole = contents(folder)
    for name in ARRAYS:
        (folder / name).write_bytes(DAMAGE[damage](whole[name]))
        with pytest.raises(DataError, match=f"{name}: .*; write it again with train.py tokens") as caught:
            open_all(folder, tiny_tokenizer)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
        make()
        assert contents(folder) == whole, name
    assert not Path("evaluated").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 10**5, b'{"a": ' + b"9" * 5000 + b"}"])
def test_damaged_descriptions(content: bytes, folder: Path, tiny_tokenizer: VQGAN, make: Callable[..., Any]) -> None:
    whole = contents(folder)
    for name in DESCRIPTIONS:
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: .*; remove it and write it again with train.py"):
            open_all(folder, tiny_tokenizer)
        make()
        assert contents(folder) == whole


@pytest.mark.parametrize("name", [*ARRAYS, *DESCRIPTIONS])
@pytest.mark.parametrize("replace", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_no_files_at_all(name: str, replace: Any, folder: Path, tiny_tokenizer: VQGAN) -> None:
    """A pipe would be waited for, a device never ends."""
    (folder / name).unlink()
    replace(folder / name)
    with pytest.raises(DataError, match=f"{name}.*: .*(not a file but a pipe or a device|Is a directory)"):
        open_all(folder, tiny_tokenizer)


def test_a_pipe_is_replaced(folder: Path, make: Callable[..., Any]) -> None:
    whole = contents(folder)
    for name in whole:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        make()
        assert contents(folder) == whole


# --- values that make no sense ----------------------------------------------------------------------------------------


def put(file: Path, place: tuple[int, ...], value: int) -> None:
    values = np.load(file)
    values[place] = value
    np.save(file, values)


@pytest.mark.parametrize("name, place", [("tokens.npy", (1, 4, 15)), ("holes.npy", (0, 1, 4, 15))])
@pytest.mark.parametrize("value", [16, 65534, 65535])
def test_tokens_beyond_the_codebook(
    name: str,
    place: tuple[int, ...],
    value: int,
    folder: Path,
    tiny_tokenizer: VQGAN,
    make: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Codes are 0 to 15; 65535 stands for what is hidden, where there are holes."""
    whole = contents(folder)
    put(folder / name, place, 15)
    open_all(folder, tiny_tokenizer)
    put(folder / name, place, value)
    if name == "holes.npy" and value == HIDDEN:
        open_all(folder, tiny_tokenizer)
        return
    expected = f"{name}: damaged: holds the token {value}, and the codebook has 16 codes; remove it and write it again"
    with monkeypatch.context() as patch:
        patch.setattr(token_files, "CHUNK", 7)
        with pytest.raises(DataError, match=expected):
            open_all(folder, tiny_tokenizer)
        # Of a shard that is too large to be looked through, each sample is checked.
        patch.setattr(token_files, "LOOKED_THROUGH", 1)
        shard = open_shard(folder, tiny_tokenizer, hole_share=1.0)
        assert shard.samples(np.array([3]), 1, 0).tokens.shape == (1, 16)
        with pytest.raises(DataError, match=expected):
            shard.samples(np.array([3, 4]), 1, 0)
        if name == "tokens.npy":
            with pytest.raises(DataError, match=expected):
                for position in range(20):
                    shard[4, position]
    make()
    assert contents(folder) == whole


def test_holes_of_other_tokens(folder: Path, tiny_tokenizer: VQGAN, make: Callable[..., Any]) -> None:
    """Of other crops, say, which look no different."""
    older = make(seed=8).tokens.copy()
    make(hole_share=0.0)
    assert not np.array_equal(open_shard(folder, tiny_tokenizer).tokens, older)
    with pytest.raises(DataError, match="holes.npy: made with other seed than tokens.npy, .*; remove it and write it"):
        open_all(folder, tiny_tokenizer)
    (folder / "holes.npy").unlink()
    make(replace=False)
    open_all(folder, tiny_tokenizer)


def test_labels_that_are_no_class(folder: Path, tiny_tokenizer: VQGAN, make: Callable[..., Any]) -> None:
    whole = contents(folder)
    for value, found in ((-1, "-1 to 1"), (2, "0 to 2"), (10**9, "0 to 1000000000")):
        put(folder / "labels.npy", (0,), value)
        with pytest.raises(DataError, match=f"labels.npy: holds the classes {found}, and images.json names 2; write"):
            open_all(folder, tiny_tokenizer)
    make()
    assert contents(folder) == whole
    (folder / "images.json").write_text('{"class_names": []}')
    with pytest.raises(DataError, match="labels.npy: holds the classes 0 to 1, and images.json names 0"):
        open_all(folder, tiny_tokenizer)
    np.save(folder / "labels.npy", np.zeros(5, dtype=np.int64))  # as without classes
    open_all(folder, tiny_tokenizer)


@pytest.mark.parametrize("names", ["ab", {"a": 0, "b": 1}, [1, 2], ["a", None], 2, None])
def test_class_names_of_another_type(names: Any, folder: Path, tiny_tokenizer: VQGAN) -> None:
    (folder / "images.json").write_text(json.dumps({"class_names": names}))
    with pytest.raises(DataError, match="images.json: class_names is .*, not a list of strings; remove it and write"):
        open_all(folder, tiny_tokenizer)


def test_an_array_is_mapped_not_read(tmp_path: Path) -> None:
    """A terabyte that takes no room on the disk is opened at once."""
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (10, 10**9, 50)})
        file.truncate(file.tell() + 10**12)
    values = open_array(tmp_path / "a.npy", np.uint16, (None, 10**9, None))
    assert values.shape == (10, 10**9, 50) and values[9, -1, -1] == 0 and not values.flags.writeable


# --- parts ------------------------------------------------------------------------------------------------------------


def interrupted(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts are there, but they haven't been put together."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, "_put_together", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make(hole_share=0.0)


@pytest.mark.parametrize("damage", [*DAMAGE, "a pipe"])
def test_damaged_parts(damage: str, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(make, monkeypatch)
    part = tmp_path / "shard" / "tokens.parts" / "1-000000000000.npy"
    data = part.read_bytes()
    part.unlink()
    os.mkfifo(part) if damage == "a pipe" else part.write_bytes(DAMAGE[damage](data))
    with pytest.raises(DataError, match=f"{part}: damaged: .*; remove it and run again"):
        make(hole_share=0.0)
    assert not list((tmp_path / "shard").glob("*.npy")) and not list((tmp_path / "shard").glob(".*"))
    part.unlink()  # what the message says
    make(hole_share=0.0)
    assert not part.parent.exists()


def test_a_part_with_a_token_that_is_none(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(make, monkeypatch)
    put(tmp_path / "shard" / "tokens.parts" / "1-000000000000.npy", (4, 15), 16)
    with pytest.raises(DataError, match="tokens.npy: damaged: holds the token 16, .*; remove it and write it again"):
        make(hole_share=0.0)
    assert make(hole_share=0.0).tokens.max() < 16


@pytest.mark.parametrize("there", [os.mkfifo, Path.touch, lambda path: path.symlink_to(path.parent.parent)])
def test_where_parts_belong_there_is_no_folder(there: Any, make: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing is removed, and a pipe isn't waited for."""
    (tmp_path / "shard").mkdir()
    (tmp_path / "mine").touch()
    folder = tmp_path / "shard" / "tokens.parts"
    there(folder)
    with pytest.raises(DataError, match="tokens.parts: is no folder; remove it and run again"):
        make()
    folder.rename(tmp_path / "aside")
    make()
    (tmp_path / "aside").rename(folder)
    make()  # there is nothing to do
    assert os.path.lexists(folder) and (tmp_path / "mine").exists()


def test_parts_that_a_kill_left(make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while they are removed: the next start removes the others, whatever it was that went first."""
    folder = tmp_path / "shard" / "tokens.parts"
    interrupted(make, monkeypatch)
    for lost in sorted(path.name for path in folder.iterdir()):
        saved = Path(shutil.copytree(folder, tmp_path / "saved"))

        def remove_one(path: Path, name: str) -> None:
            (path / name).unlink(missing_ok=True)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(parts.shutil, "rmtree", functools.partial(remove_one, name=lost))
            make(hole_share=0.0)
        assert folder.exists() and (tmp_path / "shard" / "tokens.json").exists()
        make(hole_share=0.0)
        assert not folder.exists()
        saved.rename(folder)
    # Parts of other settings are of an unfinished run, which goes on with them.
    claim = json.loads((folder / "parts.json").read_text())
    (folder / "parts.json").write_text(json.dumps(claim | {"seed": 8}))
    make(hole_share=0.0)
    assert len(list(folder.iterdir())) == 4
    with pytest.warns(UserWarning, match="tokens.parts: removed the 3 part.s. of a run with other settings"):
        make(hole_share=0.0, seed=9)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of file sizes here")
@pytest.mark.parametrize("most, name", [(100, "tokens.parts"), (600, "tokens.npy")])
def test_no_room(most: int, name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    """A part has 128 + 160 bytes, the whole array 128 + 480: the limit falls into what comes first, or comes last."""
    import resource

    older = make(hole_share=0.0, seed=1).tokens.copy()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        with pytest.raises(DataError, match=f"{name}: can't be written: File too large; mend that and run again"):
            make(hole_share=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert not list((tmp_path / "shard").rglob(".*"))
    assert np.array_equal(make(hole_share=0.0, seed=1).tokens, older)
    assert not np.array_equal(make(hole_share=0.0).tokens, older)
    assert not (tmp_path / "shard" / "tokens.parts").exists()


# --- what is the user's -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARRAYS, *DESCRIPTIONS, "names.jsonl"])
def test_files_of_others_stay(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "shard"
    folder.mkdir()
    (folder / name).write_bytes(b"[1, 2, 3]")
    with pytest.raises(DataError, match=f"{name}: is there already, and not from a token shard; choose another"):
        make()
    assert contents(folder) == {name: b"[1, 2, 3]"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nothing_is_written_through_a_link(link: Any, make: Callable[..., Any], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    folder = tmp_path / "shard"
    folder.mkdir()
    link(mine, folder / ".tokens.npy.partial")
    make()
    for name in (*ARRAYS, "names.jsonl"):
        (folder / name).unlink()
        link(mine, folder / name)
        make()
    assert mine.read_bytes() == b"mine"


def test_another_shard_is_kept_if_asked_for(folder: Path, make: Callable[..., Any]) -> None:
    whole = contents(folder)
    make(replace=False)
    with pytest.raises(DataError, match="tokens.npy: is there already, made with other views, seed; choose another"):
        make(replace=False, views=2, seed=1)
    with pytest.raises(DataError, match="holes.npy: is there already, made with other holes; choose another"):
        make(replace=False, holes=2)
    assert contents(folder) == whole
    (folder / "tokens.npy").write_bytes(whole["tokens.npy"][:-5])  # a damaged one is made again
    make(replace=False)
    assert contents(folder) == whole
