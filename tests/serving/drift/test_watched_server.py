"""What drifts in a server's requests is seen, what does not is not, and answers come as if none watched."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tokenizers import Tokenizer

from clients import GrpcClient
from serving.drift.monitor import Monitor, asks, bound, watched_in
from serving.drift.sampler import TrafficSampler
from serving.embedded import Server
from tests.conftest import ROOT
from tests.serving.drift.watching import ALERT, ENGLISH, GERMAN, listening, wait, watched


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("monitor") / "socket"


@pytest.fixture(scope="module")
def watched_server(repository: Path, path: Path, _own_cache: None) -> Iterator[Server]:
    with watched(repository, path) as server:
        yield server


def test_another_language_is_seen_and_the_same_kind_of_text_is_not(
    repository: Path, watched_server: Server, path: Path
) -> None:
    def seen(texts: list[str]) -> tuple[dict[str, float], Monitor]:
        monitor = Monitor(watched_in(repository), asks(watched_server.http), ask_seconds=0.0)
        with listening(monitor, path), GrpcClient(watched_server.grpc) as client:
            for sent, text in enumerate(texts, 1):
                client.embed([text])
                if sent % 10 == 0 or sent == len(texts):  # rows that nobody reads in time are dropped
                    wait(lambda: monitor.samples()["minilm"] >= sent)  # noqa: B023
        return monitor.drift()["minilm"], monitor

    english, _ = seen(ENGLISH)
    assert english.keys() == {"length", "pieces", "unknown", "similarity"}
    assert max(english.values()) < 0.2
    german, monitor = seen(GERMAN)
    assert german["pieces"] > ALERT
    assert german["similarity"] > ALERT
    registry = CollectorRegistry()
    registry.register(monitor)
    exposed = generate_latest(registry).decode()
    assert f'shoal_drift{{feature="pieces",model="minilm"}} {german["pieces"]}' in exposed
    assert f'shoal_drift_samples{{model="minilm"}} {len(GERMAN)}.0' in exposed
    # All that is left of the rows: when, and in which bin.
    (model,) = monitor._watched.values()
    for name, window in model.windows.items():
        bins = len(model.reference.features[name].counts)
        assert all(type(when) is float and 0 <= number < bins for when, number in window._rows)


def test_without_a_listener_answers_are_the_same(server: Server, watched_server: Server, path: Path) -> None:
    assert not path.exists()
    with GrpcClient(server.grpc) as plain, GrpcClient(watched_server.grpc) as watched:
        for text in GERMAN[:50]:
            np.testing.assert_array_equal(watched.embed([text]), plain.embed([text]))


def test_a_monitor_that_does_not_keep_up_holds_nobody_up(watched_server: Server, path: Path) -> None:
    with bound(path), GrpcClient(watched_server.grpc) as client:
        for text in GERMAN * 2:  # more than the socket holds
            assert client.embed([text]).shape == (1, 384)


def test_the_command(repository: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "serving.drift", "--repository", str(repository), "--socket", str(path)]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            tap = TrafficSampler("minilm_tokenizer", "1", {"SHOAL_MONITOR": str(path)})
            texts = itertools.cycle(GERMAN)

            def metrics() -> str:
                return str(urllib.request.urlopen(url).read().decode())

            def enough() -> bool:
                """A monitor that gets no CPU loses rows, by design: more are sent."""
                for text in itertools.islice(texts, 20):
                    tap.send(tokenizer.encode(text).ids)
                    time.sleep(0.002)
                found = re.search(r'shoal_drift_samples{model="minilm"} ([0-9.]+)', metrics())
                return found is not None and float(found[1]) >= 120

            wait(enough)
            assert 'shoal_drift{feature="pieces",model="minilm"} 0.' in metrics()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert not path.exists()
    command += ["--port", "70000"]
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert second.returncode == 1
    assert "error: port 70000 cannot be had" in second.stderr


def test_the_end_of_the_listener_is_counted_and_it_listens_again(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside a supervised server; here the monitor fails twice, and then is as it was."""
    from prometheus_client import CollectorRegistry

    from serving.supervisor import drift
    from serving.supervisor.settings import SupervisorSettings

    listened = threading.Event()
    failures = [RuntimeError("no such histogram"), OSError("the socket is gone")]

    def listen(self: Monitor, receiver: socket.socket, stop: threading.Event) -> None:
        if failures:
            raise failures.pop(0)
        listened.set()
        threading.Event().wait()

    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    monkeypatch.setenv("SHOAL_MONITOR", "")
    monkeypatch.setenv("SHOAL_MONITOR_SHARE", "")
    monkeypatch.setattr(Monitor, "listen", listen)
    monkeypatch.setattr(drift, "PAUSE_SECONDS", 0.01)
    registry = CollectorRegistry()
    assert drift.watch_drift(SupervisorSettings(repository, drift_share=1.0), registry) is not None
    assert listened.wait(30)
    assert registry.get_sample_value("shoal_drift_failures_total") == 2
    said = capfd.readouterr().out
    assert "no such histogram" in said and "the socket is gone" in said
    assert said.count('"level": "error"') == 2
