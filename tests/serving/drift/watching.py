"""What tests of drift share: texts of two languages, a server that sends its rows, a monitor that listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest import bench_drift
from serving.drift.monitor import Monitor, bound
from serving.embedded import Server, running
from shoal import corpus

ALERT = 0.3
ENGLISH = corpus.texts(150, seed=77)
GERMAN = bench_drift.SENTENCES["German"]


@contextmanager
def watched(repository: Path, path: Path) -> Iterator[Server]:
    """A server that sends a row of every request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_MONITOR", str(path))
        patch.setenv("SHOAL_MONITOR_SHARE", "1")
        with running(repository) as server:
            yield server


@contextmanager
def listening(monitor: Monitor, path: Path) -> Iterator[None]:
    stop = threading.Event()
    with bound(path) as receiver:
        thread = threading.Thread(target=monitor.listen, args=(receiver, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)
