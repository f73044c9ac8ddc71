"""Reads Triton's intermediate code (TTIR, TTGIR): what is multiplied and loaded in its loops.

Machine code alone does not say what was asked for: whether a loop was unrolled, whether warps do the same work over and
over, and, on sm_100, which shapes the tensor cores multiply. Pure text analysis; `benchmarks.compiled` puts it to use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import TypeVar

_LOOP = re.compile(r"\bscf\.(for|while)\b")
_LAYOUT = re.compile(r"^(#\w+) = (#ttg\.\w+)<\{(.*)\}>")
_DOT = re.compile(r"\b(tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma) ")
_OPERAND = re.compile(r"(?:tensor|memdesc)<(\d+)x(\d+)x[a-z]+(\d+)")
_RESULT = re.compile(r"-> tensor<\w+, (#\w+)>")
_LOAD = re.compile(r"\b(?:tt\.load|ttg\.async_copy_global_to_local) .*: (?:tensor<([\dx]+)x)?!tt\.ptr<[a-z]+(\d+)>(.*)")

_Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Dot:
    """A matrix product [m, k] x [k, n]."""

    m: int
    n: int
    k: int
    bits: int  # of a factor's element
    blackwell: bool  # by sm_100's tensor cores, which work for a thread block as a whole
    warps: tuple[int, ...] | None  # how warps are laid over the result; None: not by warps on tensor cores, or unknown
    warp_tile: tuple[int, ...] | None  # the least that one warp works on, [rows, columns]

    @property
    def on_tensor_cores(self) -> bool:
        return self.blackwell or self.warps is not None

    @property
    def macs(self) -> int:
        """Multiply-adds if each is done once."""
        return self.m * self.n * self.k

    @property
    def replication(self) -> float:
        """How often each multiply-add is done: by several warps alike, if the result is too small to be shared out."""
        if self.warps is None or self.warp_tile is None:
            return 1.0
        rows, columns = (count * size for count, size in zip(self.warps, self.warp_tile, strict=True))
        return max(1.0, rows / self.m) * max(1.0, columns / self.n)

    @property
    def utchmma(self) -> int:
        """Machine instructions on sm_100: each of at most 128 rows, 256 columns and a depth of 32 bytes."""
        return ceil(self.m / 128) * ceil(self.n / 256) * ceil(self.k * self.bits / 256) if self.blackwell else 0


@dataclass(frozen=True)
class Load:
    """A load from global memory."""

    bytes_per_thread: int  # 0: not known, for want of a layout


_Item = TypeVar("_Item", Dot, Load)


def dots(ir: str) -> list[list[Dot]]:
    """The products, grouped by the innermost loop around them; the first group are those outside of any loop."""
    layouts = _layouts(ir)

    def read(line: str) -> Dot | None:
        match = _DOT.search(line)
        if not match:
            return None
        (m, k, bits), (_, n, _) = (tuple(map(int, operand)) for operand in _OPERAND.findall(line)[:2])
        result = _RESULT.search(line)
        layout = layouts.get(result[1], {}) if result else {}
        tile = layout.get("instrShape")
        return Dot(
            m, n, k, bits, match[1] == "ttng.tc_gen5_mma", layout["warpsPerCTA"] if tile else None, tile and tile[:2]
        )

    return _by_loop(ir, read)


def loads(ir: str) -> list[list[Load]]:
    """The loads from global memory, grouped as `dots` groups."""
    layouts = _layouts(ir)

    def read(line: str) -> Load | None:
        match = _LOAD.search(line)
        if not match:
            return None
        shape, bits, rest = match.groups()
        size = max(1, int(bits) // 8)
        if shape is None:
            return Load(size)
        layout = layouts.get(rest.strip(", ").split(">")[0], {})
        if "sizePerThread" not in layout:
            return Load(0)
        per_thread, lanes, warps = (layout[name] for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA"))
        extents = zip(map(int, shape.split("x")), per_thread, lanes, warps, strict=True)
        return Load(size * prod(ceil(n / (a * b * c)) * min(a, n) for n, a, b, c in extents))

    return _by_loop(ir, read)


def _layouts(ir: str) -> dict[str, _Sizes]:
    """The sizes that name a layout: {"#mma": {"warpsPerCTA": (4, 1), "instrShape": (16, 8)}}."""
    return {
        match[1]: {
            name: tuple(map(int, sizes.split(", "))) for name, sizes in re.findall(r"(\w+) = \[([\d, ]+)\]", match[3])
        }
        for match in filter(None, map(_LAYOUT.match, ir.splitlines()))
    }


def _by_loop(ir: str, read: Callable[[str], _Item | None]) -> list[list[_Item]]:
    groups: dict[int, list[_Item]] = {0: []}
    for loop, line in _lines(ir):
        item = read(line)
        if item is not None:
            groups.setdefault(loop, []).append(item)
    return list(groups.values())


def _lines(ir: str) -> Iterator[tuple[int, str]]:
    """Each line with the number of the line at which the innermost loop around it begins; 0: there is none."""
    loops: list[tuple[int, int]] = []  # number and indentation of the lines that open the loops around this one
    for number, line in enumerate(ir.splitlines(), 1):
        indentation = len(line) - len(line.lstrip())
        closes = line.lstrip().startswith("}") and "do {" not in line
        if closes and loops and loops[-1][1] == indentation:
            loops.pop()
        yield loops[-1][0] if loops else 0, line
        if _LOOP.search(line):
            loops.append((number, indentation))
