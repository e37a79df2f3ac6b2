"""Connections on which no request comes, those on which one comes slowly, and callers who do not read."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any

import pytest
import uvicorn

from serving.gateway import connection
from serving.gateway.connection import Connection

PATIENCE_SECONDS = 0.3
HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"


LEFT: list[bool] = []
PART = b"a" * (16 << 20)  # more than the kernel keeps


async def served(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with the body; `/endless` without an end, until the caller leaves, and `/much` with much."""
    body = b""
    if scope["path"] != "/":
        length = (b"content-length", str(1 << 40 if scope["path"] == "/endless" else len(PART)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": PART, "more_body": scope["path"] == "/endless"})
    while scope["path"] == "/endless":
        await send({"type": "http.response.body", "body": PART, "more_body": True})
        with suppress(asyncio.TimeoutError):
            if (await asyncio.wait_for(receive(), 0.001))["type"] == "http.disconnect":
                LEFT.append(True)
                return
    if scope["path"] == "/much":
        return
    while message := await receive():
        body += message["body"]
        if not message["more_body"]:
            break
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server() -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(
        served, port=0, http=Connection, lifespan="off", log_level="warning", timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE_SECONDS", PATIENCE_SECONDS)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def port(server: uvicorn.Server) -> int:
    made: int = server.servers[0].sockets[0].getsockname()[1]
    return made


def answer(made: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(made)
    response.begin()
    return response.status, response.read()


@pytest.mark.parametrize("sent", [b"", b"P", HEAD[:-2], HEAD[:-4] + b"\r\nx: y"])
def test_a_connection_without_a_whole_head_ends(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=300) as made:
        made.sendall(sent)
        assert made.recv(1) == b""


@pytest.mark.parametrize("sent", [b"\r\n", HEAD[:10]])
def test_so_does_one_whose_next_head_does_not_come(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=300) as made:
        made.sendall(HEAD + b"ab")
        assert answer(made) == (200, b"ab")
        made.sendall(sent)
        assert made.recv(1) == b""


def test_a_head_in_parts_a_slow_body_and_a_later_request_are_answered(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=300) as made:
        for body in (b"ab", b"cd"):
            for sent in (HEAD[:5], HEAD[5:], body[:1]):
                made.sendall(sent)
                time.sleep(PATIENCE_SECONDS / 10)
            time.sleep(3 * PATIENCE_SECONDS)
            made.sendall(body[1:])
            assert answer(made) == (200, body)
            time.sleep(3 * PATIENCE_SECONDS)  # idle after an answer: that is uvicorn's own time


@pytest.mark.parametrize("path", ["/endless", "/much"])
@pytest.mark.parametrize("more", ["", "connection: close\r\n"])
def test_who_does_not_read_is_left(server: uvicorn.Server, port: int, path: str, more: str) -> None:
    """The connection ends although it is never closed here, and the application hears of it."""
    LEFT.clear()
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        made.connect(("127.0.0.1", port))
        made.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n{more}\r\n".encode())
        assert made.recv(1) == b"H"
        ours = made.getsockname()
        end = time.monotonic() + 30
        while any(each.client == ours for each in server.server_state.connections.copy()):
            assert time.monotonic() < end
            time.sleep(0.01)
        while path == "/endless" and not LEFT:
            assert time.monotonic() < end
            time.sleep(0.01)
