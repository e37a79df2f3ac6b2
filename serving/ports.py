"""TCP ports on loopback: which are free."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from shoal.errors import ServerError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """TCP ports on loopback; 0 asks for any free one."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


ANY_PORTS = Ports(0, 0, 0)


def free_ports(ports: Ports) -> Ports:
    """Replace each 0 by a free port.

    Raises:
        ServerError: one is taken, or asked for twice.
    """
    given = [port for port in asdict(ports).values() if port]
    if len(given) != len(set(given)):
        raise ServerError(
            f"two of the ports http {ports.http}, grpc {ports.grpc} and metrics {ports.metrics} are the same",
            hint="0 is any free one",
        )
    with ExitStack() as held:
        return Ports(**{name: _hold(name, port, held) for name, port in asdict(ports).items()})


def free_port(name: str, port: int) -> int:
    """`free_ports`, of one that has a name."""
    with ExitStack() as held:
        return _hold(name, port, held)


def _hold(name: str, port: int, held: ExitStack) -> int:
    holder = held.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        raise ServerError(
            f"{name} port {port} cannot be had: {getattr(error, 'strerror', None) or error}",
            hint=f"stop what uses it, or give --{name}-port 0 for any free one",
        ) from error
    return int(holder.getsockname()[1])
