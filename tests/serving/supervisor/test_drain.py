"""A server that is to go away: it answers, and says that new requests should go elsewhere."""

from __future__ import annotations

import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

from clients import GrpcClient
from tests.serving.supervisor.supervised import Supervised, supervising

DRAIN_SECONDS = 8.0
TEXT = ["Fish swim in shoals."]


def asked(supervised: Supervised, method: str, path: str = "/drain", **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{supervised.watch}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_answers_while_it_drains(repository: Path, tmp_path: Path) -> None:
    with (
        supervising(repository, tmp_path, f"--drain={DRAIN_SECONDS}") as supervised,
        GrpcClient(supervised.grpc) as client,
    ):
        assert asked(supervised, "POST") == (200, "draining\n")
        status, reason = asked(supervised, "GET", "/health")
        assert status == 503 and reason.startswith("draining")
        assert '"ready":false' in asked(supervised, "GET", "/catalogue")[1]
        assert supervised.metric("shoal_draining") == 1
        assert client.embed(TEXT).shape == (1, 384)
        assert asked(supervised, "DELETE") == (200, "serving\n")
        assert supervised.health() == 200

        # A page that someone has open in a browser on the same machine cannot take the server away.
        assert asked(supervised, "POST", Origin="http://example.com")[0] == 403
        assert asked(supervised, "POST", "/metrics")[0] == 404
        assert supervised.health() == 200

        supervised.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        supervised.wait(503)
        assert asked(supervised, "DELETE") == (200, "draining\n")  # it stops, whatever anybody says
        answered = 0
        while time.monotonic() - begun < DRAIN_SECONDS / 2:
            assert supervised.health() == 503
            answered += len(client.embed(TEXT))
        assert answered
        assert supervised.process.wait(60) == 0
    assert "some did not finish" not in supervised.log.read_text()


def test_who_asks_twice_does_not_wait(repository: Path, tmp_path: Path) -> None:
    with supervising(repository, tmp_path, "--drain=600") as supervised:
        supervised.process.send_signal(signal.SIGTERM)
        supervised.wait(503)
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.process.wait(60) == 0
