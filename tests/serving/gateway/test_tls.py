"""The gateway over TLS: towards its callers, and towards Triton."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from clients import GrpcClient
from serving import service as services
from serving.gateway.settings import GatewaySettings
from serving.ports import Ports, free_port
from serving.service import Service
from shoal.errors import UsageError
from tests.conftest import ROOT
from tests.serving.gateway.running import gateway

TEXT = "Fish swim in shoals."


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `deploy/certificates` makes."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([ROOT / "deploy" / "certificates", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def secured(repository: Path, certificates: Path, _own_cache: None) -> Iterator[Service]:
    """A service whose gRPC speaks TLS."""
    flags = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificates / 'server' / 'server.pem'}",
        f"--grpc-server-key={certificates / 'server' / 'server.key'}",
    ]
    made = services.start(repository, Ports(0, 0, 0), arguments=flags)
    yield made
    services.stop(made)


def test_triton_is_asked_over_tls(secured: Service, certificates: Path, tmp_path: Path) -> None:
    trusted = f"--triton-ca={certificates / 'ca.pem'}"
    with gateway(secured, trusted, log=tmp_path / "log") as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        assert len(client.embeddings.create(model="minilm", input=TEXT).data[0].embedding) == 384
    with gateway(secured, "--recovery=0", log=tmp_path / "log") as running:
        status, body, _ = running.post("/v1/embeddings", {"model": "minilm", "input": TEXT})
        assert status == 503 and body["error"]["code"] == "unavailable"


def test_callers_are_served_over_https_only(service: Service, certificates: Path, tmp_path: Path) -> None:
    port = free_port("gateway", 0)
    catalogue = service.health.replace("/health", "/catalogue")
    flags = [f"--port={port}", f"--triton={service.grpc}", f"--catalogue={catalogue}"]
    for name, file in (("cert", "server.pem"), ("key", "server.key")):
        flags.append(f"--tls-{name}={certificates / 'server' / file}")
    trusted = ssl.create_default_context(cafile=certificates / "ca.pem")
    url = f"https://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, "-m", "serving.gateway", *flags]) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert urllib.request.urlopen(f"{url}/health", context=trusted, timeout=5).status == 200
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.05)
            body = f'{{"model": "minilm", "input": "{TEXT}", "encoding_format": "float"}}'.encode()
            asked = urllib.request.Request(f"{url}/v1/embeddings", data=body)
            with urllib.request.urlopen(asked, context=trusted, timeout=300) as answer:
                assert answer.status == 200 and answer.read().startswith(b'{"object":"list"')
            with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
                urllib.request.urlopen(f"{url}/health", timeout=5)  # who does not know the authority
            with pytest.raises((OSError, urllib.error.URLError)):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        finally:
            process.terminate()
            process.wait(20)
    with GrpcClient(service.grpc) as direct:
        assert direct.embed([TEXT]).shape == (1, 384)


def test_files_are_checked_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tls-key|private key"):
        GatewaySettings(certificate=tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        GatewaySettings(triton_authority=tmp_path / "none.pem")
