"""An open loop of real Locust against the real server, and against servers that are slow or gone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from loadtest import arrivals, comparing, headless, searching
from serving.embedded import Server
from shoal.errors import ShoalError, UsageError
from tests.conftest import ROOT

SERVICE_SECONDS = 0.05


class _OneAtATime(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server of gRPC that answers one request after the other."""

    def __init__(self, seconds: float) -> None:
        self._lock, self._seconds = threading.Lock(), seconds

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        response = pb.ModelMetadataResponse(name=request.name)
        response.inputs.add(name="x", datatype="FP32", shape=[-1, 1])
        response.outputs.add(name="y", datatype="FP32", shape=[-1, 1])
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:
        response = pb.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = 8
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:
        with self._lock:
            time.sleep(self._seconds)
        response = pb.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="y", datatype="FP32", shape=[1, 1])
        response.raw_output_contents.append(b"\0\0\0\0")
        return response


@contextmanager
def _one_at_a_time(seconds: float = SERVICE_SECONDS) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(200))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_OneAtATime(seconds), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None)


@pytest.fixture
def requests(tmp_path: Path) -> str:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"inputs": {"x": [1.0]}}\n')
    return str(file)


def test_every_request_is_sent_once_and_when_it_is_due(server: Server, tmp_path: Path) -> None:
    plan = headless.Plan("minilm", 0, 4, "both", server.grpc, server.http, rate=20.0, arrival="poisson")
    summary = headless.run(plan, tmp_path)
    due = arrivals.due_times("poisson", 20.0, 4)
    assert summary["total"]["failures"] == 0 and summary["total"]["requests"] == len(due)
    columns = json.loads((tmp_path / "report.json").read_text())["requests"]
    assert columns["index"] == list(range(len(due)))
    begun = np.array(columns["ended"]) - np.array(columns["latency"]) / 1e3
    assert np.abs((begun - begun[0]) - (due - due[0])).max() < 0.05  # latency counts from when it was due
    counts = [row["requests"] for row in summary["protocols"].values()]
    assert len(counts) == 2 and abs(counts[0] - counts[1]) <= 1
    assert summary["client"]["processes"] == 1
    assert set(summary["queueing"]) == {"minilm", "minilm_encoder", "minilm_tokenizer"}
    for row in summary["queueing"].values():  # connections ask for nothing but the config before
        assert row["requests"] == len(due) and row["queue_ms"] >= 0
    assert summary["queueing"]["minilm_encoder"]["run_ms"] > 0
    html = (tmp_path / "report.html").read_text()
    assert "20.0 requests per second, poisson arrivals" in html


def test_waiting_behind_others_is_in_the_latency(requests: str, tmp_path: Path) -> None:
    """30 requests a second to a server of 20 a second: the n-th waits for n/20 - n/30 seconds."""
    with _one_at_a_time() as url:
        plan = headless.Plan("slow", 0, 3, "grpc", url, "-", workload=requests, rate=30.0, arrival="constant")
        summary = headless.run(plan, tmp_path)
        assert summary["total"]["failures"] == 0
        latency = np.array(json.loads((tmp_path / "report.json").read_text())["requests"]["latency"])
        assert np.median(latency[-10:]) > 8 * np.median(latency[:5])  # 1,500 ms, and 75
        # A closed loop of one user never sees it: its latency is the time of one request.
        closed = headless.run(headless.Plan("slow", 1, 3, "grpc", url, "-", workload=requests), tmp_path)
        assert closed["total"]["p50"] < 0.25 * summary["total"]["p99"]


