"""What all commands share: how they end, and what they print."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import maskgit
from maskgit.console import (
    UsageError,
    flag,
    markdown_table,
    printable,
    printable_lines,
    printable_message,
    progress_bar,
    require_at_least,
    run_command,
    warnings_as_lines,
)
from maskgit.data import ImageFolder
from maskgit.metrics.__main__ import main as metrics
from maskgit.metrics.card.__main__ import main as card
from maskgit.training.cli import main as train

EVIL = "a\x1b[31m\u202eb"  # colors what follows, and turns it around
SHOWN = r"a\x1b[31m\u202eb"


@dataclass(frozen=True)
class Options:
    """Count things."""

    batch_size: int = 2
    """So many."""
    most: float | None = None
    """No more."""


def raising(error: BaseException) -> Callable[[Options], None]:
    def work(options: Options) -> None:
        raise error

    return work


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_gets_its_options_and_gives_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Options] = []
    assert run_command(Options, seen.append, ["--batch-size", "3"]) == 0  # None is no failure
    assert seen == [Options(batch_size=3)]
    assert run_command(Options, lambda options: options.batch_size, []) == 2
    assert capsys.readouterr() == ("", "")


def test_options_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["count.py", "--batch-size", "4"])
    assert run_command(Options, lambda options: options.batch_size, None) == 4


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    work = raising(AssertionError("work was done"))
    assert run_command(Options, work, ["--help"], prog="python -m count") == 0
    out = capsys.readouterr().out
    assert "usage: python -m count " in out and "Count things." in out and "So many." in out
    assert run_command(Options, work, ["--help"], description="Counts.") == 0
    assert "Counts." in capsys.readouterr().out


def test_help_whose_reader_has_gone() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "maskgit.metrics", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize("words", [["--batch-size", "many"], ["--size", "1"], ["--most", "None"], ["word"]])
def test_options_that_can_t_be_read(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Options, raising(AssertionError("work was done")), words) == 2
    captured = capsys.readouterr()
    assert not captured.out and words[-1] in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["3"], "--batch-size 3"),
        (["3", "0.5"], "--batch-size 3 --most 0.5"),
        (["my file", "--most", "1"], "--batch-size 'my file'"),
    ],
)
def test_words_without_their_options(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    work = raising(AssertionError("work was done"))
    assert run_command(Options, work, words, bare_words=("batch_size", "most")) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.endswith(f": did you mean {meant}?\n") and captured.err.count("\n") == 1
    assert run_command(Options, work, words) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_more_words_than_options(capsys: pytest.CaptureFixture[str]) -> None:
    work = raising(AssertionError("work was done"))
    assert run_command(Options, work, ["3", "0.5", "x"], bare_words=("batch_size", "most")) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert run_command(Options, lambda options: 0, ["--most", "3"], bare_words=("batch_size", "most")) == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [(UsageError, 2), (OSError, 1), (ValueError, 1), (ImportError, 1), (FileNotFoundError, 1)],
)
def test_errors_are_one_line(error: type[Exception], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a file's name in them holds."""
    assert run_command(Options, raising(error(f"{EVIL}\nerror: .png: no such file")), []) == status
    assert capsys.readouterr() == ("", f"error: {SHOWN}\\nerror: .png: no such file\n")


def test_errors_may_have_indented_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Options, raising(OSError(f"no {EVIL}\n  Download it,\n  or name {EVIL}\n.")), []) == 1
    assert capsys.readouterr().err == f"error: no {SHOWN}\n  Download it,\n  or name {SHOWN}\\n.\n"


def messages() -> list[str]:
    """Every message with a line break of its own that the package raises or warns of, with ? for values."""
    found = set()
    for path in Path(maskgit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            warned = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("warn")
            for text in ast.walk(node) if isinstance(node, ast.Raise) or warned else ():
                if isinstance(text, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "?" for part in text.values]
                    found.add("".join(map(str, parts)))
    return sorted(text for text in found if "\n" in text)


@pytest.mark.parametrize("message", messages())
@pytest.mark.parametrize("kind", ["error", "warning"])
def test_messages_keep_lines_of_their_own(kind: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    work = raising(OSError(message)) if kind == "error" else lambda _: warnings.warn(message, stacklevel=1)
    run_command(Options, work, [])
    assert capsys.readouterr().err == f"{kind}: {message}\n"


def test_there_are_messages_of_several_lines() -> None:
    assert [text.partition(":")[0] for text in messages()] == ["?", "no Inception weights for the FID"]


def test_which_errors_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="a fault"):
        run_command(Options, raising(RuntimeError("a fault")), [])
    assert run_command(Options, raising(RuntimeError("out of memory")), [], errors=(RuntimeError,)) == 1
    assert capsys.readouterr().err == "error: out of memory\n"
    with pytest.raises(ValueError, match="a fault"):
        run_command(Options, raising(ValueError("a fault")), [], errors=(OSError,))
    assert run_command(Options, raising(UsageError("--most: what?")), [], errors=()) == 2


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Options, raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert run_command(Options, raising(KeyboardInterrupt()), [], interrupted="stopped: nothing was written") == 130
    assert capsys.readouterr().err == "\nstopped: nothing was written\n"


def test_what_a_command_warns_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Options, lambda options: warnings.warn(f"odd {EVIL}", stacklevel=1), []) == 0
    assert capsys.readouterr().err == f"warning: odd {SHOWN}\n"


