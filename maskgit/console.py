"""What all commands share: exit statuses, how errors and warnings are printed, progress bars, tables.

Nothing here knows what a command is about; nothing is imported from the rest of the package but how options are shown.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

Options = TypeVar("Options")

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

_JOINERS = "\u200c\u200d"  # invisible too, but parts of pictographs and of words


class UsageError(ValueError):
    """Options that make no sense; the message names the option, its value and what would do."""


def first_line(error: BaseException) -> str:
    """Of what an error says, or else its name: behind it, other packages have advice for programmers."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_command(
    options: type[Options],
    work: Callable[[Options], int | None],
    argv: Sequence[str] | None,
    *,
    prog: str | None = None,
    description: str | None = None,
    errors: tuple[type[BaseException], ...] = (ImportError, OSError, ValueError),
    interrupted: str = "interrupted",
    bare_words: Sequence[str] = (),
) -> int:
    """Read a command's options and do its work; errors are one line on stderr, never a traceback.

    Args:
        options: a dataclass, from which tyro makes the command line.
        work: does it; it may return an exit status, and raises UsageError before anything is done.
        argv: arguments without the program's name; None: those of the process.
        prog, description: for `--help`; by default the file that was started, and the docstring of `options`.
        errors: what the work is known to raise, with a message that says what to do.
        interrupted: what is printed after Ctrl-C.
        bare_words: for a command that has options only, those that its first words are most likely meant for, such as
            ("images", "mask"): who leaves out the options' names is told them.

    Returns:
        The exit status: 0; 1 after one of `errors`; 2 for bad usage; 130 after Ctrl-C.
    """
    import tyro  # here: who uses the package from Python needs no command line

    from maskgit.helptext import registry, whole_lines

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be no valid text
    words = list(sys.argv[1:] if argv is None else argv)
    bare = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if bare and len(bare) <= len(bare_words):
        meant = shlex.join([part for pair in zip(map(flag, bare_words), bare, strict=False) for part in pair])
        print(printable(f"error: {shlex.join(bare)}: did you mean {meant}?"), file=sys.stderr)
        return BAD_USAGE
    try:
        with help_for_as_long_as_read(), registry():
            text = whole_lines(description or options.__doc__ or "")
            chosen = tyro.cli(options, args=words, prog=prog, description=text, config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:  # --help, or options that tyro could not read
        return int(stop.code or 0)
    known: tuple[type[BaseException], ...] = (UsageError, *errors)
    try:
        with warnings_as_lines():
            return work(chosen) or DONE
    except known as error:
        print(printable_message(f"error: {error}"), file=sys.stderr)
        return BAD_USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def help_for_as_long_as_read() -> Iterator[None]:
    """Within, `--help` whose reader has seen enough (`| head`) ends like one that was read to its end."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it ends
        raise SystemExit(DONE) from None


def require_at_least(options: object, least: Mapping[str, float]) -> None:
    """Raise UsageError where one of these fields of `options` is below its least value; None passes."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and not value >= smallest:  # true of NaN too
            raise UsageError(f"{flag(name)} {value}: must be at least {smallest}")


def flag(name: str) -> str:
    """How a field is called on the command line."""
    return f"--{name.replace('_', '-')}"


class _Bar(tqdm):
    """Counts units that are through, where its work comes in parts of them."""

    @property
    def format_dict(self) -> dict[str, Any]:
        facts = super().format_dict
        done, total = facts["n"], facts["total"]
        # Sums of parts come out a little below the whole.
        return facts | {"through": round(total) if done >= total else math.floor(done + 1e-6), "of": round(total)}


def progress_bar(total: float, description: str, unit: str | None = "image") -> tqdm:
    """A bar on stderr that counts whole units, and how many there are a second, or how long one takes. None: neither.

    Its `update` takes parts of units too, where work is weighed; they move the bar.
    """
    count = " {through}/{of} [{elapsed}<{remaining}, {rate_fmt}]" if unit else " [{elapsed}<{remaining}]"
    layout = "{desc}: {percentage:3.0f}%|{bar}|" + count
    return _Bar(total=total, desc=description, unit=unit or "it", bar_format=layout, dynamic_ncols=True)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table and an empty one; all columns but the first are set flush right."""
    align = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, align, *rows)] + [""]


def printable(text: object) -> str:
    """Text in a line, with what would act on a terminal written as escapes: a file's name may hold anything."""
    return "".join(_escape(character) for character in str(text))


def printable_message(text: object) -> str:
    """As `printable`, but for line breaks before indented lines: a message's own, while others are of file names."""
    return "\n  ".join(map(printable, str(text).split("\n  ")))


def printable_lines(text: object) -> str:
    """As `printable`, but for line breaks: of messages that have some of their own."""
    return "\n".join(map(printable, str(text).split("\n")))


def _escape(character: str) -> str:
    kind = unicodedata.category(character)
    if (kind[0] == "C" and character not in _JOINERS) or kind in ("Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Within, warnings are messages on stderr, `warning: TEXT`, each once, above any progress bar."""
    shown: set[str] = set()

    def show(message: Warning | str, *args: object, **options: object) -> None:
        text = printable_message(message)
        if text not in shown:
            shown.add(text)
            tqdm.write(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
