"""The supervisor over a real Triton: what it closes, what it brings back, and how it ends."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import trustme
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from clients import BadInput, ClientError, Denied, GrpcClient, HttpClient, Tls, Unavailable
from serving.distribution import Embedded
from serving.supervisor import supervisor
from serving.supervisor.settings import CONTROL_HEADER, SupervisorSettings
from shoal.admin import GRPC_HEADER, HEADER
from shoal.errors import RepositoryError, ServerError
from shoal.paths import write_atomic
from shoal.repository import served_version
from shoal.rollouts import wait_until_served
from tests.processes import SERVER, STUB, descendants
from tests.serving.supervisor.supervised import Supervised, free_port, supervising


@pytest.fixture(scope="module")
def supervised(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervising(
        repository, tmp_path_factory.mktemp("supervised"), "--cache-mb=8", "--drift-share=1"
    ) as made:
        yield made


def test_users_are_served_and_its_own_figures_are_there(supervised: Supervised) -> None:
    with GrpcClient(supervised.grpc) as client:
        assert client.embed(["Fish swim in shoals."]).shape == (1, 384)
    with HttpClient(supervised.http) as client:
        assert client.metadata("minilm")["name"] == "minilm"
    time.sleep(2.5)  # it asks once a second
    assert supervised.metric("shoal_probe_success") == 1
    assert supervised.metric("shoal_memory_bytes") > 1e8
    assert supervised.metric("shoal_cpu_seconds_total") > 0


def test_texts_of_any_length_meet_in_one_batch_and_change_no_answer(
    supervised: Supervised, repository: Path
) -> None:
    texts = [" ".join(["fish"] * count) for count in (1, 2, 5, 9, 17, 33, 60, 110, 200) for _ in range(6)]
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    with GrpcClient(supervised.grpc, timeout=300) as client:
        network = client.metadata("minilm_encoder")["name"]
        before = _executions(supervised, network)
        with ThreadPoolExecutor(len(texts)) as pool:
            together = list(pool.map(lambda text: client.embed([text])[0], texts))
        requests, runs = (
            now - then for now, then in zip(_executions(supervised, network), before, strict=True)
        )
        beside = client.embed(texts[::-1])[::-1]
    # The supervisor may have asked, too.
    assert len(texts) <= requests <= len(texts) + 2 and runs < len(texts) / 2
    path = repository / "minilm_encoder" / str(served_version(repository, "minilm_encoder")) / "model.onnx"
    session = onnxruntime.InferenceSession(str(path))
    tokenizer = Tokenizer.from_file(str(repository / "minilm_tokenizer" / "1" / "tokenizer.json"))
    for text, one, other in zip(texts, together, beside, strict=True):
        ids = np.array([tokenizer.encode(text).ids[:256]])
        (alone,) = session.run(["embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        assert one @ alone[0] > 0.9999 and other @ alone[0] > 0.9999


def _executions(supervised: Supervised, model: str) -> tuple[float, float]:
    """Requests that a model was given, and batches in which it ran them, by Triton's own metrics."""
    with urllib.request.urlopen(f"http://{supervised.metrics}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()

    def total(name: str) -> float:
        found = [line for line in lines if line.startswith(f"{name}{{") and f'model="{model}"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    return total("nv_inference_request_success"), total("nv_inference_exec_count")


def test_what_reads_or_changes_the_server_takes_the_key(supervised: Supervised) -> None:
    assert supervised.key.stat().st_mode & 0o777 == 0o600
    key = supervised.key.read_text().strip()
    for path, data in [
        ("v2/models/minilm/config", None),
        ("v2/models/stats", None),
        ("v2/systemsharedmemory/status", None),
        ("v2/trace/setting", None),
        ("v2/logging", None),
    ]:
        url = f"http://{supervised.http}/{path}"
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(url, data), timeout=10)
        assert error.value.code == 403, path
        wrong = urllib.request.Request(url, data, {HEADER: "0" * 64})
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(wrong, timeout=10)
        right = urllib.request.Request(url, data, {HEADER: key})
        assert urllib.request.urlopen(right, timeout=10).status == 200, path
    with triton_grpc.InferenceServerClient(supervised.grpc) as client:
        for call in (client.get_system_shared_memory_status, client.get_log_settings):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
            with pytest.raises(InferenceServerException, match="restricted"):
                call(headers={GRPC_HEADER: "0" * 64})
            call(headers={GRPC_HEADER: key})
        with pytest.raises(InferenceServerException, match="restricted"):
            client.register_system_shared_memory("mine", "/mine", 64)


def test_nobody_but_the_supervisor_controls_models(supervised: Supervised) -> None:
    """Not even who has the admin key: a load may bring files, and code, along."""
    key = supervised.key.read_text().strip()
    for action in ("index", "models/minilm/load", "models/minilm/unload"):
        url = f"http://{supervised.http}/v2/repository/{action}"
        for headers in ({}, {HEADER: key}, {CONTROL_HEADER: "0" * 64}, {CONTROL_HEADER: key}):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), timeout=10)
            assert error.value.code == 403, action
    with triton_grpc.InferenceServerClient(supervised.grpc) as client:
        for call in (client.load_model, client.unload_model):
            for grpc_headers in ({}, {GRPC_HEADER: key}, {CONTROL_HEADER: key}):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call("minilm", headers=grpc_headers)
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_model_repository_index(headers={GRPC_HEADER: key})
    with HttpClient(supervised.http) as http:
        assert http.embed(["Fish swim in shoals."]).shape == (1, 384)


