"""Stopping when asked to: SIGTERM and Ctrl-C end a run between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A run that was asked to stop, and has. `signal_number` says by which signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopSignals:
    """Notes SIGTERM and SIGINT instead of dying of them, while it is entered; the caller looks at `received`.

    Args:
        insist: a second SIGINT interrupts at once. Not for one of many processes: Ctrl-C reaches each of them twice,
            from the terminal and from torchrun.
    """

    def __init__(self, *, insist: bool) -> None:
        self.insist = insist
        self.received = 0
        """Number of the last signal that came; 0 for none."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.insist and number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def leave_signals_to_parent(_: int) -> None:
    """For a data loader's workers: a signal to the whole process group must not take them away before the last step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
