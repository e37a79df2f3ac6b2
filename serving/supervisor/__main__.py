"""The command: `python -m serving.supervisor /models --address 0.0.0.0`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from serving.distribution import Embedded, Installed
from serving.ports import Ports
from serving.supervisor.logs import say
from serving.supervisor.record import Record, Recorder
from serving.supervisor.settings import SupervisorSettings
from serving.supervisor.supervisor import Supervisor
from shoal.errors import ShoalError
from shoal.rollouts import folder_of


def _path(given: str) -> Path | None:
    """A file, or none where a variable of the compose file is empty."""
    return Path(given) if given else None


def main() -> int:
    """Read the flags, then supervise until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m serving.supervisor", description=__doc__)
    known = SupervisorSettings(Path())
    parser.add_argument("repository", type=Path, help="the model repository")
    parser.add_argument(
        "--address", default=known.address, help="inside a container 0.0.0.0; default: %(default)s"
    )
    parser.add_argument("--http-port", type=int, default=known.ports.http)
    parser.add_argument("--grpc-port", type=int, default=known.ports.grpc)
    parser.add_argument("--metrics-port", type=int, default=known.ports.metrics)
    parser.add_argument(
        "--health-port", type=int, default=known.health_port, help="/health and /metrics of its own"
    )
    parser.add_argument(
        "--admin-key", type=_path, help="file; closes what reads or changes the server itself"
    )
    parser.add_argument("--tls-cert", type=_path, help="PEM; gRPC over TLS")
    parser.add_argument("--tls-key", type=_path, help="PEM")
    parser.add_argument(
        "--tls-client-ca", type=_path, help="PEM; only clients with a certificate of this authority"
    )
    parser.add_argument("--cache-mb", type=int, default=known.cache_mb, help="response cache; default: none")
    parser.add_argument(
        "--traces", default=known.traces, help="URL of an OTLP collector, http://otel:4318/v1/traces"
    )
    parser.add_argument(
        "--trace-rate", type=int, default=known.trace_rate, help="trace one request of so many"
    )
    parser.add_argument(
        "--drift-share", type=float, default=known.drift_share, help="watch this share of the rows for drift"
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=known.drain,
        help="seconds to go on answering after SIGTERM while /health says 503; two intervals of a load"
        " balancer's health checks; default: %(default)s",
    )
    parser.add_argument("--grace", type=float, default=known.grace, help="seconds to finish requests in")
    parser.add_argument(
        "--timeout", type=float, default=known.timeout, help="seconds until all models must answer"
    )
    parser.add_argument(
        "--state", type=_path, help="folder for what is served and was refused; default: the user's cache"
    )
    parser.add_argument(
        "--installed", action="store_true", help="the tritonserver on PATH, not the one of pip"
    )
    parser.add_argument("--folder", type=Path, help="of a service on this machine: where it says how it is")
    parser.add_argument(
        "--gateway-port", type=int, help="port on loopback of a gateway, see docs/gateway.md; default: none"
    )
    parser.add_argument(
        "--auto-complete", action="store_true", help="let Triton complete configs from their models"
    )
    parser.add_argument(
        "--triton",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="more for tritonserver, --triton=--log-verbose=1; may be repeated",
    )
    given = parser.parse_args()
    try:
        settings = SupervisorSettings(
            given.repository,
            address=given.address,
            ports=Ports(given.http_port, given.grpc_port, given.metrics_port),
            health_port=given.health_port,
            admin_key=given.admin_key,
            certificate=given.tls_cert,
            private_key=given.tls_key,
            client_authority=given.tls_client_ca,
            cache_mb=given.cache_mb,
            traces=given.traces,
            trace_rate=given.trace_rate,
            drift_share=given.drift_share,
            drain=given.drain,
            grace=given.grace,
            timeout=given.timeout,
            state=given.state,
            folder=given.folder,
            gateway_port=given.gateway_port,
            auto_complete=given.auto_complete,
            extra=tuple(given.triton),
        )
        return Supervisor(settings, Installed.find() if given.installed else Embedded.find()).run()
    except ShoalError as error:
        say(error.message, level="error", hint=error.hint)
        if given.folder and Record.read(given.folder) is None:  # it failed before it could say anything
            state = folder_of(given.state)
            record = Record(os.getpid(), time.time(), Ports(), 0, given.repository.resolve(), state)
            Recorder(given.folder, record).ended(error=error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
