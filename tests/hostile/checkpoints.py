"""Other people's checkpoints: `maskgit.convert.convert`, and what it wrote loaded."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from maskgit.convert import ConvertError, Hints, convert
from maskgit.convert.__main__ import main
from maskgit.network.folder import load_model, load_tokenizer

from .bending import NAMES, NESTED, bend_bytes, bend_json, put_odd
from .cases import Case, Content, Group, Known, command, expect, with_file
from .seeds import CANARY, Seeds
from .weights import damage, header, with_header

OUTPUT = Path("out")


def use(*files: str, hints: Hints | None = None) -> Case:
    """Convert files, and load the model folder."""

    def check(found: Any) -> None:
        if found.transformer is None:
            networks: tuple[Any, ...] = (load_tokenizer(OUTPUT),)
        else:
            model = load_model(OUTPUT)
            networks = (model.tokenizer, model.transformer)
        for network in networks:
            for tensor in network.state_dict().values():
                expect(tensor.isfinite().all(), "weights that aren't finite numbers")

    return Case(lambda: convert(files, OUTPUT, hints), (ConvertError,), check)


# --- pickles that would run something ---------------------------------------------------------------------------------


class Call:
    """Pickled as the call of a function by its name, imported or not."""

    def __init__(self, name: str, *arguments: Any, state: Any = None) -> None:
        self.name, self.arguments, self.state = name, arguments, state


class Pickler(pickle._Pickler):  # Python's own, whose opcodes can be written by hand
    def save(self, thing: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(thing, Call):
            super().save(thing, save_persistent_id)
            return
        module, _, name = thing.name.rpartition(".")
        self.write(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
        self.save(tuple(thing.arguments))
        self.write(b"R")
        if thing.state is not None:
            self.save(thing.state)
            self.write(b"b")


SHELL = f": > ../{CANARY}"
PYTHON = f"open('../{CANARY}', 'w')"
EVIL: dict[str, Any] = {
    **{f"{module}.system": Call(f"{module}.system", SHELL) for module in ("os", "posix", "nt")},
    **{name: Call(name, ["sh", "-c", SHELL]) for name in ("subprocess.check_output", "subprocess.Popen")},
    **{f"{module}.eval": Call(f"{module}.eval", PYTHON) for module in ("builtins", "__builtin__")},
    **{name: Call(name, PYTHON) for name in ("builtins.exec", "timeit.timeit")},
    **{name: Call(name, f"../{CANARY}", "w") for name in ("builtins.open", "io.open")},
    "pathlib": Call("pathlib.Path.touch", Call("pathlib.PosixPath", f"../{CANARY}")),
    "getattr": Call("builtins.getattr", Call("builtins.__import__", "os"), "system"),
    "runpy": Call("runpy._run_code", PYTHON, {}),
    "torch.load": Call("torch.serialization.load", "x"),
    "torch's subclass": Call("torch._utils._rebuild_wrapper_subclass", "os", SHELL),
    "numpy's runstring": Call("numpy.testing._private.utils.runstring", PYTHON, {}),
    "numpy's scalar": Call("numpy.core.multiarray.scalar", np.dtype("O"), pickle.dumps(1)),
    "operator": Call("operator.methodcaller", "system", SHELL),
    "codecs": Call("_codecs.encode", SHELL, "utf-8"),
    "state of a tensor": Call("torch._utils._rebuild_tensor_v2", state={"__setstate__": "x"}),
    "defaultdict": Call("collections.defaultdict", Call("os.system", SHELL)),
    "Namespace": Call("argparse.Namespace", state={"__class__": Call("os.system", SHELL)}),
}


def zipped(content: bytes, names: tuple[str, ...] = ("data.pkl",), level: int = zipfile.ZIP_STORED) -> bytes:
    """A PyTorch archive around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", level) as archive:
        for name in names:
            archive.writestr(f"x/{name}", content)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")
    return file.getvalue()


def pickled(thing: Any, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol).dump(thing)
    return file.getvalue()


