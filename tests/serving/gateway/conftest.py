"""One service of MiniLM and SmolLM2, and a gateway in front of it, for all tests that do not harm them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeredis import TcpFakeServer
from openai import OpenAI

from serving import service as services
from serving.ports import Ports
from serving.service import Service
from tests.serving.gateway.running import Running, gateway


@pytest.fixture(scope="session")
def both(decoder_repository: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with both models."""
    place = tmp_path_factory.mktemp("both") / "model_repository"
    shutil.copytree(decoder_repository, place)
    shutil.copytree(repository, place, dirs_exist_ok=True)
    return place


@pytest.fixture(scope="session")
def service(both: Path, _own_cache: None) -> Iterator[Service]:
    """Both models on a real Triton with its supervisor."""
    started = services.start(both, Ports(0, 0, 0), detach=True)
    yield started
    services.stop(started)


@pytest.fixture(scope="session")
def running(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway without keys."""
    with gateway(service, log=tmp_path_factory.mktemp("gateway") / "log") as made:
        yield made


@pytest.fixture(scope="session")
def openai(running: Running) -> Iterator[OpenAI]:
    """OpenAI's own SDK."""
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    """Of tests that are coroutines."""
    return "asyncio"


@pytest.fixture
def redis() -> Iterator[str]:
    """The address of a server that speaks Redis' protocol and runs the scripts of `limits`."""
    server = TcpFakeServer(("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"redis://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