def test_what_the_client_takes_too_long_is_in_the_latency() -> None:
    """A process that sends is held up for half a second: what was due meanwhile is late by so much.

    In a process of its own, since Locust patches Python.
    """
    program = """
import json
import gevent.monkey
from types import SimpleNamespace
from loadtest import open_loop
options = SimpleNamespace(
    beside="", arrival="constant", rate=20.0, seconds=1.0, seed=0, processes_in_all=1, begins_at=0.0,
    grace=5.0,
)
fired = []
hold_up = gevent.monkey.get_original("time", "sleep")
class Asker:
    name = "ask"
    def __call__(self, client, request):
        if not fired:
            hold_up(0.5)  # nothing else runs in this process meanwhile
        return open_loop.Seen(1)
class User(open_loop.OpenLoop):
    abstract, protocols = True, ("grpc",)
    def __init__(self):
        runner = SimpleNamespace(worker_index=0, send_message=lambda name: None)
        self.environment = SimpleNamespace(parsed_options=options, runner=runner)
        self._idle, self._requests, self._waiting = {("grpc", ""): [None] * 100}, [{}], {}
        self._servers = ("",)
        self._ask = Asker()
    def fire(self, protocol, name, milliseconds, size, failure=None, **more):
        fired.append([more["index"], milliseconds, more["lag"]])
try:
    User().send()
except open_loop.StopUser:
    pass
print(json.dumps(sorted(fired)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    assert [index for index, _, _ in rows] == list(range(20))
    # The second was due at 50 ms, and could be sent at 500 ms.
    _, latency, lag = rows[1]
    assert lag > 400 and latency >= lag
    assert rows[0][1] >= 500


def test_the_highest_rate_is_found(requests: str, tmp_path: Path) -> None:
    """A server of 20 requests a second, asked at equal distances, keeps 100 ms up to that rate."""
    with _one_at_a_time() as url:
        plan = headless.Plan(
            *("slow", 0, 3, "grpc", url, "-"),
            workload=requests,
            rate=10.0,
            arrival="constant",
            slo="p90=100ms",
        )
        summary = searching.find_max(plan, tmp_path)
        assert 4 < summary["max_rate"] < 24  # of 20, on a machine that may be busy
        assert summary["trials"][0]["rate"] == 10.0
        assert not any(trial["met"] for trial in summary["trials"] if trial["rate"] > 24)
        assert summary["slo"]["met"]  # the report is of the test that confirmed it
        assert "Goodput by rate" in (tmp_path / "report.html").read_text()
        none = searching.find_max(replace(plan, slo="p90=10ms", seconds=2, rate=4.0), tmp_path)
        assert none["max_rate"] is None and none["slo"]["goodput"] == 0.0
        # Requests of 50 ms hardly meet at one a second: lower rates are not tried.
        assert min(trial["rate"] for trial in none["trials"]) >= 0.5
    with pytest.raises(UsageError, match="--find-max needs a promise"):
        searching.find_max(replace(plan, slo=""), tmp_path)


def test_several_processes_share_the_requests(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headless, "RATE_OF_A_PROCESS", 10)
    monkeypatch.setattr("shoal.machine.available_cpus", lambda: 3)
    plan = headless.Plan("minilm", 0, 3, "grpc", server.grpc, "-", rate=30.0, arrival="constant")
    assert plan.processes == 3
    summary = headless.run(plan, tmp_path)
    assert summary["client"]["processes"] == 3
    columns = json.loads((tmp_path / "report.json").read_text())["requests"]
    assert columns["index"] == list(range(90)) and all(columns["succeeded"])


def test_a_promise_and_an_earlier_test(server: Server, tmp_path: Path) -> None:
    plan = headless.Plan(
        *("minilm", 0, 4, "grpc", server.grpc, "-"), rate=25.0, arrival="poisson", slo="p99=800ms"
    )
    first = headless.run(plan, tmp_path / "first")
    assert first["slo"]["met"] and first["slo"]["goodput"] == 1.0
    before = comparing.read(tmp_path / "first")
    second = headless.run(replace(plan, slo="p50=0.001ms"), tmp_path / "second", before, 5.0)
    assert not second["slo"]["met"] and second["slo"]["goodput"] == 0.0
    assert second["compared"]["metrics"][0]["name"] == "whole answer"
    assert not second["compared"]["regression"]
    assert not any("differ" in warning for warning in second["compared"]["warnings"])
    html = (tmp_path / "second" / "report.html").read_text()
    assert "Both runs, block by block" in html and "p50=0.001ms: missed" in html


@contextmanager
def _two(seconds: tuple[float, float]) -> Iterator[tuple[str, str]]:
    with _one_at_a_time(seconds[0]) as here, _one_at_a_time(seconds[1]) as there:
        yield here, there


def test_two_servers_are_asked_in_turn_for_the_same(
    requests: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 30 ms and of 20 ms: the first is slower than the other; and the other way round it is faster."""
    monkeypatch.setattr(headless, "TURN_SECONDS", 0.5)
    with _two((0.03, 0.02)) as (here, there):
        plan = headless.Plan(
            *("slow", 0, 4, "grpc", here, "-"), workload=requests, rate=20.0, arrival="constant", beside=there
        )
        slower = headless.run(plan, tmp_path)
        faster = headless.run(replace(plan, grpc_url=there, beside=here), tmp_path / "other")
    for summary in (slower, faster):
        assert summary["total"]["requests"] == summary["beside"]["total"]["requests"] == 80
        assert summary["total"]["failures"] == summary["beside"]["total"]["failures"] == 0
        assert summary["seconds"] < 6  # its turns put together
    columns = json.loads((tmp_path / "report.json").read_text())["requests"]
    assert columns["index"] == list(range(80))
    begun = np.array(columns["ended"]) - np.array(columns["latency"]) / 1e3
    assert np.abs(begun - np.arange(80) / 20).max() < 0.05
    row = slower["compared"]["metrics"][0]
    assert row["verdict"] == "slower" and 1.2 < row["ratio"] < 1.8
    assert slower["compared"]["regression"] and not faster["compared"]["regression"]
    assert faster["compared"]["metrics"][0]["verdict"] == "faster"
    html = (tmp_path / "report.html").read_text()
    assert "Against the server beside it" in html and f"beside: {there}" in html
    assert "requests" not in json.loads((tmp_path / "report.json").read_text())["beside"]
    assert len(row["blocks"]) == 8  # one of each turn


