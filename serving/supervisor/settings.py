"""What a served Triton opens to whom: files and flags turned into its arguments, checked before it starts."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from serving.ports import Ports
from shoal.admin import HEADER
from shoal.errors import UsageError

# What reads the server itself, or changes it, takes the admin key; inference, metadata and health stay open.
# What changes it stays closed where there is no such key: any client could register the shared memory of a
# model's process, and overwrite it.
CHANGES = ("shared-memory", "trace", "logging")
CLOSED = (*CHANGES, "model-config", "statistics")
# Model control takes a key that the supervisor makes for itself and tells nobody: a load can bring files, so
# that who may load may run code.
CONTROL_HEADER = "shoal-control-key"

# What may be added to the command line. A list of what is allowed, because Triton takes abbreviations and
# has more than one option that opens a port or a second repository.
_ALLOWED_ARGUMENT = re.compile(
    r"--(log-[a-z-]+|trace-config|metrics-config|cache-config|rate-limit|grpc-use-ssl|grpc-use-ssl-mutual"
    r"|grpc-server-cert|grpc-server-key|grpc-root-cert)=."
)


@dataclass(frozen=True)
class SupervisorSettings:
    """How to serve.

    Attributes:
        repository: the model repository.
        address: where it listens; in a container all addresses: Docker publishes what is to be.
        ports: of Triton.
        health_port: of metrics and health of the supervisor.
        admin_key: file of the key that opens `CLOSED`; made where it does not exist.
        certificate, private_key: PEM files for gRPC over TLS; both or none.
        client_authority: PEM file of the authority that clients' certificates must be signed by; None: any
            client.
        cache_mb: size of the response cache in MB; 0: none.
        traces: URL of an OTLP collector over HTTP; "": no traces.
        trace_rate: one request of so many is traced.
        drift_share: share of requests of which a row is compared with those of the export; 0: none.
        drain: seconds in which it goes on answering after SIGTERM while `/health` says 503, so that a load
            balancer finds out before connections are refused: two intervals of its health checks.
        grace: seconds in which running requests may finish at the end.
        timeout: seconds until every model must answer after a start.
        state: folder for what is served and what was refused, which survives a restart; None: see
            `shoal.rollouts.folder_of`.
        folder: of a service on this machine, see `serving.service`; None: it is no such service.
        gateway_port: where a gateway listens, on loopback; None: there is none.
        auto_complete: Triton may add to configs what their models tell of themselves.
        extra: more for tritonserver: options for logs, traces, metrics and TLS.
    """

    repository: Path
    address: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    health_port: int = 8003
    admin_key: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    client_authority: Path | None = None
    cache_mb: int = 0
    traces: str = ""
    trace_rate: int = 100
    drift_share: float = 0.0
    drain: float = 0.0
    grace: float = 25.0
    timeout: float = 300.0
    state: Path | None = None
    folder: Path | None = None
    gateway_port: int | None = None
    auto_complete: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise UsageError("TLS takes a certificate and its private key", hint="--tls-cert and --tls-key")
        if self.client_authority and not self.certificate:
            raise UsageError("clients can show certificates only over TLS", hint="--tls-cert and --tls-key")
        for path in (self.certificate, self.private_key, self.client_authority):
            if path is not None and not os.access(path, os.R_OK):
                raise UsageError(f"{path} cannot be read", hint="deploy/certificates makes a set")
        if not 0 <= self.drift_share <= 1:
            raise UsageError(f"drift share is {self.drift_share}, it must be a share from 0 to 1")
        if not 0 <= self.drain <= 86_400:
            raise UsageError(f"drain is {self.drain} seconds, it must be from 0 to 86400")
        if self.cache_mb < 0 or self.grace <= 0 or self.timeout <= 0 or self.trace_rate < 1:
            raise UsageError("cache, grace, timeout and trace rate must be positive")
        for argument in self.extra:
            if not _ALLOWED_ARGUMENT.match(argument):
                raise UsageError(
                    f"{argument} cannot be given to tritonserver",
                    hint="allowed: --log-..., --trace-config, --metrics-config, --cache-config, --rate-limit,"
                    " --grpc-use-ssl..., --grpc-server-..., --grpc-root-cert, each as --name=value",
                )

    def arguments(self, key: str, control: str) -> list[str]:
        """For tritonserver.

        Args:
            key: what the admin key file holds; "": of `CLOSED`, what only reads is open.
            control: the supervisor's own key.
        """
        made = [
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--http-restricted-api=model-repository:{CONTROL_HEADER}={control}",
            f"--grpc-restricted-protocol=model-repository:{CONTROL_HEADER}={control}",
            "--metrics-config=summary_latencies=true",
        ]
        if not self.auto_complete:
            made.append("--disable-auto-complete-config")
        if not key:
            made += [
                f"--http-restricted-api={','.join(CHANGES)}:{CONTROL_HEADER}={control}",
                f"--grpc-restricted-protocol={','.join(CHANGES)}:{CONTROL_HEADER}={control}",
            ]
        if self.folder is None:  # of a service the lines are read by people
            made.append("--log-format=ISO8601")
        if key:
            closed = ",".join(CLOSED)
            made += [
                f"--http-restricted-api={closed}:{HEADER}={key}",
                f"--grpc-restricted-protocol={closed}:{HEADER}={key}",
            ]
        if self.certificate:
            made += [
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={self.certificate}",
                f"--grpc-server-key={self.private_key}",
            ]
        if self.client_authority:
            made += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_authority}"]
        if self.cache_mb:
            made.append(f"--cache-config=local,size={self.cache_mb << 20}")
        if self.traces:
            made += [
                "--trace-config=mode=opentelemetry",
                f"--trace-config=opentelemetry,url={self.traces}",
                f"--trace-config=rate={self.trace_rate}",
                "--trace-config=level=TIMESTAMPS",
                "--trace-config=opentelemetry,resource=service.name=shoal",
            ]
        return [*made, *self.extra]


def _make_key(path: Path) -> None:
    """Several servers may do so at once: the first one's key is everybody's, and nobody reads half of it."""
    made = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()


def read_key(path: Path | None) -> str:
    """The admin key, made (256 bits) and kept for its owner alone where there is none yet.

    Raises:
        UsageError: the file is empty, or can be neither read nor made.
    """
    if path is None:
        return ""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_key(path)
        key = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"admin key {path} can be neither read nor made: {error}") from error
    if not key.isalnum():
        raise UsageError(f"admin key {path} must hold letters and digits, and nothing else")
    return key
