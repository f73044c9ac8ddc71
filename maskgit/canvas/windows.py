"""Windows: the squares of a picture that the model looks at, so that holes are filled at the picture's own resolution.

What decides is how thick a hole is, not how long: a scratch through all of a photograph has windows along it at the
picture's scale. A hole too thick for that is filled coarse to fine: in windows scaled down so far that half of each can
be known, and then again, piece by piece, in smaller ones, down to the picture's scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from maskgit.canvas.holes import depths

FINER = 4
"""Times: how much more detail windows show than those that they go on from."""

_SHARP = 2
"""Times the model's side: what windows up to this are filled with is sharp enough as it is."""


class Box(NamedTuple):
    """A rectangle of pixels, as Pillow has them."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> tuple[slice, slice]:
        """Its rows and columns of an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Window(NamedTuple):
    """What the model sees at once, brought to its square."""

    box: Box
    core: Box
    """The part of it whose hidden pixels it fills."""
    again: bool
    """Whether the core holds a coarse fill, to which detail is added."""


def whole(shape: tuple[int, ...]) -> Window:
    """All of a picture [H, W], squeezed."""
    box = Box(0, 0, shape[1], shape[0])
    return Window(box, box, False)


def windows(hidden: np.ndarray, size: int, least: int | None = None) -> list[Window]:
    """What to fill, one after another, so that nothing of bool [H, W] is left hidden.

    Args:
        hidden: True where pixels are to be filled.
        size: the model's side.
        least: side of the smallest windows, by default the model's.

    Returns:
        Windows inside the picture, coarse ones first: squares, but where the picture is shorter than the model.
    """
    least = least or size
    found: list[tuple[int, Window]] = []
    for part in parts(hidden, least // 16, least // 2):
        side = min(max(2 * thickness(hidden[part.area]), least), max(size, min(hidden.shape)))
        levels = [side]
        while levels[-1] > _SHARP * size:
            levels.append(max(size, -(-levels[-1] // FINER)))
        found += [(i, w) for i, side in enumerate(levels) for w in _along(part, hidden, side, again=i > 0)]
    return [window for _, window in sorted(found, key=lambda entry: entry[0])]


def parts(hidden: np.ndarray, gap: int, longest: int) -> Iterator[Box]:
    """The tightest boxes around what is hidden, bool [H, W], cut apart where more than `gap` whole rows or columns of
    a box have nothing hidden, but for neighbors that together are no longer than `longest`; from the top, then from
    the left.

    The recursive XY-cut of Nagy and Seth (ICPR 1984), which knows no diagonals: what can't be cut straight is one part.
    """
    return _cut(hidden, 0, 0, max(1, gap), longest, rows_first=True)


def _cut(hidden: np.ndarray, left: int, top: int, gap: int, longest: int, rows_first: bool) -> Iterator[Box]:
    for axis in (0, 1) if rows_first else (1, 0):
        used = np.flatnonzero(hidden.any(1 - axis))
        if not len(used):
            return
        ends = np.flatnonzero(np.diff(used) > gap)
        pieces: list[slice] = []
        for start, stop in zip(used[np.r_[0, ends + 1]].tolist(), (used[np.r_[ends, -1]] + 1).tolist(), strict=True):
            if pieces and stop - pieces[-1].start <= longest:
                start = pieces.pop().start
            pieces.append(slice(start, stop))
        for piece in pieces if len(pieces) > 1 else ():
            cut = hidden[piece] if axis == 0 else hidden[:, piece]
            corner = left + piece.start * axis, top + piece.start * (1 - axis)
            yield from _cut(cut, *corner, gap, longest, rows_first=axis == 1)
        if len(pieces) > 1:
            return
        hidden = hidden[pieces[0]] if axis == 0 else hidden[:, pieces[0]]
        left, top = left + pieces[0].start * axis, top + pieces[0].start * (1 - axis)
    yield Box(left, top, left + hidden.shape[1], top + hidden.shape[0])


def thickness(hidden: np.ndarray) -> int:
    """Side of the largest square that is hidden all over, bool [H, W]."""
    sums = np.zeros((hidden.shape[0] + 1, hidden.shape[1] + 1), dtype=np.int32)
    np.cumsum(np.cumsum(hidden, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    there, above = 0, min(hidden.shape) + 1
    while above - there > 1:
        side = (there + above) // 2
        inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        there, above = (side, above) if inside.max() == side * side else (there, side)
    return there


def _along(part: Box, hidden: np.ndarray, side: int, again: bool) -> list[Window]:
    """One window around all of a part, where that is half of it at most; else cores of half a window that tile it.

    Those near known pixels come first; and of them every other row and column, so that many can be filled at once. A
    core may be as long as its window where that reaches from one end of the picture to the other.
    """
    high, wide = (length if side >= length else side // 2 for length in hidden.shape)
    if part.bottom - part.top <= high and part.right - part.left <= wide:
        middle = (part.left + part.right) // 2, (part.top + part.bottom) // 2
        return [Window(_around(middle, side, hidden.shape), part, again)]
    rows, columns = range(part.top, part.bottom, high), range(part.left, part.right, wide)
    ring = _rings(hidden, rows, columns, high, wide)
    found = []
    places = ((ring[i, j] * (not again), i % 2, j % 2, i, j) for i in range(len(rows)) for j in range(len(columns)))
    for *_, i, j in sorted(places):
        top, left = rows[i], columns[j]
        core = Box(left, top, min(left + wide, part.right), min(top + high, part.bottom))
        if hidden[core.area].any():
            box = _around((left + wide // 2, top + high // 2), side, hidden.shape)
            found.append(Window(box, core, again))
    return found


def _rings(hidden: np.ndarray, tops: Sequence[int], lefts: Sequence[int], high: int, wide: int) -> np.ndarray:
    """How many cells of a grid lie between each and the nearest in which anything is known, int64 [h, w].

    Those around the grid count too, as far as the picture goes there.
    """
    rows, columns = ([at[0] - size, *at, at[-1] + size] for at, size in ((tops, high), (lefts, wide)))
    full = np.array([[_cell(hidden, y, x, high, wide).all() for x in columns] for y in rows])
    return depths(full)[1:-1, 1:-1]


def _cell(hidden: np.ndarray, top: int, left: int, high: int, wide: int) -> np.ndarray:
    return hidden[max(0, top) : max(0, top + high), max(0, left) : max(0, left + wide)]


def _around(middle: tuple[int, int], side: int, shape: tuple[int, ...]) -> Box:
    """A square of this side around a point (x, y), moved into the picture [H, W], or cut off where it can't be."""
    wide, high = (min(side, length) for length in reversed(shape))
    left, top = (
        max(0, min(at - cut // 2, length - cut))
        for at, cut, length in zip(middle, (wide, high), reversed(shape), strict=True)
    )
    return Box(left, top, left + wide, top + high)


def turns(todo: Sequence[Window]) -> list[list[Window]]:
    """The same windows in groups that can be filled at once: none sees what another of its group fills."""
    boxes, cores = (np.array([window[i] for window in todo]).reshape(-1, 4) for i in (0, 1))
    turn = np.zeros(len(todo), dtype=int)
    for i in range(len(todo)):
        seen = _meet(boxes[i], cores[:i]) | _meet(cores[i], boxes[:i])
        turn[i] = turn[:i][seen].max(initial=-1) + 1
    groups: list[list[Window]] = [[] for _ in range(turn.max(initial=-1) + 1)]
    for window, number in zip(todo, turn.tolist(), strict=True):
        groups[number].append(window)
    return groups


def _meet(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the boxes int64 [n, 4] have a pixel in common with one; bool [n]."""
    return np.all((box[:2] < others[:, 2:]) & (others[:, :2] < box[2:]), axis=1)
