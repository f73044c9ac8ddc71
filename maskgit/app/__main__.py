"""The command: loads a model and serves the page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from maskgit.app.door import MOST_SECONDS, launch
from maskgit.app.work import Worker
from maskgit.console import UsageError, run_command
from maskgit.pipeline import MaskGIT

_MOST_PORTS = 2**16


@dataclass(frozen=True)
class Options:
    """Serve a web page on which holes are painted and filled, pictures continued and made.

    It is for this machine only, unless --host or --share say otherwise. Then whoever can reach it can use it: it asks
    for no password.
    """

    model: str = "embedded"
    """"embedded", a model folder, or a repository on the Hugging Face Hub."""
    device: str | None = None
    """Such as cpu or cuda:0. Default: a GPU if there is one."""
    host: str = "127.0.0.1"
    """Address to listen at. 0.0.0.0 lets other machines in."""
    port: int = 7860
    """Port of the page."""
    share: bool = False
    """Make a public address for the page too, by gradio's servers, through which all pictures then go."""


def serve(options: Options) -> None:
    """Serve the page until Ctrl-C. Raises UsageError for a model or option that can't be used."""
    if not 0 < options.port < _MOST_PORTS:
        raise UsageError(f"--port {options.port}: must be from 1 to {_MOST_PORTS - 1}")
    try:
        model = MaskGIT.from_pretrained(options.model, device=options.device)
        try:
            from maskgit.app.page import build
        except ImportError as error:
            raise ImportError("the page needs gradio: pip install 'maskgit-inpaint[app]'") from error
        worker = Worker(MOST_SECONDS)
        try:
            launch(build(model, options.model, worker), options.host, options.port, options.share)
        finally:
            worker.close()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, or 2 for bad usage."""
    return run_command(Options, serve, argv, prog="python -m maskgit.app")


if __name__ == "__main__":
    sys.exit(main())
