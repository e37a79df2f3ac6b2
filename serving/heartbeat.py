"""A Python model's sign of life, outside of Triton's queue: a page that its process and its supervisor share.

A thread of the model's process counts beats. A process that is stopped or hung counts no more, however many
requests wait; a process that is only busy goes on counting. The engine counts its steps beside them, and says
whether it has work. In the other direction the supervisor asks a model to end its requests with an error, as
the server is about to stop.

The folder of the pages is named by the environment variable `SHOAL_HEARTBEATS`; without it there are none. A
page is named by its process: `PID`. It holds four unsigned integers of 64 bits, each written by one side.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

FOLDER = "SHOAL_HEARTBEATS"
BEAT_SECONDS = 0.25
DEAF_SECONDS = 60.0  # without a beat, whatever the process does: nobody waits for it any longer
REARM_BEATS = 20  # between two times that the watchdog is told to wait that long again
_FIELDS = ("beats", "steps", "working", "ending")
_SIZE = 8 * len(_FIELDS)


class Page:
    """The shared page of one process.

    Args:
        path: of the file; it is made where it does not exist.

    Attributes:
        beats: counted by the model's process while it lives.
        steps: of the engine, counted by its thread.
        working: 1 while the engine has work.
        ending: 1 once the supervisor wants every request to be ended.

    Raises:
        OSError, ValueError: the file cannot be read or made, or is too short.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < _SIZE:
                os.ftruncate(descriptor, _SIZE)
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._values = memoryview(self._map).cast("Q")

    def _get(self, name: str) -> int:
        return int(self._values[_FIELDS.index(name)])

    def _set(self, name: str, value: int) -> None:
        self._values[_FIELDS.index(name)] = value

    @property
    def beats(self) -> int:
        return self._get("beats")

    @beats.setter
    def beats(self, value: int) -> None:
        self._set("beats", value)

    @property
    def steps(self) -> int:
        return self._get("steps")

    @steps.setter
    def steps(self, value: int) -> None:
        self._set("steps", value)

    @property
    def working(self) -> bool:
        return bool(self._get("working"))

    @working.setter
    def working(self, value: bool) -> None:
        self._set("working", int(value))

    @property
    def ending(self) -> bool:
        return bool(self._get("ending"))

    @ending.setter
    def ending(self, value: bool) -> None:
        self._set("ending", int(value))


_started: Page | None = None


def start() -> Page | None:
    """Begin to beat, once in a process, if whoever started the server wants that.

    Returns:
        The page of this process; None: nobody looks.
    """
    global _started  # noqa: PLW0603 - one for the process
    folder = os.environ.get(FOLDER)
    if _started is None and folder:
        with suppress(OSError, ValueError):  # a model serves without it, too
            _started = Page(Path(folder) / str(os.getpid()))
            threading.Thread(
                target=_beat, args=[_started, os.getppid()], name="heartbeat", daemon=True
            ).start()
    return _started


def _beat(page: Page, server: int) -> None:
    """Beat as long as the server lives: without it nothing can be answered, and nobody else ends this.

    Triton's stub may hold Python's global lock while it waits for the server to take an answer, and does so
    for ever where the server is killed just then. This thread then runs no more. Python's watchdog does,
    since it is written in C: it writes where every thread is to the log, and ends the process.
    """
    wait = threading.Event().wait
    while os.getppid() == server:
        if page.beats % REARM_BEATS == 0:
            faulthandler.dump_traceback_later(DEAF_SECONDS, exit=True, file=2)
        page.beats += 1
        wait(BEAT_SECONDS)
    os._exit(1)


def end_requests(folder: Path) -> None:
    """Ask every model whose page lies in a folder to end its requests with an error."""
    for path in folder.glob("[0-9]*"):
        with suppress(OSError, ValueError):
            Page(path).ending = True
