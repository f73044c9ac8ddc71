"""What a group of hostile inputs consists of."""

from __future__ import annotations

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
    changes: bool = False
    """The call may change or remove files that are there, because they are its own from an earlier time."""


class Group(NamedTuple):
    """A kind of input."""

    name: str
    known: dict[str, Callable[[Seeds], Case]]
    """Those that failed once, by name."""
    random: Callable[[random.Random, Seeds], Case]
    """Any other: writes its files into the current folder."""


class Status(NamedTuple):
    """How a command ended."""

    code: int
    output: str


def command(main: Callable[[Sequence[str]], int], words: Sequence[str], keeps: bool = False) -> Case:
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
        expect("\x1b" not in status.output, "codes that steer a terminal in the output")

    return Case(call, (), check, keeps)
