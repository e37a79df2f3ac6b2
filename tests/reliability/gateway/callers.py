"""What callers of the gateway do: leave, read or send slowly, come all at once, send too much or nonsense."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPException, HTTPResponse

from tests.reliability.callers import DEADLINE, LATE_SECONDS
from tests.reliability.gateway.asking import LONG, SHORT, Told, body, read, whole
from tests.reliability.gateway.scene import QUEUE, ROWS, Scene

# In which the gateway wants a body, and in which a caller must send the head of a request, or read.
BODY_SECONDS, PATIENCE_SECONDS = 30.0, 30.0
_TAKES = 2 * (ROWS + QUEUE)
_WORDS = "a whale that swims in the sea with fish "


def _response(connection: socket.socket) -> HTTPResponse:
    made = HTTPResponse(connection)
    made.begin()
    return made


def gone_while_queued(scene: Scene) -> None:
    """More requests than run at once; those that came last leave first."""
    with suppress(OSError):
        held = [scene.asker.sent(body(0, LONG, stream=True)) for _ in range(_TAKES)]
        scene.hold(0.0, 0.3)
        for connection in reversed(held):
            connection.close()


def gone_in_prefill(scene: Scene) -> None:
    asked = {**body(0, SHORT, stream=True), "prompt": _WORDS * scene.chance.randrange(1, 20)}
    for _ in range(scene.chance.randrange(1, 6)):
        with suppress(OSError), scene.asker.sent(asked):
            scene.hold(0.0, 0.03)


def gone_in_the_midst_of_an_answer(scene: Scene) -> None:
    for _ in range(scene.chance.randrange(1, 6)):
        with suppress(OSError), scene.asker.sent(body(1, LONG, stream=True)) as connection:
            connection.settimeout(DEADLINE + LATE_SECONDS)
            for _ in range(scene.chance.randrange(1, 20)):
                connection.recv(500)


def reads_slowly(scene: Scene) -> None:
    """A byte a second for a while, and then the rest."""
    at, which = time.monotonic(), scene.chance.randrange(2)
    told = Told(0)
    try:
        with scene.asker.sent(body(which, LONG, stream=True), receive_bytes=2048) as connection:
            connection.settimeout(DEADLINE + LATE_SECONDS)
            response = _response(connection)
            first = b""
            for _ in range(scene.chance.randrange(1, 4) if response.status == 200 else 0):
                first += response.read(1)
                time.sleep(1)
            told = read(response, begun=first)
    except (OSError, HTTPException) as error:
        told.error, told.wrong = type(error).__name__, f"{error!r}"
    scene.asker.judge(told, which, LONG, at)
    scene.asker.note("stream, read slowly", at, told)


def burst(scene: Scene) -> None:
    """Four times as many requests at once as the gateway takes; each must end as any other."""
    at, held = time.monotonic(), []
    for number in range(4 * _TAKES):
        with suppress(OSError):
            held.append((number % 2, scene.asker.sent(body(number % 2, SHORT, stream=False))))
    for which, connection in held:
        told = Told(0)
        try:
            with connection:
                connection.settimeout(max(0.1, at + DEADLINE + LATE_SECONDS + 1 - time.monotonic()))
                told = read(_response(connection))
        except (OSError, HTTPException) as error:
            told.error, told.wrong = type(error).__name__, f"{error!r}"
        scene.asker.judge(told, which, SHORT, at)
        scene.asker.note("burst", at, told)


def body_of_100_mb(scene: Scene) -> None:
    """It is refused; a caller that goes on to send may find the connection closed."""
    at, size, part = time.monotonic(), 100 << 20, b"a" * (1 << 20)
    told = Told(0, error="closed")
    with suppress(OSError, HTTPException), scene.asker.connected() as connection:
        connection.sendall(scene.asker.head(size))
        with suppress(OSError):
            for _ in range(100):
                connection.sendall(part)
        response = _response(connection)
        told = whole(response.status, response.read(), dict(response.getheaders()))
        if (told.status, told.error) not in ((413, "too_large"), (401, "invalid_api_key")):
            told.wrong = f"told {told.how}"
    scene.asker.note("body of 100 MB", at, told)


def body_comes_slowly(scene: Scene) -> None:
    """A byte a second, beside other faults, since the gateway waits for half a minute."""

    def dribble() -> None:
        at, told = time.monotonic(), Told(0, error="closed")
        content = json.dumps(body(0, SHORT, stream=False)).encode()
        with suppress(OSError, HTTPException), scene.asker.connected() as connection:
            connection.sendall(scene.asker.head(len(content)))
            connection.settimeout(1.0)
            begin = b""
            for number in range(int(BODY_SECONDS + LATE_SECONDS) + 5):
                connection.sendall(content[number : number + 1])
                with suppress(TimeoutError):
                    begin = connection.recv(1, socket.MSG_PEEK)
                    break
            else:
                told.wrong = "nobody minded"
            if begin:
                response = _response(connection)
                told = whole(response.status, response.read(), dict(response.getheaders()))
                if told.status != 408:
                    told.wrong = scene.asker.refused(told, at)
        scene.asker.note("slow body", at, told, BODY_SECONDS)

    thread = threading.Thread(target=dribble, daemon=True)
    thread.start()
    scene.behind_time.append(thread)


_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2  # how TLS begins, and nonsense
_GARBAGE = (
    _HELLO,
    b"\x00" * 300,
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n[[[[[",
    b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET http://[::1/v1/models HTTP/1.1\r\n\r\n",
    b"GET /v1/models?\xff\xfe HTTP/1.1\r\nauthorization: \xff\xfe\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
)


def garbage(scene: Scene) -> None:
    """The gateway answers an error, or ends the connection."""
    for sent in (scene.chance.choice(_GARBAGE), os.urandom(scene.chance.randrange(1, 2000)) + b"\r\n\r\n"):
        at, told = time.monotonic(), Told(0, error="closed")
        with suppress(ConnectionError), scene.asker.connected() as connection:
            connection.sendall(sent)
            try:
                if answer := connection.recv(1000):
                    told = Told(int(answer.split(b" ")[1]), error="refused")
                    told.wrong = "" if 200 <= told.status < 500 else f"{answer!r}"
            except TimeoutError:
                told.wrong = f"no answer to {sent[:80]!r}"
        scene.asker.note("garbage", at, told)


def half_open(scene: Scene) -> None:
    """A connection on which nothing comes, or half the head of a request, and no end."""
    with suppress(OSError):
        connection = scene.asker.connected()
        if scene.chance.random() < 0.5:
            connection.sendall(scene.asker.head(100)[:40])
        scene.half_open.append(connection)


def reads_nothing(scene: Scene) -> None:
    """Four answers are asked for, with much about each token, and nobody reads them."""
    asked = {**body(0, LONG, stream=True), "n": 4, "logprobs": 5}
    with suppress(OSError):
        scene.half_open.append(scene.asker.sent(asked, receive_bytes=2048))
