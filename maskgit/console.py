"""What commands print: names without control characters, and warnings as lines."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
import warnings
from collections.abc import Iterator

from tqdm import tqdm

_JOINERS = "\u200c\u200d"  # invisible too, but parts of emoji and of words


def printable(text: object) -> str:
    """Text in a line, with what would act on a terminal written as escapes: a file's name may hold anything."""
    return "".join(_escape(character) for character in str(text))


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
    """Within, warnings are lines on stderr, `warning: TEXT`, each once, above any progress bar."""
    shown: set[str] = set()

    def show(message: Warning | str, *args: object, **options: object) -> None:
        text = printable(message)
        if text not in shown:
            shown.add(text)
            tqdm.write(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
