"""Checkpoint files of any system as a flat table of tensors, without running anything that is in them."""

from __future__ import annotations

import io
import itertools
import math
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # PyTorch pickles by the names of Python 2
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskgit.console import first_line
from maskgit.files import open_regular

ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's magic number, pickled
LEGACY_PICKLES = 5  # before the numbers: magic number, version, system, the table, names of its storages
MSGPACK_MAPS = {**dict.fromkeys(range(0x81, 0x90), 1), 0xDE: 3, 0xDF: 5}  # first byte of a map: where its first key is
MSGPACK_STRINGS = tuple(bytes([byte]) for byte in (*range(0xA0, 0xC0), 0xD9))  # first bytes of a key
FLAX_ARRAY, FLAX_SCALAR = 1, 3  # msgpack extension types of flax.serialization
FLAX_DTYPES = frozenset("float16 bfloat16 float32 float64 bool int8 int16 int32 int64 uint8 uint32".split())
MAX_DEPTH = 16  # of tables in tables; a flax transformer has 6
MAX_ENTRIES = 200_000  # of all tables; a checkpoint with its optimizer has some thousands
MAX_NAME = 1000  # characters
MAX_TUPLES = 10_000  # in a tuple; a checkpoint has three or so
MAX_STAND_INS = 100  # names for which something stands in; PyTorch looks through all of them for each


class ConvertError(ValueError):
    """A checkpoint that can't be converted; the message says why."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a PyTorch, safetensors or flax msgpack file.

    Args:
        path: of any name, as its first bytes tell what it is. PyTorch files are mapped into memory where possible.

    Returns:
        Tensors by name; the names of tables within tables are joined by dots. What isn't a tensor, or has no text or
        number as its key, is left out.

    Raises:
        ConvertError: no such file, none of these formats, damaged, or holding more than data.
    """
    try:
        with open_regular(path) as file:
            start = file.read(len(LEGACY_START))
    except IsADirectoryError:
        raise ConvertError("a folder, not a checkpoint file") from None
    except OSError as error:
        raise ConvertError(f"can't be read: {error.strerror}") from error
    if not start:
        raise ConvertError("an empty file")
    damaged = "damaged or cut short"
    try:
        if start.startswith(ZIP_START) or start == LEGACY_START:
            content = _read_torch(path, mapped=start.startswith(ZIP_START))
        elif start[0] in MSGPACK_MAPS and start[MSGPACK_MAPS[start[0]] :][:1] in MSGPACK_STRINGS:
            damaged = "damaged, cut short or not flax msgpack"
            content = _read_msgpack(path)
        elif start[8:10] == b'{"':
            content = safetensors.torch.load_file(path)
        elif start[0] == 0x80:
            raise ConvertError("a bare pickle: it may hold a program, and no checkpoint is stored that way")
        else:
            raise ConvertError("not a checkpoint: neither a PyTorch file, nor safetensors, nor flax msgpack")
    except ConvertError:
        raise
    except pickle.UnpicklingError as error:
        # The rest of PyTorch's text tells programmers to do without weights_only.
        _, _, reason = str(error).rpartition("WeightsUnpickler error: ")
        reason, _, _ = reason.strip().partition("\n")
        raise ConvertError(f"damaged, or not a checkpoint: {reason}") from error
    except Exception as error:  # no library promises what it raises for broken files
        raise ConvertError(f"{damaged}: {first_line(error)}") from error
    return dict(_flatten(content, "", frozenset(), itertools.count()))


