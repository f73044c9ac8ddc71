"""Files of every format, sound, broken and malicious."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch
from torch import Tensor

from maskgit.convert.reading import ConvertError, read_checkpoint

Tensors = dict[str, Tensor]


def save_zip(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path)


def save_legacy(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_flax(tensors: Tensors, path: Path, originals: ModuleType) -> None:
    pytest.importorskip("msgpack")
    originals.write_flax(tensors, path)


@pytest.fixture(params=["zip", "legacy", "safetensors", "flax"])
def save(request: pytest.FixtureRequest, originals: ModuleType) -> Callable[[Tensors, Path], None]:
    """One of the formats' writers."""
    if request.param == "flax":
        return lambda tensors, path: save_flax(tensors, path, originals)
    return {"zip": save_zip, "legacy": save_legacy, "safetensors": safetensors.torch.save_file}[request.param]


def test_round_trip(save: Callable[[Tensors, Path], None], tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.randn(3, 5),
        "a.bias": torch.randn(3).bfloat16(),
        "b": torch.randn(2, 1, 4).half(),
        "c": torch.randint(9, (2, 2)),
        "d": torch.randn(()),
        "e": torch.empty(0, 4),
    }
    save(tensors, tmp_path / "any.name")
    found = read_checkpoint(tmp_path / "any.name")
    found = {name.removeprefix("params."): tensor for name, tensor in found.items()}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_cut_short(save: Callable[[Tensors, Path], None], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save({"a.weight": torch.randn(40, 5), "b": torch.randn(300)}, path)
    data = path.read_bytes()
    for length in (5, 15, 40, len(data) // 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ConvertError):
            read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged(save: Callable[[Tensors, Path], None], tmp_path: Path) -> None:
    """Whatever is wrong with a file, there is a message and not a crash. (Changed numbers can't be noticed.)"""
    path = tmp_path / "checkpoint"
    save({"a.weight": torch.randn(4, 5), "b": torch.randn(3)}, path)
    data = path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for place in torch.randint(len(data), (8,)).tolist():
            damaged[place] = int(torch.randint(256, ()))
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except ConvertError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "an empty file"),
        (b"The weights are on my other computer.\n", "neither a PyTorch file, nor safetensors, nor flax msgpack"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint"),
        (b"{", "not a checkpoint"),
        (pickle.dumps({"a": 1}, protocol=0), "not a checkpoint"),
        (pickle.dumps({"a": 1}, protocol=2), "a bare pickle"),
        (pickle.dumps({"a": 1}, protocol=5), "a bare pickle"),
        (b"PK\x03\x04" + bytes(100), "damaged or cut short"),
        (b"\x81\xa1a\xc1", "damaged, cut short or not flax msgpack"),
        (b"\x85\xa1a" + b"\x91" * 5000, "damaged, cut short or not flax msgpack"),
        (struct.pack("<Q", 2**40) + b'{"a": 1}', "damaged or cut short"),
    ],
    ids=lambda value: repr(value)[:25],
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    if content[:1] in (b"\x81", b"\x85"):
        pytest.importorskip("msgpack")
    path = tmp_path / "transformer.pt"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=message):
        read_checkpoint(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="can't be read: No such file"):
        read_checkpoint(tmp_path / "nothing")
    with pytest.raises(ConvertError, match="a folder, not a checkpoint file"):
        read_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """Nobody writes to it: opening it would wait for ever."""
    os.mkfifo(tmp_path / "model.ckpt")
    with pytest.raises(ConvertError, match="a pipe or a device"):
        read_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "array",
    [
        ((2, 3), "float32", bytes(20)),
        ((2**40,), "float32", bytes(4)),
        ((-1, -1), "float32", bytes(4)),
        ((1.5,), "float32", bytes(6)),
        ((1,), "nn", bytes(4)),
        ((1,), "object", bytes(8)),
        (None, "float32", b""),
        ((2**62, 2**62, 0), "float32", b""),
        ((0, 2**64 - 1), "float32", b""),
        ((1,), "quint8", b"\0"),
        "text",
    ],
    ids=str,
)
def test_flax_arrays_that_lie(tmp_path: Path, array: object) -> None:
    msgpack = pytest.importorskip("msgpack")
    path = tmp_path / "checkpoint"
    path.write_bytes(msgpack.packb({"params": {"a": msgpack.ExtType(1, msgpack.packb(array))}}))
    with pytest.raises(ConvertError, match="damaged"):
        read_checkpoint(path)


def test_without_msgpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").write_bytes(b"\x81\xa6params\x80")
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ConvertError, match=r"takes the msgpack package to read: pip install .*\[convert\]"):
        read_checkpoint(tmp_path / "checkpoint")
