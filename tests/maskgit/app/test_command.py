"""The command: what it serves, and what it can't."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from maskgit.app import __main__ as command
from maskgit.pipeline import MaskGIT


def test_what_the_command_can_t_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and a line, whatever it is; the page is not served."""
    monkeypatch.setattr(command, "launch", lambda *_: pytest.fail("the page was served"))
    assert command.main(["--model", str(tmp_path / "nowhere")]) == 2
    assert command.main(["--device", "toaster"]) == 2
    assert command.main(["--port", "70000"]) == 2
    monkeypatch.setitem(sys.modules, "maskgit.app.page", None)  # as if gradio weren't installed
    assert command.main(["--device", "cpu"]) == 2
    model, device, port, gradio = capsys.readouterr().err.splitlines()
    assert model.startswith("error: ") and "nowhere: no such model folder" in model
    assert device.startswith("error: device 'toaster' can't be used here")
    assert port == "error: --port 70000: must be from 1 to 65535"
    assert gradio == "error: the page needs gradio: pip install 'maskgit-inpaint[app]'"
    assert command.main(["--port", "many"]) == 2
    assert command.main(["--help"]) == 0
    assert "usage: python -m maskgit.app" in capsys.readouterr().out


def test_the_command_serves_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="needs the extra [app]")
    from maskgit.app import page

    served: list[tuple[Any, ...]] = []
    monkeypatch.setattr(page, "build", lambda *given: given)
    monkeypatch.setattr(command, "launch", lambda *given: served.append(given))
    assert command.main(["--device", "cpu", "--port", "1234"]) == 0
    assert command.main(["--device", "cpu", "--host", "0.0.0.0", "--share"]) == 0
    ((model, name, worker), *where), (_, *elsewhere) = served
    assert isinstance(model, MaskGIT) and name == "embedded" and worker.seconds == 300
    assert where == ["127.0.0.1", 1234, False] and elsewhere == ["0.0.0.0", 7860, True]
    monkeypatch.setattr(command, "launch", lambda *_: (_ for _ in ()).throw(OSError("no empty port")))
    assert command.main(["--device", "cpu"]) == 2
    assert capsys.readouterr().err == "error: no empty port\n"