def test_a_client_is_told_what_is_closed(supervised: Supervised) -> None:
    for kind, url in ((GrpcClient, supervised.grpc), (HttpClient, supervised.http)):
        with kind(url) as client, pytest.raises(Denied, match="restricted") as error:
            client.config("minilm")
        assert "SHOAL_ADMIN_KEY_FILE" in error.value.hint
        with kind(url, admin_key=supervised.key.read_text().strip()) as client:
            assert client.config("minilm")["name"] == "minilm"


def test_a_refused_request_is_found_by_its_id(supervised: Supervised) -> None:
    with GrpcClient(supervised.grpc) as client, pytest.raises(BadInput, match="text 1 is empty"):
        client.infer("minilm", {"text": np.array([["a"], [" "]], object)}, request_id="order-17")

    def told() -> list[dict[str, str]]:
        lines = [json.loads(line) for line in supervised.log.read_text().splitlines()]
        return [line for line in lines if line.get("request_id") == "order-17"]

    end = time.monotonic() + 20
    while not told() and time.monotonic() < end:  # the line comes through a pipe
        time.sleep(0.1)
    (line,) = told()
    assert (
        line["level"] == "warning"
        and line["message"] == "refused: text 1 is empty; leave it out of the request"
    )


def test_drift_is_watched_beside_it(supervised: Supervised) -> None:
    with GrpcClient(supervised.grpc) as client:
        for number in range(120):
            client.embed([f"Fische schwimmen gern in grossen Schwaermen umher, sagt Nummer {number}."])
    assert supervised.metric("shoal_drift_samples") >= 100
    assert supervised.metric("shoal_drift", 'feature="pieces"') > 0.3


def test_a_dead_model_is_brought_back_and_no_request_is_lost(supervised: Supervised) -> None:
    """A request while it happens ends in an answer or in a typed error."""
    ends: list[str] = []
    stop = time.monotonic() + 12

    def call(_: int) -> None:
        with GrpcClient(supervised.grpc, timeout=8.0) as client:
            while time.monotonic() < stop:
                try:
                    client.embed(["Fish swim in shoals."])
                    ends.append("answered")
                except ClientError as error:
                    ends.append(type(error).__name__)
                    time.sleep(0.05)

    restarts = supervised.metric("shoal_restarts_total")
    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call, index) for index in range(4)]
        time.sleep(1.0)
        supervised.stubs()[0].kill()
        noticed = supervised.wait(503, 10)
        served = supervised.wait(200)
        for caller in callers:
            caller.result()
    print(f"noticed after {noticed:.2f} s, serving again {served:.2f} s later; {len(ends)} requests")
    assert supervised.metric("shoal_restarts_total") == restarts + 1
    assert ends[-1] == "answered" and ends.count("answered") > 10
    assert noticed < 3.0
    assert re.search(r"the process of minilm_\w+ ended.*model process died", supervised.log.read_text())


