"""The drift monitor beside a supervised server: a thread that listens, and gauges among the supervisor's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

from serving.drift.monitor import Monitor, asks, bound, watched_in
from serving.drift.sampler import SHARE, SOCKET
from serving.supervisor.logs import say
from serving.supervisor.settings import SupervisorSettings
from shoal.errors import RepositoryError
from shoal.paths import cache_dir

PAUSE_SECONDS = 10.0  # before the monitor listens again after an error


def watch_drift(settings: SupervisorSettings, registry: CollectorRegistry) -> Callable[[], None] | None:
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

    failures = Counter(
        "shoal_drift_failures", "Times that the drift monitor ended by an error", registry=registry
    )

    def listen() -> None:
        while True:
            try:
                with bound(path) as receiver:
                    monitor.listen(receiver, threading.Event())
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on, and is watched again
                failures.inc()
                say(f"drift is not watched for {PAUSE_SECONDS:.0f} s: {error!r}", level="error")
                time.sleep(PAUSE_SECONDS)

    def renew() -> None:
        try:
            monitor.watch(watched_in(settings.repository))
        except RepositoryError as error:
            say(f"drift is compared with what was served before: {error.message}", level="warning")

    threading.Thread(target=listen, daemon=True).start()
    return renew