def _flatten(content: Any, name: str, above: frozenset[int], entries: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    # By the methods of the types: a pickle can give objects attributes that hide their own.
    if isinstance(content, Tensor):
        yield name, Tensor.detach(content)
    elif isinstance(content, dict):
        if id(content) in above or len(above) == MAX_DEPTH:
            raise ConvertError(f"damaged: tables within tables without end at {name[:80]!r}")
        for key, value in dict.items(content):
            if next(entries) == MAX_ENTRIES:
                raise ConvertError(f"more than {MAX_ENTRIES} entries in its tables, which no checkpoint has")
            if not isinstance(key, str | int):  # classes, paths, ...: weights go by text or number
                continue
            full = f"{name}.{key}" if name else str(key)
            if len(full) > MAX_NAME:
                raise ConvertError(f"damaged: a name of {len(full)} characters, {full[:80]!r}...")
            yield from _flatten(value, full, above | {id(content)}, entries)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


class _Inert:
    """Stands in for a class that is only data: takes whatever it is given, and holds none of it."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Table:
    """Stands in for a kind of dict: what is made is an OrderedDict, the one kind that PyTorch lets have attributes."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _List:
    """Stands in for a kind of list: what is made is a list."""

    def __new__(cls, *_: Any) -> Any:
        return []


_STAND_INS: tuple[tuple[type, str], ...] = (
    (_Table, r"collections\.defaultdict|(pytorch_lightning|lightning|lightning_fabric)\.(\w+\.)*AttributeDict"),
    (_Table, r"easydict\.EasyDict|yacs\.config\.CfgNode|addict\.addict\.Dict"),
    (_List, r"collections\.deque"),
    (_Inert, r"argparse\.Namespace|types\.SimpleNamespace|torch\.torch_version\.TorchVersion|typing\.[A-Z]\w*"),
    (_Inert, r"datetime\.(date|time|datetime|timedelta|timezone)"),
    (_Inert, r"builtins\.(bool|bytes|dict|float|frozenset|int|list|object|range|slice|str|tuple|type|Ellipsis)"),
    (_Inert, r"pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"),
    (_Inert, r"numpy\.(ndarray|dtype|dtypes\.\w+|(bool|u?int|float|complex|str|bytes)\d*_?)"),
    (_Inert, r"numpy\._?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)"),
    (_Inert, r"numpy\.random\._pickle\.__(randomstate|generator|bit_generator)_ctor"),
    (_Inert, r"numpy\.random\.(_\w+\.[A-Z]\w*|bit_generator\.(SeedSequence|__pyx_unpickle_SeedSequence))"),
    (_Inert, r"(pytorch_lightning|lightning|lightning_fabric|omegaconf|ml_collections)\.(\w+\.)*[A-Z]\w*"),
)
"""What trainers leave in checkpoints beside the weights, by name. None of it is imported: an empty class stands in."""


def _stand_in(name: str) -> type | None:
    return next((stand_in for stand_in, names in _STAND_INS if re.fullmatch(names, name)), None)


def _read_torch(path: Path, mapped: bool) -> Any:
    with open_regular(path) as file:
        if mapped:
            _check_archive(path)
            names = _check_pickle(io.BytesIO(torch._C.PyTorchFileReader(file).get_record("data.pkl")))
        else:
            names = set().union(*(_check_pickle(file) for _ in range(LEGACY_PICKLES)))
    # A name that isn't text has surrogates, and PyTorch maps no such file.
    mapped = mapped and not re.search("[\ud800-\udfff]", str(path))
    stand_ins: list[Any] = [(kind, name) for name in sorted(names) if (kind := _stand_in(name))]
    try:
        with torch.serialization.safe_globals(stand_ins[:MAX_STAND_INS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise
        name = found[1] if "." in found[1] else f"builtins.{found[1]}"
        raise ConvertError(
            f"refused: loading it would import and run {name}. A checkpoint needs nothing but tensors: get such a file "
            "from whoever made it or, if you trust it, load it where its own code is installed and save the model's "
            "state_dict() alone"
        ) from error


def _check_archive(path: Path) -> None:
    """PyTorch doesn't compress; read in place, compressed weights would be noise."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ConvertError("a compressed zip archive, which PyTorch never writes: unpack it and pack it without")


_TEXT, _TABLES = {"str", "bytes_or_str", "encode"}, {"list", "dict", "tuple"}
_MADE_OF = {"bytearray": _TEXT, "set": _TABLES, "Counter": _TABLES, "OrderedDict": _TABLES, "Size": _TABLES}
"""Callables that PyTorch's reader knows and that could do more than is in the file, and what they are honestly called
with, in the words of `pickletools`: not a number of bytes, nor a tensor, which may repeat a row without end."""


def _check_pickle(file: IO[bytes]) -> set[str]:
    """Go through a pickle without loading it. What PyTorch's reader runs is harmless, but not always bounded.

    Returns:
        The names of the classes and functions in it, as PyTorch calls them.

    Raises:
        ConvertError: a few of its bytes would fill the memory or never end; or so many tuples lie in one another that
            their hash, which is recursive, would end this process, or never end.
        Exception: it is damaged.
    """
    stack: list[tuple[Any, int]] = []  # of each thing its kind (of a tuple, its parts'), and the tuples in it
    marks: list[int] = []
    memo: dict[int, tuple[Any, int]] = {}
    names: set[str] = set()
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif "PUT" in opcode.name or opcode.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif "GET" in opcode.name:
            stack.append(memo[argument])
        else:
            takes = opcode.stack_before
            marked = pickletools.markobject in takes
            start = marks.pop() - takes.index(pickletools.markobject) if marked else len(stack) - len(takes)
            taken = stack[start:]
            del stack[start:]
            kinds: list[Any] = [kind.name for kind in opcode.stack_after]
            tuples = 0
            if opcode.name in ("REDUCE", "NEWOBJ", "BUILD"):
                (made, _), (parts, _) = taken
                parts = parts if isinstance(parts, frozenset) else {parts}
                if not parts <= _MADE_OF.get(made, parts):
                    raise ConvertError(f"refused: {made} of {', '.join(sorted(parts))}, which may be without end")
                kinds = [made]
            elif "TUPLE" in opcode.name:
                tuples = 1 + sum(inside for _, inside in taken)
                kinds = [frozenset(part if isinstance(part, str) else "tuple" for part, _ in taken)]
                if tuples > MAX_TUPLES:
                    raise ConvertError("damaged: tuples within tuples without end")
            elif opcode.name == "GLOBAL":
                module, _, name = argument.partition(" ")
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                names.add(f"{module}.{name}")
                kinds = [name]
            elif "APPEND" in opcode.name or "ITEM" in opcode.name:  # a table that is given something stays what it is
                kinds = [taken[0][0]]
            stack += [(kind, tuples) for kind in kinds]
    return names


# --- flax -------------------------------------------------------------------------------------------------------------


def _read_msgpack(path: Path) -> Any:
    try:
        import msgpack
    except ImportError:
        raise ConvertError(
            'a flax checkpoint, which takes the msgpack package to read: pip install "maskgit-inpaint[convert]"'
        ) from None
    return msgpack.unpackb(path.read_bytes(), ext_hook=_flax_value, raw=False, strict_map_key=False)


def _flax_value(kind: int, data: bytes) -> Tensor | None:
    """The tensor of an extension value of flax.serialization; None for its other kinds of value."""
    import msgpack

    if kind not in (FLAX_ARRAY, FLAX_SCALAR):
        return None
    shape, name, values = msgpack.unpackb(data, raw=False)
    dtype = getattr(torch, name) if name in FLAX_DTYPES else None
    if dtype is None or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ConvertError(f"damaged: an array of type {name!r} and shape {str(shape)[:80]}")
    if math.prod(shape) * dtype.itemsize != len(values):
        raise ConvertError(f"damaged: {len(values)} bytes for a {name} array of shape {str(shape)[:80]}")
    if not values:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape)