FAULTS = [
    (SERVER, signal.SIGKILL, "server died"),
    (SERVER, signal.SIGSTOP, "server hung"),
    (STUB, signal.SIGKILL, "model process died"),
    (STUB, signal.SIGSTOP, "model process hung"),
]


def test_what_is_dead_or_hangs_is_brought_back(repository: Path, tmp_path: Path) -> None:
    with supervising(repository, tmp_path) as made:
        for count, (process, sent, reason) in enumerate(FAULTS, 1):
            descendants(made.process.pid, process)[0].send_signal(sent)
            made.wait(503, 10)
            made.wait(200)
            with GrpcClient(made.grpc) as client:
                assert client.embed(["Fish swim in shoals."]).shape == (1, 384)
            assert f'"reason": "{reason}"' in made.log.read_text()
            assert made.metric("shoal_restarts_total") == count


def test_a_busy_server_is_not_dead(supervised: Supervised) -> None:
    """Models that answer late make it unready at most."""
    before = supervised.metric("shoal_restarts_total")
    for stub in supervised.stubs():  # as slow as a machine with a hundred other processes makes them
        stub.nice(19)
    stop = threading.Event()

    def call() -> int:
        answered = 0
        with GrpcClient(supervised.grpc, timeout=300.0) as client:
            while not stop.is_set():
                answered += len(client.embed(["many words " * 60] * 4, batch_size=4))
        return answered

    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(call) for _ in range(16)]
        time.sleep(12)
        stop.set()
        assert min(one.result() for one in calls) >= 4
    assert supervised.metric("shoal_restarts_total") == before
    supervised.wait(200)


def test_what_was_refused_does_not_take_a_restarted_server_down(own_repository: Path, tmp_path: Path) -> None:
    """The last good version is served after any restart, and other models with it."""
    first = served_version(own_repository, "minilm_encoder")
    assert first is not None
    other = 3 - first
    with supervising(own_repository, tmp_path) as made:
        (own_repository / "minilm_encoder" / str(other) / "model.onnx").write_bytes(b"damaged")
        config = own_repository / "minilm_encoder" / "config.pbtxt"
        write_atomic(config, config.read_text().replace(f"versions: {first}", f"versions: {other}"))
        with pytest.raises(RepositoryError, match="is not the file that was measured"):
            wait_until_served(own_repository, {"minilm_encoder": config.read_text()}, 60.0)
        made.stubs()[0].kill()
        made.wait(503, 10)
        made.wait(200)
    with supervising(own_repository, tmp_path) as made, GrpcClient(made.grpc) as client:
        assert client.embed(["Fish swim in shoals."]).shape == (1, 384)
        write_atomic(config, config.read_text().replace(f"versions: {other}", f"versions: {first}"))
        wait_until_served(own_repository, {"minilm_encoder": config.read_text()}, 60.0)
        assert made.metric("shoal_upgrade_refused") == 0
    with pytest.raises(ServerError, match="no running server follows"):
        wait_until_served(own_repository, {}, 1.0)


