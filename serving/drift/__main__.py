"""`python -m serving.drift`: watch the models of a repository until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from shoal.errors import MissingDependency, ServerError, ShoalError


def main() -> None:
    """Listen at a socket, export metrics at a port."""
    parser = argparse.ArgumentParser(prog="python -m serving.drift", description="Watch a server's input.")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--socket", type=Path, required=True, help="what SHOAL_MONITOR is for the server")
    parser.add_argument("--http", metavar="HOST:PORT", help="the server; without it answers are not watched")
    parser.add_argument("--address", default="127.0.0.1", help="where metrics are to be had")
    parser.add_argument("--port", type=int, default=8003, help="of the metrics")
    given = parser.parse_args()
    try:
        _watch(given)
    except ShoalError as error:
        sys.exit(f"error: {error}")


def _watch(given: argparse.Namespace) -> None:
    try:
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415

        from serving.drift.monitor import Monitor, asks, bound, watched_in  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="monitor") from error
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    monitor = Monitor(watched_in(given.repository), asks(given.http) if given.http else None)
    registry = CollectorRegistry()
    registry.register(monitor)
    with bound(given.socket) as receiver:
        try:
            server, thread = start_http_server(given.port, given.address, registry)
        except (OSError, OverflowError) as error:
            raise ServerError(f"port {given.port} cannot be had: {error}", hint="another --port") from error
        sys.stdout.write(f"metrics at http://{given.address}:{server.server_port}/metrics\n")
        sys.stdout.flush()
        try:
            monitor.listen(receiver, stop)
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    main()
