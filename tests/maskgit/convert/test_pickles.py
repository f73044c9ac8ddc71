"""PyTorch files that hold more than weights: passed over where it is data, refused where it would run or never end."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pickle
import random
import sys
import typing
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskgit.convert.reading import ConvertError, read_checkpoint

Tensors = dict[str, Tensor]


class Touch:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_code_is_refused(tmp_path: Path, new: bool) -> None:
    trace = tmp_path / "it ran"
    content = {"state_dict": {"a": torch.ones(2), "b": Touch(trace)}}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(ConvertError, match=r"refused: .* import and run \w+\.system\. A checkpoint needs nothing but"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not trace.exists()
    # And it would have run.
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert trace.exists()


def test_a_pickle_of_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    for protocol in range(6):
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(Touch(trace), protocol=protocol))
        with pytest.raises(ConvertError, match="a bare pickle|not a checkpoint"):
            read_checkpoint(tmp_path / "evil.pt")
    assert not trace.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ConvertError, match=r"run torch\.nn\.\S*Linear.*save the model's state_dict\(\)"):
        read_checkpoint(tmp_path / "model.pt")


class Library:
    """Classes of libraries that needn't be installed, for as long as something is saved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.modules: set[str] = set()

    def make(self, path: str, *bases: type) -> type:
        """The class with this path."""
        module, _, name = path.rpartition(".")
        for end in range(1, module.count(".") + 2):
            parent = ".".join(module.split(".")[:end])
            if parent not in self.modules:
                self.monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
                self.modules.add(parent)
        made = type(name, bases, {"__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    def uninstall(self) -> None:
        self.monkeypatch.undo()
        assert self.modules.isdisjoint(sys.modules)


def leftovers(library: Library) -> dict[str, object]:
    """What people's trainers have saved beside the weights."""
    checkpoint = library.make("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    stopping = library.make("lightning.pytorch.callbacks.early_stopping.EarlyStopping")
    attributes = library.make("pytorch_lightning.utilities.parsing.AttributeDict", dict)
    listed = library.make("omegaconf.listconfig.ListConfig")()
    listed.__dict__.update(_content=[1, 2], _metadata=library.make("omegaconf.base.ContainerMetadata")())
    easy = library.make("easydict.EasyDict", dict)(lr=1)
    easy.__dict__["lr"] = 1
    yacs = library.make("yacs.config.CfgNode", dict)
    return {
        "lightning": {"callbacks": {checkpoint: {"best_model_score": 0.5}, "other": stopping()}},
        "lightning's settings": {"hyper_parameters": attributes(lr=1, model=attributes(depth=3))},
        "omegaconf": {"hyper_parameters": {"ch_mult": listed, "type": int}},
        "easydict": easy,
        "yacs": yacs(MODEL=yacs(DEPTH=3)),
        "argparse": argparse.Namespace(lr=1e-4, data=Path("/data")),
        "namespace": SimpleNamespace(a=1),
        "numpy scalars": {"best": np.float64(0.5), np.int64(3): np.bool_(True), "dtype": np.dtype("f4")},
        "numpy arrays": [np.zeros(3, np.float32), np.array([1, "a", None], dtype=object)],
        "random states": [np.random.RandomState(0).get_state(), np.random.default_rng(0), random.Random(0).getstate()],
        "paths": {PurePosixPath("/x"): PureWindowsPath("c:/x"), "list": [Path("y")]},
        "dates": [datetime.datetime(2020, 1, 1), datetime.timedelta(1), datetime.timezone.utc],
        "collections": [collections.defaultdict(list, a=[1]), collections.deque([1, 2]), collections.Counter("aab")],
        "builtins": [slice(1, 2), range(3), frozenset([1]), {1, 2}, 1 + 2j, b"abc", bytearray(b"abc"), None, 10**30],
        "version": torch.__version__,
    }


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_leftovers_of_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    """Data of any kind may lie beside the weights, and around them; nothing of its code is imported."""
    library = Library(monkeypatch)
    made = leftovers(library)
    for number, rest in enumerate(made.values()):
        content = {"rest": rest, "model": collections.defaultdict(int, a=torch.ones(2)), "list": [torch.ones(1)]}
        torch.save(content, tmp_path / f"{number}.pt", _use_new_zipfile_serialization=new)
    library.uninstall()
    for number, name in enumerate(made):
        found = read_checkpoint(tmp_path / f"{number}.pt")
        assert found.keys() == {"model.a"}, name
        assert torch.equal(found["model.a"], torch.ones(2))
        assert library.modules.isdisjoint(sys.modules)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "function", [eval, getattr, typing.get_type_hints, collections.namedtuple, np.load, partial, nn.Linear, torch.load]
)
def test_functions_are_refused(tmp_path: Path, function: Callable, new: bool) -> None:
    """Even those of modules whose data is read."""
    torch.save({"a": torch.ones(2), "b": function}, tmp_path / "evil.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(ConvertError, match=f"refused: .* import and run .*{function.__name__}. A checkpoint needs"):
        read_checkpoint(tmp_path / "evil.pt")


def save_pickle(code: bytes, path: Path) -> None:
    """A PyTorch file with this pickle in it."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in files.items():
            new.writestr(name, code if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    "code, message",
    [
        (b"clightning\nTrainer evil\n.", "run lightning.Trainer"),
        (b"".join(b"clightning\nC%d\n" % number for number in range(1000)) + b".", r"run lightning\.C\d+"),
        (b"K\x05)R.", "not a checkpoint: Trying to call reduce for unrecognized function 5"),
        (b"cargparse\nNamespace\n)\x81K\x01K\x02s.", "damaged, or not a checkpoint: Can only SETITEM for dict"),
        (b"cpathlib\nPath\n)R(K\x01e.", "damaged, or not a checkpoint: Can only (append to|extend) lists"),
    ],
    ids=["two words", "many", "reduce", "setitem", "append"],
)
def test_pickles_by_hand(tmp_path: Path, code: bytes, message: str) -> None:
    save_pickle(b"\x80\x02" + code, tmp_path / "evil.pt")
    with pytest.raises(ConvertError, match=message) as caught:
        read_checkpoint(tmp_path / "evil.pt")
    assert "weights_only" not in str(caught.value)  # nobody is told to do without it


NUMBER = b"\x8a\x06" + (10**13).to_bytes(6, "little")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "code, message",
    [
        (b"c__builtin__\nbytearray\n" + NUMBER + b"\x85R.", "refused: bytearray of int"),
        (b"c__builtin__\nbytearray\nq\x00" + NUMBER + b"\x85q\x01h\x00h\x01R.", "refused: bytearray of int"),
        (b"(c__builtin__\nset\nccollections\nOrderedDict\n)R\x85Rt.", "refused: set of OrderedDict"),
        (b"ccollections\nOrderedDict\n)Rccollections\nCounter\n)Rb.", "refused: OrderedDict of Counter"),
        (b"})" + b"\x85" * 2_000_000 + b"K\x01s.", "tuples within tuples without end"),
        (b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "tuples within tuples without end"),
    ],
    ids=["bytearray", "bytearray from the memo", "set", "state", "a deep key", "a key of 2^60 tuples"],
)
def test_pickles_that_would_take_everything(tmp_path: Path, code: bytes, message: str, new: bool) -> None:
    """A few bytes that ask for 10 TB, for endless work, or for more of the C stack than there is."""
    save_pickle(b"\x80\x02" + code, tmp_path / "evil.pt")
    if not new:
        start = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        (tmp_path / "evil.pt").write_bytes(b"".join([*start, b"\x80\x02", code, pickle.dumps([], 2)]))
    with pytest.raises(ConvertError, match=message):
        read_checkpoint(tmp_path / "evil.pt")


def test_a_set_of_a_tensor_is_refused(tmp_path: Path) -> None:
    """It may have a row that repeats for ever."""

    class Rows:
        def __reduce__(self) -> tuple[type, tuple[Tensor]]:
            return set, (torch.ones(1).expand(10**12),)

    torch.save({"a": torch.ones(2), "b": Rows()}, tmp_path / "evil.pt")
    with pytest.raises(ConvertError, match="refused: set of _rebuild_tensor_v2"):
        read_checkpoint(tmp_path / "evil.pt")


def test_attributes_that_hide_methods(tmp_path: Path) -> None:
    """A pickle can give tables and tensors attributes named like the methods that we call."""
    table = b"ccollections\nOrderedDict\n)R}(X\x05\x00\x00\x00itemsK\x05X\x04\x00\x00\x00keysK\x05ub."
    save_pickle(b"\x80\x02" + table, tmp_path / "table.pt")
    assert read_checkpoint(tmp_path / "table.pt") == {}
    tensor = torch.ones(2)
    tensor.isfinite = tensor.detach = tensor.float = 5  # type: ignore[assignment]
    torch.save({"a": tensor}, tmp_path / "tensor.pt")
    found = read_checkpoint(tmp_path / "tensor.pt")["a"]
    assert found.float().isfinite().all()


def test_too_many_entries(tmp_path: Path) -> None:
    """30 ** 14 names in a few kilobytes."""
    table: dict = {"a": torch.ones(1)}
    for _ in range(14):
        table = {str(number): table for number in range(30)}
    torch.save(table, tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").stat().st_size < 10_000
    with pytest.raises(ConvertError, match="more than 200000 entries"):
        read_checkpoint(tmp_path / "checkpoint.pt")
    torch.save({"x" * 600: {"y" * 600: torch.ones(1)}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ConvertError, match="a name of 1201 characters"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_tables_without_end(tmp_path: Path) -> None:
    table: dict = {"a": torch.ones(1)}
    table["again"] = table
    torch.save(table, tmp_path / "checkpoint.pt")
    with pytest.raises(ConvertError, match="tables within tables without end"):
        read_checkpoint(tmp_path / "checkpoint.pt")
    deep: dict = {}
    for _ in range(40):
        deep = {"x": deep}
    torch.save(deep, tmp_path / "checkpoint.pt")
    with pytest.raises(ConvertError, match="tables within tables without end"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_compressed_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ConvertError, match="a compressed zip archive"):
        read_checkpoint(tmp_path / "b.pt")
