"""Envoy in front of several Tritons: its configuration, for gRPC and HTTP.

What it does is decided in `envoy.yaml.j2`, beside the reasons. The names are those of Envoy 1.40:
https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from serving.ports import LOOPBACK
from shoal.errors import ShoalError, UsageError

TEMPLATE = "envoy.yaml.j2"
_REPLICA = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)((?::\d{1,5}){0,3})")
_VALIDATE_SECONDS = 60


@dataclass(frozen=True)
class Replica:
    """One server, or a name that leads to several: each address of the name takes part.

    Attributes:
        host: name or address, IPv6 without brackets.
        grpc, http: ports of Triton.
        health: port of its supervisor, where `/health` is.
    """

    host: str
    grpc: int = 8001
    http: int = 8000
    health: int = 8003

    @classmethod
    def parse(cls, given: str) -> Replica:
        """`HOST[:GRPC[:HTTP[:HEALTH]]]`.

        Raises:
            UsageError: it is something else, or a port is not from 1 to 65535.
        """
        found = _REPLICA.fullmatch(given)
        if not found:
            raise UsageError(
                f"{given!r} is not a replica",
                hint="HOST:GRPC_PORT:HTTP_PORT:HEALTH_PORT, such as triton-1:8001",
            )
        ports = [int(port) for port in found[2].split(":")[1:]]
        if any(not 1 <= port <= 65_535 for port in ports):
            raise UsageError(f"{given}: a port must be from 1 to 65535")
        return cls(found[1].strip("[]"), *ports)


@dataclass(frozen=True)
class EnvoySettings:
    """Where Envoy listens, and what is behind it.

    Attributes:
        replicas: at least one.
        address: that it listens on.
        grpc, http: its ports, in the place of Triton's.
        admin: port of its own page and metrics, on loopback; None: there is none.
        probe_seconds: between two looks at each `/health`.
    """

    replicas: Sequence[Replica]
    address: str = LOOPBACK
    grpc: int = 8001
    http: int = 8000
    admin: int | None = None
    probe_seconds: float = 1.0

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.address)
        except ValueError as error:
            raise UsageError(
                f"{self.address!r} is no address to listen on", hint="such as 127.0.0.1, 0.0.0.0 or ::"
            ) from error
        if not self.replicas:
            raise UsageError("there is no replica", hint="shoal deploy envoy triton-1:8001 triton-2:8001")
        seen = [(one.host, one.grpc) for one in self.replicas]
        if twice := {f"{host}:{port}" for host, port in seen if seen.count((host, port)) > 1}:
            raise UsageError(f"{min(twice)} is given twice")
        if loop := [one for one in self.replicas if one.host == self.address and one.grpc == self.grpc]:
            raise UsageError(
                f"Envoy would listen on {loop[0].host}:{loop[0].grpc}, where a replica is", hint="--grpc-port"
            )
        ports = [port for port in (self.grpc, self.http, self.admin) if port is not None]
        if len(set(ports)) < len(ports):
            raise UsageError("Envoy's ports must differ from each other")


def config(settings: EnvoySettings) -> str:
    """The file of a setting, in YAML."""
    environment = Environment(  # noqa: S701 - it makes YAML, of values that were checked
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(settings=settings)


def validate(text: str, envoy: str | None = None) -> bool:
    """Let Envoy read a configuration, without serving it.

    Args:
        text: of the configuration.
        envoy: the program; None: the one on PATH.

    Returns:
        Whether it was read; there may be no Envoy here.

    Raises:
        ShoalError: Envoy refuses it.
    """
    program = envoy or shutil.which("envoy")
    if program is None:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        command = [program, "--mode", "validate", "-c", file.name, "--log-level", "error"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_VALIDATE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ShoalError(f"{program} did not read the configuration in {_VALIDATE_SECONDS} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ShoalError(f"Envoy refuses the configuration: {said[-1] if said else done.returncode}")
    return True
