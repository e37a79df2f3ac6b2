"""The dashboards and rules on a real server: every metric is there, and Prometheus draws every panel."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clients import BadInput, GrpcClient
from export import run
from serving.embedded import Server, running
from shoal.repository import LOCK
from tests import observed, tiny

SECONDS_OF_LOAD = 12.0


@pytest.fixture(scope="module")
def served(
    repository: Path, decoder_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A decoder, an encoder-decoder and an ensemble, one step of it with a response cache, and summaries of
    latencies."""
    both = tmp_path_factory.mktemp("watched") / "model_repository"
    shutil.copytree(repository, both, ignore=shutil.ignore_patterns(LOCK))
    shutil.copytree(decoder_repository, both, copy_function=os.link, dirs_exist_ok=True)
    checkpoint = tiny.make_encoder_decoder(
        tmp_path_factory.mktemp("t5") / "checkpoint", "T5ForConditionalGeneration"
    )
    run.export(run.recipe_of({"source": str(checkpoint), "name": "t5", "precisions": ["fp32"]}), both)
    with (both / "minilm_tokenizer" / "config.pbtxt").open("a") as config:
        config.write("response_cache { enable: true }\n")
    options = ("--metrics-config=summary_latencies=true", "--cache-config=local,size=1048576")
    with running(both, arguments=options) as server:
        yield server


@pytest.fixture(scope="module")
def loaded(served: Server) -> Server:
    """After some traffic, bad input among it."""
    _load(served, seconds=0.5)
    time.sleep(1.0)  # a decoder publishes four times a second
    return served


def _load(server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    with GrpcClient(server.grpc, timeout=300) as client:
        while time.monotonic() < end:
            client.embed(["a text", "another"])
            client.complete("Fish swim", max_tokens=8)
            client.text_to_text(["Fish swim"], model="t5", max_new_tokens=4)
            with suppress(BadInput):
                client.embed([""])


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as page:
        return str(page.read().decode())


def test_every_metric_exists(loaded: Server) -> None:
    known = observed.OWN | observed.names(observed.SUPERVISOR) | observed.names(observed.GATEWAY)
    known |= {rule["record"] for rule in observed.rules() if "record" in rule}
    known |= observed.names(_page(f"http://127.0.0.1:{loaded.ports.metrics}/metrics"))
    missing = {(place, metric) for place, metric in observed.asked_for() if metric not in known}
    assert not missing


@contextmanager
def _serving(page: str) -> Iterator[str]:
    """host:port of a page of metrics."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{listener.server_address[1]}"
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def prometheus(loaded: Server, tmp_path: Path) -> Iterator[str]:
    """URL of a real Prometheus with our configuration."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on PATH: apt-get install prometheus")
    config = tmp_path / "prometheus.yml"
    pages = ExitStack()
    targets = {
        "triton": f"127.0.0.1:{loaded.ports.metrics}",
        "supervisor": pages.enter_context(_serving(observed.SUPERVISOR)),
        "gateway": pages.enter_context(_serving(observed.GATEWAY)),
    }
    observed.write_config(config, targets)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                _page(f"http://{address}/-/ready")
                break
            except (OSError, urllib.error.URLError):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)
        pages.close()


def test_prometheus_draws_every_panel(prometheus: str, loaded: Server) -> None:
    _load(loaded, SECONDS_OF_LOAD)

    def ask(path: str, **parameters: str) -> Any:
        answer = json.loads(_page(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        assert answer["status"] == "success"
        return answer["data"]

    assert {target["health"] for target in ask("targets")["activeTargets"]} == {"up"}
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(observed.rules())
    assert {rule["health"] for rule in rules} == {"ok"}
    empty = {place for place, query in observed.queries().items() if not ask("query", query=query)["result"]}
    assert not empty
    assert not ask("query", query='ALERTS{alertstate="firing"}')["result"]
    users = ask("query", query="model:timed_requests:rate1m")["result"]
    assert {series["metric"]["model"] for series in users} == {"minilm", "smollm2", "t5"}