def test_names_that_are_no_text_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert run_command(Options, lambda options: print("\udcffü"), []) == 0
    print("\udcff", file=sys.stderr)
    for stream, text in zip(streams, (b"\\udcff\\xfc\n", b"\\udcff\n"), strict=True):
        stream.flush()
        assert stream.buffer.getvalue() == text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(batch_size=0), "--batch-size 0: must be at least 1"),
        (Options(most=-0.5), "--most -0.5: must be at least 0"),
        (Options(most=float("nan")), "--most nan: must be at least 0"),
    ],
)
def test_options_below_their_least_value(options: Options, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        require_at_least(options, {"batch_size": 1, "most": 0})


def test_options_that_are_large_enough() -> None:
    for options in (Options(1, 0), Options(9, None), Options(1, float("inf"))):
        require_at_least(options, {"batch_size": 1, "most": 0})
    assert flag("batch_size") == "--batch-size" and flag("most") == "--most"


# --- what they print --------------------------------------------------------------------------------------------------


def bar_lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\r") if line.strip()]


def test_progress_shows_parts_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3, "filling") as bar:
        bar.mininterval = 0
        bar.update(1.4)
        bar.update(1.6)
    lines = bar_lines(capsys.readouterr().err)
    assert lines[0].startswith("filling:   0%|") and " 0/3 [" in lines[0] and "image/s]" in lines[0]
    assert lines[-1].startswith("filling: 100%|") and " 3/3 [" in lines[-1]
    assert any(" 1/3 [" in line for line in lines) and not any("1.4" in line.partition("[")[0] for line in lines)


def test_progress_counts_what_is_through(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(2, "filling") as bar:
        bar.mininterval = 0
        for _ in range(6):
            bar.update(1 / 3)
    counts = [re.search(r" (\d+)/2 \[", line) for line in bar_lines(capsys.readouterr().err)]
    assert all(counts) and [int(found[1]) for found in counts if found][:7] == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(("seconds", "rate"), [(8.0, "4.00s/image"), (0.5, "4.00image/s")])
def test_progress_says_how_long_one_takes_where_that_is_long(seconds: float, rate: str) -> None:
    with progress_bar(3, "filling") as bar:
        bar.n = 2
        assert f", {rate.rjust(len(rate) + 1)}]" in bar.format_meter(
            **bar.format_dict | {"elapsed": seconds, "rate": None}
        )


def test_progress_in_other_units(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(7.5, "reading", "file") as bar:
        bar.update(7.5)
    assert "8/8" in (line := bar_lines(capsys.readouterr().err)[-1]) and ("file/s]" in line or "s/file]" in line)
    with progress_bar(7.5, "weighing", None) as bar:
        bar.update(7.5)
    line = bar_lines(capsys.readouterr().err)[-1]
    assert line.startswith("weighing: 100%|") and "/7.5" not in line and "/8" not in line and "it" not in line


def test_markdown_table() -> None:
    assert markdown_table(["what", "ms", "times"], [["a", "1.0", "2"], ["b", "", "3"]]) == [
        "| what | ms | times |",
        "| --- | ---: | ---: |",
        "| a | 1.0 | 2 |",
        "| b |  | 3 |",
        "",
    ]


def test_printable() -> None:
    for text in ("plain ünï 犬", "👩‍🚀.png", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "a\xa0b"):
        assert printable(text) == text  # pictographs and words that are joined by something invisible
    assert printable(Path(EVIL)) == SHOWN
    assert printable("a\nb\tc\r\x9b\x7f\u2028\udcff") == r"a\nb\tc\r\x9b\x7f\u2028\udcff"
    assert printable_lines(f"one\ntwo {EVIL}") == f"one\ntwo {SHOWN}"
    assert printable_message(f"one\n  two\n{EVIL}") == f"one\n  two\\n{SHOWN}"


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


def test_skipped_files_of_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good", "good too"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / f"{EVIL}\n.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped 1 unreadable") as caught:
        ImageFolder(tmp_path, 8)
    lines = str(caught[0].message).splitlines()
    assert len(lines) == 2 and lines[1].endswith(rf"/{SHOWN}\n.png: the file is empty")
    assert run_command(Options, lambda _: warnings.warn(str(caught[0].message), stacklevel=1), []) == 0
    assert capsys.readouterr().err.splitlines() == [f"warning: {lines[0]}", lines[1]]
