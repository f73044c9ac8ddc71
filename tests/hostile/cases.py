"""What a group of hostile inputs consists of."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .seeds import Seeds


class Wrong(Exception):
    """Something was accepted, or answered, that must not be; the message says what, the same for all of a kind."""


def expect(condition: object, otherwise: str) -> None:
    """Raise Wrong unless the condition holds."""
    if not condition:
        raise Wrong(otherwise)


@dataclass
class Case:
    """A call on a hostile input, which lies in the current folder."""

    call: Callable[[], Any]
    refusals: tuple[type[Exception], ...]
    """The exceptions that the call documents. Of a plain ValueError or RuntimeError more is asked: that our own code
    raises it, on purpose."""
    check: Callable[[Any], object] = lambda result: None
    """Looks at what the call returned, and raises Wrong."""
    keeps: bool = False
    """A refusal may leave finished files, as a command does that goes on with the other files."""
    changes: str = ""
    """A folder whose files the call may replace or remove, because they are its own from an earlier time."""


Known = dict[str, Callable[[Seeds], Case]]
Content = bytes | Callable[[bytes], bytes] | None


class Group(NamedTuple):
    """A kind of input."""

    name: str
    known: Known
    """Those that failed once, and what is like them, by name."""
    random: Callable[[random.Random, Seeds], Case]
    """Any other: writes its files into the current folder."""


def with_file(use: Callable[[Seeds], Case], path: str, content: Content, folder: str = "") -> Callable[[Seeds], Case]:
    """A known input by what one of its files holds: bytes, or what is made of the sound file's; None for a pipe.

    Args:
        use: makes the case once the file is there.
        folder: sound files that the case needs, copied first.
    """

    def known(seeds: Seeds) -> Case:
        if folder:
            seeds.take(folder)
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        sound = file.read_bytes() if file.exists() else b""
        if content is None:  # that nobody writes into
            file.unlink(missing_ok=True)
            os.mkfifo(file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content(sound))
        return use(seeds)

    return known


class Status(NamedTuple):
    """How a command ended."""

    code: int
    output: str


def command(main: Callable[[Sequence[str]], int], words: Sequence[str], keeps: bool = False, changes: str = "") -> Case:
    """A command, which ends with a status and, unless that is 0, says why; never with a traceback."""

    def call() -> Status:
        try:
            code = main(words)
        except SystemExit as stop:  # how the option parser ends, with 0 or 2
            code = int(stop.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        return Status(code, Path("../output").read_text(errors="replace"))

    def check(status: Status) -> None:
        expect(status.code in (0, 1, 2), "a status that the command doesn't document")
        expect(status.code == 0 or status.output.strip(), "a failure without a word")
        expect("Traceback (most recent call last)" not in status.output, "a traceback in the output")
        # The option parser repeats an option that it doesn't know as whoever typed it has typed it.
        named = "\x1b" not in status.output or "Unrecognized options" in status.output
        expect(named, "codes that steer a terminal in the output")

    return Case(call, (), check, keeps, changes)
