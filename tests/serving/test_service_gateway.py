"""The gateway that `shoal serve --gateway` starts: it comes back when it died, and ends with its service."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from openai import APIConnectionError, InternalServerError, NotFoundError, OpenAI

from clients import GrpcClient
from serving import service
from serving.ports import Ports
from serving.service import Service
from shoal.errors import ServerError

ANY = Ports(0, 0, 0)


def _vector(of: Service) -> list[float]:
    """The same text, asked of Triton itself."""
    with GrpcClient(of.grpc) as client:
        return [float(value) for value in client.embed(["Fish swim in shoals."])[0]]


def test_a_gateway_starts_comes_back_and_ends_with_its_service(own_repository: Path) -> None:
    """OpenAI's own SDK asks it."""
    made = service.start(own_repository, ANY, gateway_port=0)
    try:
        assert made.gateway is not None and made.to_dict()["gateway"] == made.gateway
        client = OpenAI(base_url=f"{made.gateway}/v1", api_key="none", max_retries=0)
        given = client.embeddings.create(model="minilm", input="Fish swim in shoals.").data[0].embedding
        assert given == pytest.approx(_vector(made), abs=1e-5)
        before = _gateways(made)
        before[0].kill()
        deadline = time.monotonic() + 30
        while True:
            with suppress(APIConnectionError, InternalServerError, NotFoundError):
                again = client.embeddings.create(model="minilm", input="Fish swim in shoals.")
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert again.data[0].embedding == given and _gateways(made) != before
        assert _vector(made) == pytest.approx(given, abs=1e-5)  # Triton has gone on
        last = _gateways(made)
    finally:
        assert service.stop(made)
    assert not any(process.is_running() for process in last)


def _gateways(of: Service) -> list[psutil.Process]:
    children = psutil.Process(of.pid).children()
    return [process for process in children if "serving.gateway" in process.cmdline()]


def test_a_gateway_that_cannot_listen_is_told(own_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServerError, match="gateway port"):
        service.start(own_repository, ANY, gateway_port=taken.getsockname()[1])
