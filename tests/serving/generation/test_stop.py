"""A server that is stopped while it generates text ends every request by itself, and is never killed."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest

from clients import ClientError, GrpcClient, HttpClient
from serving import heartbeat
from serving.distribution import Embedded
from serving.embedded import Server, launch, running, stop
from serving.ports import Ports
from tests.serving.generation.metrics import settled

STREAMS, UNARY, WAITING = 16, 4, 6  # all rows run streams; the others wait for one
ROUNDS = int(os.environ.get("SHOAL_STOP_ROUNDS", "100"))
GRACE = 9.0  # seconds, of which answers may go on for half
LONG = {"max_tokens": None, "temperature": 0, "ignore_eos": True}


def _stream(server: Server, number: int) -> str:
    """How a stream over gRPC or HTTP ended, as its user sees it."""
    kind = (GrpcClient, HttpClient)[number % 2]
    try:
        with kind((server.grpc, server.http)[number % 2], timeout=300) as client:
            reasons = [p.finish_reason for p in client.generate(f"{number} fish", model="tiny", **LONG)]
            return reasons[-1] if reasons.count("") == len(reasons) - 1 else f"several ends: {reasons}"
    except ClientError as error:
        return type(error).__name__


def _whole(server: Server, number: int) -> str:
    """The same without a stream, as anybody may send it."""
    options = LONG | ({"structured_outputs": {"regex": f"[a-z]{{{number + 1},}}"}} if number % 2 else {})
    body = {"text_input": f"{number} whales", "sampling_parameters": json.dumps(options)}
    url = f"http://{server.http}/v2/models/tiny/generate"
    try:
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=300) as answer:
            return "length" if json.load(answer)["text_output"] else "empty"
    except urllib.error.HTTPError as error:
        return "Unavailable" if "stopping" in json.load(error)["error"] else "another error"
    except (OSError, ValueError) as error:
        return type(error).__name__


def _stopped_under_load(repository: Path, connected: bool) -> tuple[bool, float, Counter[str]]:
    """Whether it ended by itself, after how many seconds, and how its requests ended.

    Args:
        connected: a client keeps its HTTP connection open, for which Triton would wait.
    """
    server = launch(Embedded.find(), repository, Ports(0, 0, 0), grace=GRACE)
    idle = HTTPConnection(server.http)
    if connected:
        idle.request("GET", "/v2/health/ready")
        idle.getresponse().read()
    in_order = False
    with ThreadPoolExecutor(STREAMS + UNARY + WAITING) as pool:
        try:
            ends: list[Future[str]] = [pool.submit(_stream, server, n) for n in range(STREAMS)]
            assert settled(server, "running", STREAMS)
            ends += [pool.submit(_stream, server, n) for n in range(WAITING)]
            ends += [pool.submit(_whole, server, n) for n in range(UNARY)]
            assert settled(server, "waiting", WAITING + UNARY)
        finally:
            begun = time.monotonic()
            in_order = stop(server, grace=GRACE)
        seconds = time.monotonic() - begun
        idle.close()
        return in_order, seconds, Counter(end.result(timeout=300) for end in ends)


def _check(rounds: int, repository: Path) -> None:
    times, total = [], Counter[str]()
    for number in range(rounds):
        in_order, seconds, ends = _stopped_under_load(repository, connected=number % 2 == 1)
        times.append(seconds)
        total += ends
        assert in_order, f"killed after {seconds:.1f} s; its requests: {ends}"
        assert set(ends) <= {"length", "Unavailable"}, ends
    print(f"{rounds} stops, none killed, {min(times):.1f} to {max(times):.1f} s; requests: {dict(total)}")
    assert total["Unavailable"] >= rounds * (WAITING + UNARY)


def test_a_stop_under_load_ends_every_request(tiny_repository: Path) -> None:
    _check(3, tiny_repository)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_stops_under_load(tiny_repository: Path) -> None:
    _check(ROUNDS, tiny_repository)


def test_a_model_that_is_to_end_its_requests_refuses_what_comes_after(tiny_repository: Path) -> None:
    """And whoever waits for a structure: in a server that is not stopped, as its supervisor may want it."""
    with running(tiny_repository) as server, ThreadPoolExecutor(8) as pool:
        running_ones = [pool.submit(_stream, server, number) for number in range(4)]
        running_ones.append(pool.submit(_whole, server, 0))
        assert settled(server, "running", 5)
        heartbeat.end_requests(server.heartbeats)
        assert [end.result(timeout=300) for end in running_ones] == ["Unavailable"] * 5
        later = [pool.submit(call, server, number) for call in (_stream, _whole) for number in range(2)]
        assert [end.result(timeout=300) for end in later] == ["Unavailable"] * 4
        assert settled(server, "requests_total", 8, 'reason="stopping"')  # all but one with a structure