def legacy(content: bytes) -> bytes:
    """A PyTorch file from before archives, around a pickle."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in parts) + content + pickle.dumps([], 2)


def evil(rng: random.Random, seeds: Seeds) -> bytes:
    """A file that would make the canary if it were loaded as any pickle is."""
    name = rng.choice(sorted(EVIL))
    thing = rng.choice((EVIL[name], {"state_dict": EVIL[name]}, {"a": [1, EVIL[name]]}, {EVIL["codecs"]: EVIL[name]}))
    content = pickled(thing, rng.choice((0, 2, 4)))
    return rng.choice((zipped, legacy, bytes, lambda data: b"\x81\xa1a" + data))(content)


# --- sound tables in every format -------------------------------------------------------------------------------------


def torch_file(content: Any, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def stored(rng: random.Random, seeds: Seeds, table: dict[str, torch.Tensor], name: str) -> bytes:
    """A table as some format holds it, with what trainers leave beside it."""
    if name.startswith("google") and rng.random() < 0.8:
        path = Path("flax")
        seeds.originals.write_flax({key: table[key] for key in seeds.checkpoints[name] if key in table}, path)
        data = path.read_bytes()
        path.unlink()
        return data
    if rng.random() < 0.3:
        return safetensors.torch.save({key: value.clone().contiguous() for key, value in table.items()})
    beside: tuple[Any, ...] = (
        *(None, 1, 10**400, "x" * 1000, [], torch.ones(2)),
        *(np.float64(1), np.zeros(3), np.array([None, {}], dtype=object)),
        *(argparse.Namespace(lr=1), collections.defaultdict(int), collections.Counter([5]), Path("x"), slice(1), 1j),
        *(torch.empty(3, device="meta"), torch.ones(2).to_sparse(), torch.ones(1).expand(10**9), torch.float16),
        *(torch.Generator, {1: 2, None: 3, ("a", 1): torch.ones(1)}, torch.nn.Linear(2, 2), torch.Size([1])),
    )
    content: Any = rng.choice(
        (table, {"state_dict": table, "extra": rng.choice(beside)}, {**table, "x": rng.choice(beside)})
    )
    return torch_file(content, rng.random() < 0.7)


def checkpoint(content: Content) -> Callable[[Seeds], Case]:
    return with_file(lambda seeds: use("x.pt"), "x.pt", content)


def _acyclic(width: int, depth: int) -> bytes:
    """A few tables that hold one another so often that there are width ** depth names."""
    table: Any = {"w": torch.ones(1)}
    for _ in range(depth):
        table = {str(i): table for i in range(width)}
    return torch_file(table)


def _huge_flax() -> bytes:
    import msgpack

    array = msgpack.ExtType(1, msgpack.packb(((0, 2**63 - 1, 2**63 - 1), "float32", b"")))
    return msgpack.packb({"params": {"encoder": {"ResBlock_0": {"Conv_0": {"kernel": array}}}}})


def with_tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        table = dict(seeds.checkpoints["taming"])
        name = "encoder.conv_in.weight"
        Path("x.pt").write_bytes(torch_file({**table, name: change(table[name])}))
        return use("x.pt")

    return known


KNOWN: Known = {
    "F2 30^14 names in 7 kB": checkpoint(lambda _: _acyclic(30, 14)),
    "12^5 names": checkpoint(lambda _: _acyclic(12, 5)),
    "F10 pipe": checkpoint(None),
    "F15 meta tensor": with_tensor(lambda tensor: tensor.to("meta")),
    "F15 msgpack shape of 2^63 - 1": checkpoint(lambda _: _huge_flax()),
    "NaN": with_tensor(lambda tensor: tensor * float("nan")),
    "sparse tensor": with_tensor(lambda tensor: tensor.to_sparse()),
    "complex tensor": with_tensor(lambda tensor: tensor + 0j),
    "float8 tensor": with_tensor(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "nested": checkpoint(lambda _: b"0000000\0" + b'{"' + NESTED),
    "a zip that unpacks to 256 MB": checkpoint(lambda _: zipped(bytes(2**28), level=zipfile.ZIP_DEFLATED)),
    "names that lead out of the folder": checkpoint(lambda _: zipped(pickled({}), ("../../data.pkl", "/etc/x"))),
    **{f"evil zip: {name}": checkpoint(zipped(pickled(thing))) for name, thing in EVIL.items()},
    **{f"evil old: {name}": checkpoint(legacy(pickled(thing))) for name, thing in EVIL.items()},
    "bytearray of 10 TB": checkpoint(lambda _: zipped(pickled(Call("builtins.bytearray", 10**13)))),
    "a key of 2,000,000 tuples": checkpoint(lambda _: zipped(b"\x80\x02})" + b"\x85" * 2_000_000 + b"K\x01s.")),
    "evil bare": checkpoint(lambda _: pickled(EVIL["os.system"])),
    "evil behind msgpack": checkpoint(lambda _: b"\x81\xa1a" + pickled(EVIL["os.system"])),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    how = rng.random()
    if how < 0.15:
        data = evil(rng, seeds)
        Path("x.pt").write_bytes(bend_bytes(rng, data) if rng.random() < 0.3 else data)
        return use("x.pt")
    name = rng.choice(sorted(seeds.checkpoints))
    table = dict(seeds.checkpoints[name])
    if how < 0.6:
        for _ in range(rng.choice((1, 1, 3))):
            damage(rng, table)
    data = stored(rng, seeds, table, name)
    if how > 0.7 and data[8:9] == b"{" and rng.random() < 0.6:
        tree, rest = header(data)
        data = with_header(bend_json(rng, tree), rest, rng.choice((None, None, 2**63, 5)))
    elif how > 0.7:
        data = bend_bytes(rng, data)
    path = Path(rng.choice(("x.pt", *NAMES)))
    path.write_bytes(data)
    if how > 0.98:
        put_odd(rng, path)
    files = [os.fspath(path)]
    if "transformer" in name or name in ("valeo_maskgit", "halton"):
        files.append("model")
        seeds.take("model")
    if rng.random() < 0.3:
        return command(main, [*files, os.fspath(OUTPUT)])
    numbers = (None, None, 2, 0, -1, 3, 2**63, 10**30)
    return use(*files, hints=Hints(heads=rng.choice(numbers), image_size=rng.choice((None, None, None, *numbers))))


GROUP = Group("checkpoints", KNOWN, random_case)