def test_running_requests_are_finished_first(repository: Path, tmp_path: Path) -> None:
    with supervising(repository, tmp_path) as made, GrpcClient(made.grpc, timeout=300) as client:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(client.embed, ["many words " * 100] * 64, batch_size=64)
            time.sleep(0.3)
            made.process.send_signal(signal.SIGTERM)
            assert running.result().shape == (64, 384)
        assert made.process.wait(60) == 0
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_one_requests_spans_reach_a_collector(repository: Path, tmp_path: Path) -> None:
    """OTLP over HTTP: the request, its tokenizer and its network, under the trace that the caller began."""
    received: list[dict[str, Any]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    trace = "0af7651916cd43dd8448eb211c80319c"
    with supervising(repository, tmp_path, f"--traces={url}", "--trace-rate=1") as made:
        body = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["Fish swim."]}]}
        request = urllib.request.Request(
            f"http://{made.http}/v2/models/minilm/infer",
            json.dumps(body).encode(),
            {"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
        )
        urllib.request.urlopen(request, timeout=300)
        deadline = time.monotonic() + 30
        names: set[str] = set()
        while time.monotonic() < deadline and not {"minilm", "minilm_tokenizer", "minilm_encoder"} <= names:
            time.sleep(0.5)
            spans = [
                span
                for batch in list(received)
                for resource in batch["resourceSpans"]
                for scope in resource["scopeSpans"]
                for span in scope["spans"]
            ]
            names = {span["name"] for span in spans if span["traceId"] == trace}
    collector.shutdown()
    assert {"minilm", "minilm_tokenizer", "minilm_encoder"} <= names


def test_tls_refuses_plain_text_and_strangers(repository: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("user")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, made in (("server", server), ("client", client)):
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    flags = [f"--tls-cert={tmp_path / 'server.pem'}", f"--tls-key={tmp_path / 'server.key'}"]
    flags.append(f"--tls-client-ca={tmp_path / 'ca.pem'}")
    own = Tls(tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")
    with supervising(repository, tmp_path, *flags) as made:
        with GrpcClient(made.grpc, tls=own) as caller:
            assert caller.embed(["Fish swim in shoals."]).shape == (1, 384)
        for stranger in (None, Tls(tmp_path / "ca.pem")):
            with GrpcClient(made.grpc, tls=stranger, timeout=3) as caller, pytest.raises(Unavailable):
                caller.embed(["Fish swim in shoals."])


def test_what_never_serves_ends_with_its_reason(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving.supervisor", str(tmp_path), f"--health-port={free_port()}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert '"level": "error"' in done.stdout and "holds no models" in done.stdout


def test_a_server_that_loads_nothing_names_the_model_that_has_the_reason(own_repository: Path) -> None:
    """And not the ensemble before it, of which Triton says no more than that it is not loaded."""
    for model in own_repository.glob("minilm_tokenizer/*/model.py"):
        model.write_text("import no_such_module\n")
    for manifest in own_repository.glob("*/*/manifest.json"):
        manifest.unlink()  # or the supervisor would refuse the changed file before Triton reads it
    command = [sys.executable, "-m", "serving.supervisor", str(own_repository)]
    ports = [f"--{name}-port={free_port()}" for name in ("http", "grpc", "metrics", "health")]
    done = subprocess.run([*command, *ports], capture_output=True, text=True, check=False, timeout=120)
    (error,) = [line for line in done.stdout.splitlines() if "no model is served" in line]
    assert "minilm_tokenizer is not loaded: Internal: ModuleNotFoundError: No module named" in error


def test_what_served_once_is_never_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies soon, or cannot be started, again and again: the starts come further apart until one lasts."""
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    served = SimpleNamespace(close=lambda: None, server=None)
    starts, looks = itertools.count(1), itertools.count(1)
    lives = {8: 60.0}  # the eighth server lasts a minute

    class Dies(supervisor.Supervisor):
        def _begin(self) -> Any:
            if next(starts) in (2, 7):
                raise ServerError("the port is taken")
            return served

        def _look_after(self, served: object) -> tuple[str, str]:
            number = next(looks)
            if number == 10:
                raise supervisor._Stop
            now[0] += lives.get(number, 2.0)
            return "killed", "it was killed"

    monkeypatch.setattr(supervisor.time, "sleep", sleep)
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supervisor.embedded, "stop", lambda *_, **__: True)
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    settings = SupervisorSettings(tmp_path, health_port=0, state=tmp_path / "state")
    assert Dies(settings, Embedded.find()).run() == 0
    # Before each next start; the second and the seventh failed.
    assert pauses == [0, 1, 1, 2, 4, 8, 16, 30, 30, 0, 0]