def test_turns_are_taken_as_abba() -> None:
    due = np.arange(0.0, 8.0, 0.5)
    first, second = (due + arrivals.in_turn(due, side, 2.0) for side in (0, 1))
    order = [int(at in second) for at in np.arange(0.0, 16.0, 0.5)]
    assert order == [*([0] * 4), *([1] * 8), *([0] * 8), *([1] * 8), *([0] * 4)]
    assert sorted([*first, *second]) == np.arange(0.0, 16.0, 0.5).tolist()


def test_a_server_beside_that_is_gone_is_no_comparison(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headless, "TURN_SECONDS", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        plan = headless.Plan(
            *("minilm", 0, 4, "grpc", server.grpc, "-"),
            workload="short",
            rate=10.0,
            arrival="constant",
            beside=gone,
        )
        with pytest.raises(ShoalError, match="nothing was compared: 100% of the requests failed on the"):
            headless.run(plan, tmp_path)
        kept = json.loads((tmp_path / "report.json").read_text())
        assert kept["total"]["failures"] == 0
        assert "Unavailable" in kept["beside"]["failures"][0]["reason"]
        turned = headless.run(replace(plan, grpc_url=gone, beside=server.grpc), tmp_path / "turned")
    assert turned["compared"]["regression"]  # what is gone fails more


def test_what_does_not_go_in_turn(tmp_path: Path) -> None:
    plan = headless.Plan("m", 0, 15, "grpc", "-", "-", rate=5.0, arrival="poisson", beside="127.0.0.1:1")
    with pytest.raises(UsageError, match="needs 16 --seconds at least"):
        headless.run(plan, tmp_path)
    with pytest.raises(UsageError, match="needs 160 --seconds at least"):
        headless.run(replace(plan, generates=True, seconds=159), tmp_path)
    with pytest.raises(UsageError, match="--slo does not go with --beside"):
        headless.run(replace(plan, seconds=16, slo="p99=80ms"), tmp_path)


def test_nobody_answers(tmp_path: Path) -> None:
    """What was promised is missed, and each request is told as failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        plan = headless.Plan("minilm", 0, 1, "http", "-", url, rate=4.0, arrival="constant", slo="p50=100ms")
        gone = headless.run(plan, tmp_path)
    assert not gone["slo"]["met"] and gone["slo"]["bounds"][0]["reached"] is None
    assert gone["total"]["requests"] == gone["total"]["failures"] == 4
    assert all("Unavailable" in failure["reason"] for failure in gone["failures"])


def test_a_report_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = headless.Plan("minilm", 1, 1, "grpc", server.grpc, "-")
    with pytest.raises(ShoalError, match="cannot be written"):
        headless.run(plan, tmp_path / "file" / "report")
