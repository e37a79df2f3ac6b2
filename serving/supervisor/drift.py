"""The drift monitor beside a supervised server: a thread that listens, and gauges among the supervisor's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from serving.drift.monitor import Monitor, asks, bound, watched_in
from serving.drift.tap import SHARE, SOCKET
from serving.supervisor.logs import say
from serving.supervisor.settings import Settings
from shoal.errors import RepositoryError
from shoal.paths import cache_dir


def watch_drift(settings: Settings, registry: CollectorRegistry) -> Callable[[], None] | None:
    """Tell the servers that are started from now on where to send rows, and compare what comes.

    Returns:
        To call when other versions are served; None: drift is not watched.
    """
    try:
        monitor = Monitor(watched_in(settings.repository), asks(f"127.0.0.1:{settings.ports.http}"))
    except RepositoryError as error:  # no reason not to serve
        say(f"drift is not watched: {error.message}", level="warning", hint=error.hint)
        return None
    path = cache_dir() / "drift.socket"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ[SOCKET], os.environ[SHARE] = str(path), str(settings.drift_share)
    registry.register(monitor)

    def listen() -> None:
        with bound(path) as receiver:
            monitor.listen(receiver, threading.Event())

    def renew() -> None:
        try:
            monitor.watch(watched_in(settings.repository))
        except RepositoryError as error:
            say(f"drift is compared with what was served before: {error.message}", level="warning")

    threading.Thread(target=listen, daemon=True).start()
    return renew
