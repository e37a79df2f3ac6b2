"""Envoy in front of several Tritons: its configuration, for gRPC and HTTP.

What it does is decided in `envoy.yaml.j2`, beside the reasons. The names are those of Envoy 1.40:
https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.canary.split import Folder
from deploy.replica import Replica
from deploy.templates import render
from serving.ports import LOOPBACK
from shoal.errors import ShoalError, UsageError

TEMPLATE = "envoy.yaml.j2"
_VALIDATE_SECONDS = 60


@dataclass(frozen=True)
class EnvoySettings:
    """Where Envoy listens, and what is behind it.

    Attributes:
        replicas: at least one.
        address: that it listens on.
        grpc, http: its ports, in the place of Triton's.
        admin: port of its own page and metrics, on loopback; None: there is none.
        probe_seconds: between two looks at each `/health`.
        canary: the folder from which `shoal canary` steers it; None: there is never a canary.
    """

    replicas: Sequence[Replica]
    address: str = LOOPBACK
    grpc: int = 8001
    http: int = 8000
    admin: int | None = None
    probe_seconds: float = 1.0
    canary: Folder | None = None

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
        ports += [self.canary.grpc, self.canary.http, self.canary.mirror] if self.canary else []
        near = [one for one in self.replicas if one.host in (LOOPBACK, "localhost", "::1")]
        theirs = {port for one in near for port in (one.grpc, one.http, one.health)}
        if self.canary and (taken := set(ports[-3:]) & theirs):
            raise UsageError(f"a server of yours is at port {min(taken)}", hint="--canary-ports")
        if len(set(ports)) < len(ports):
            raise UsageError("the ports of Envoy and of a canary must differ from each other")


def config(settings: EnvoySettings) -> str:
    """The file of a setting, in YAML."""
    return render(TEMPLATE, settings=settings)


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
