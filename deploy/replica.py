"""A server behind Envoy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoal.errors import UsageError

_REPLICA = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)((?::\d{1,5}){0,3})")


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

    @property
    def grpc_address(self) -> str:
        """host:port, as a client of gRPC takes it."""
        return f"[{self.host}]:{self.grpc}" if ":" in self.host else f"{self.host}:{self.grpc}"

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
