"""What commands print."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
from PIL import Image

from maskgit.console import printable, printable_lines, warnings_as_lines
from maskgit.data import ImageFolder
from maskgit.metrics.__main__ import main as metrics
from maskgit.metrics.card.__main__ import main as card
from maskgit.training.cli import main as train

EVIL = "a\x1b[31m\u202eb"  # colors what follows, and turns it around
SHOWN = r"a\x1b[31m\u202eb"


def test_printable() -> None:
    for text in ("plain ünï 犬", "👩‍🚀.png", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "a\xa0b"):
        assert printable(text) == text  # emoji and words that are joined by something invisible
    assert printable(Path(EVIL)) == SHOWN
    assert printable("a\nb\tc\r\x9b\x7f\u2028\udcff") == r"a\nb\tc\r\x9b\x7f\u2028\udcff"
    assert printable_lines(f"one\ntwo {EVIL}") == f"one\ntwo {SHOWN}"


def test_each_warning_is_a_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    with warnings_as_lines():
        for text in (f"{EVIL}\n: odd", "second", f"{EVIL}\n: odd"):
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().err == f"warning: {SHOWN}\\n: odd\nwarning: second\n"
    assert warnings.showwarning is before


def test_errors_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / EVIL)
    assert metrics([missing, missing]) == 1
    assert train(["tokenizer", "--data", missing, "--output", str(tmp_path / "run")]) == 1
    commands = 2
    if importlib.util.find_spec("efficientnet_lite_pytorch"):  # without which the card ends before it looks
        assert card(["--data", missing, "--output", str(tmp_path / "out")]) == 1
        commands += 1
    text = capsys.readouterr().err
    assert text.count(f"{SHOWN}: ") >= commands and "\x1b[31m" not in text and "\u202e" not in text


def test_skipped_files_of_data_sets(tmp_path: Path) -> None:
    for name in ("good", "good too"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / f"{EVIL}\n.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped 1 unreadable") as caught:
        ImageFolder(tmp_path, 8)
    lines = str(caught[0].message).splitlines()
    assert len(lines) == 2 and lines[1].endswith(rf"/{SHOWN}\n.png: the file is empty")
