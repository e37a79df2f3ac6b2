"""What was found by somebody who tried to break the gateway: each with what is right."""

from __future__ import annotations

import signal
import socket
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIError, InternalServerError, OpenAI

from serving.gateway.errors import ApiError
from serving.gateway.origin import check_origin
from serving.service import Service
from tests.serving.gateway.running import Running, gateway

PATHS = {
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
    "/embed": "inputs",
    "/tokenize": "inputs",
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", [b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xe2\x82"])
def test_bytes_that_are_no_utf8_are_no_fault_of_ours(running: Running, path: str, wrong: bytes) -> None:
    model = b"smollm2" if "comp" in path or "resp" in path else b"minilm"
    body = b'{"model": "%b", "%b": "a%b"}' % (model, PATHS[path].encode(), wrong)
    status, told, _ = running.post(path, body)
    assert status == 400 and told


@pytest.mark.parametrize(
    ("name", "value", "fine"),
    [
        ("host", "127.0.0.1:8080", True),
        ("host", "localhost", True),
        ("host", "[::1]:8080", True),
        ("host", "gateway:8080", True),
        ("host", "evil.example:8080", False),
        ("host", "127.0.0.1.evil.example", False),
        ("host", "169.254.169.254", False),
        ("host", "", False),
        ("host", "a b", False),
        ("host", "[", False),
        ("origin", "http://localhost:3000", True),
        ("origin", "https://evil.example", False),
        ("origin", "null", False),
    ],
)
def test_pages_of_others_are_refused_without_keys(name: str, value: str, fine: bool) -> None:
    headers = [(b"host", b"127.0.0.1"), (name.encode(), value.encode())]
    if fine:
        return check_origin(headers, ["gateway"], public=False)
    with pytest.raises(ApiError) as raised:
        check_origin(headers, ["gateway"], public=False)
    assert raised.value.status == 403
    return None


def test_a_page_of_another_host_reaches_no_model(running: Running) -> None:
    body = {"model": "minilm", "input": "x"}
    assert running.post("/v1/embeddings", body)[0] == 200
    assert running.post("/v1/embeddings", body, Origin="http://evil.example")[0] == 403
    for path in ("/v1/models", "/", "/health"):
        assert running.get(path, Host="evil.example")[0] == 403
    # A place to go to is never made of what the caller calls this host.
    assert running.post("/v1/embeddings/", body)[0] == 404


def test_what_cannot_be_read_is_refused_before_it_is_sent(running: Running) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    for headers, status in (({"content-length": "1" + "0" * 15}, 413), ({"content-encoding": "gzip"}, 415)):
        connection = HTTPConnection(host, int(port), timeout=10)
        connection.putrequest("POST", "/v1/embeddings")
        for name, value in {"content-length": "2", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_a_head_without_end_is_cut_off(running: Running) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    before = psutil.Process(running.pid).memory_info().rss
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ")
        said = b""
        try:
            for _ in range(600):
                connection.sendall(b"y" * 100_000)
            said = connection.recv(100)
        except OSError:
            pass
    assert said == b"" or said.startswith(b"HTTP/1.1 431")
    assert psutil.Process(running.pid).memory_info().rss - before < 30e6  # of 60 MB


@pytest.mark.parametrize(
    "name", ["guided_json", "truncate_prompt_tokens", "prompt_logprobs", "chat_template"]
)
def test_what_would_change_an_answer_is_not_ignored(running: Running, name: str) -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    status, told, _ = running.post("/v1/chat/completions", {**body, name: 1})
    assert status == 400 and told["error"]["param"] == name
    assert running.post("/v1/chat/completions", {**body, name: None})[0] == 200


def test_a_request_whose_time_is_over_is_a_timeout(running: Running) -> None:
    """Not a fault of the server's, wherever it waited."""
    body = {"model": "smollm2", "prompt": "x", "max_tokens": 60, "ignore_eos": True, "stream": True}
    seen: list[int] = []

    def ask() -> None:
        status, told, _ = running.post("/v1/completions", body, **{"x-request-timeout": "0.3"})
        seen.append(504 if '"code":"timeout"' in str(told) else status)

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) <= {200, 503, 504} and len(seen) == 40


def test_a_gateway_that_stops_tells_every_caller(service: Service, tmp_path: Path) -> None:
    """A stream, the same as a response, and a whole answer, all longer than the time that is left."""
    ends: dict[str, Any] = {}
    body = {"model": "smollm2", "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    with gateway(service, log=tmp_path / "log") as stopping:
        client = OpenAI(base_url=f"{stopping.url}/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Hi"}]

        def stream() -> None:
            try:
                list(client.chat.completions.create(messages=messages, stream=True, **body))  # type: ignore[call-overload]
                ends["stream"] = "ended"
            except APIError as error:
                ends["stream"] = error.code

        def whole() -> None:
            try:
                client.chat.completions.create(messages=messages, **body)  # type: ignore[call-overload]
                ends["whole"] = "ended"
            except InternalServerError as error:
                ends["whole"] = (error.status_code, error.code, error.response.headers["retry-after"])

        threads = [threading.Thread(target=each) for each in (stream, whole)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        psutil.Process(stopping.pid).send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
    assert ends["stream"] in ("unavailable", "ended")
    assert ends["whole"] in ((503, "unavailable", "1"), "ended")
    assert "Traceback" not in (tmp_path / "log").read_text()
