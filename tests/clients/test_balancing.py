"""Several servers behind one address."""

from __future__ import annotations

import asyncio
import socket

import pytest

from clients import AsyncGrpcClient, BadInput, GrpcClient, Unavailable
from serving.embedded import Server

TEXT = ["Fish swim in shoals."]


def _nobody() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def test_a_server_that_is_not_there_costs_no_call(server: Server) -> None:
    url = f"ipv4:127.0.0.1:{_nobody()},{server.grpc}"
    with GrpcClient(url) as client:
        for _ in range(8):
            assert client.embed(TEXT).shape == (1, 384)

    async def ask() -> None:
        async with AsyncGrpcClient(url) as client:
            assert (await client.embed(TEXT)).shape == (1, 384)

    asyncio.run(ask())


def test_a_name_is_looked_up(server: Server) -> None:
    with GrpcClient(f"dns:///localhost:{server.grpc.rsplit(':', 1)[1]}") as client:
        assert client.embed(TEXT).shape == (1, 384)


def test_nobody_there_is_told_soon() -> None:
    """A call ends long before its deadline, which would be a `Timeout`."""
    url = f"ipv4:127.0.0.1:{_nobody()},127.0.0.1:{_nobody()}"
    with GrpcClient(url, timeout=120) as client, pytest.raises(Unavailable):
        client.embed(TEXT)


@pytest.mark.parametrize(
    "url", ["dns://host:1", "dns:///host", "ipv4:", "ipv4:1.2.3.4", "ipv4:1.2.3.4:1,", "dns:///a:1,b:2"]
)
def test_what_is_not_an_address(url: str) -> None:
    with pytest.raises(BadInput, match="is not an address"):
        GrpcClient(url)
