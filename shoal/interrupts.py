"""Ctrl-C and SIGTERM end a command at once, or at its next step where a library has kept the exception.

Exporters catch everything in places, and Python itself drops what is raised in a callback or a destructor.
"""

from __future__ import annotations

import signal
from types import FrameType

_came: list[int] = []


def install() -> None:
    """Let SIGINT raise KeyboardInterrupt in the main thread, and SIGTERM SystemExit with code 143."""
    _came.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def check() -> None:
    """Raise again for a signal that has come."""
    if _came:
        _raise(_came[-1])


def _handle(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)
