"""Clients that leave, stall, come all at once, or send garbage."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from clients import AsyncGrpcClient, ClientError, GrpcClient
from tests.reliability.callers import DEADLINE, GREEDY, LATE_SECONDS, Ended
from tests.reliability.models import PROMPTS, TALES, WORDS
from tests.reliability.scene import Scene


@contextmanager
def clients_leave(scene: Scene) -> Iterator[None]:
    with suppress(ClientError), GrpcClient(scene.world.grpc, timeout=DEADLINE) as client:
        for _ in range(scene.chance.randrange(1, 8)):
            stream = client.generate(PROMPTS[0], model=TALES, **{**GREEDY, "max_tokens": 400})
            next(stream)
            stream.close()
    yield


@contextmanager
def client_stalls(scene: Scene) -> Iterator[None]:
    """It asks for a long stream and reads a byte now and then."""
    body = json.dumps({"text_input": "a", "stream": True, "sampling_parameters": '{"max_tokens": 300}'})
    head = (
        f"POST /v2/models/{TALES}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with suppress(OSError), socket.create_connection(("127.0.0.1", scene.world.ports[0]), timeout=2) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.sendall((head + body).encode())
        slow.recv(1)
        scene.hold()
        slow.recv(1)
    yield


@contextmanager
def client_floods(scene: Scene) -> Iterator[None]:
    """Three hundred requests at once, each of which must end as any other."""

    async def flood() -> list[Ended]:
        async with AsyncGrpcClient(scene.world.grpc, timeout=DEADLINE) as client:

            async def one(number: int) -> Ended:
                at, how = time.monotonic(), "answered"
                try:
                    if number % 3:
                        await client.embed([f"fish {number}"], model=WORDS)
                    else:
                        await client.complete(PROMPTS[0], model=TALES, **{**GREEDY, "max_tokens": 4})
                except ClientError as error:
                    how = type(error).__name__
                seconds = time.monotonic() - at
                late = f"late: {seconds:.1f} s" if seconds > DEADLINE + LATE_SECONDS else ""
                return Ended("flood", at, seconds, how, late)

            return await asyncio.gather(*(one(number) for number in range(300)))

    scene.calls.ended += asyncio.run(flood())
    yield


_GARBAGE = (
    b"\x00" * 300,
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    b"POST /v2/models/words/infer HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n{",
    b"POST /v2/models/words/infer HTTP/1.1\r\nContent-Length: 5\r\n\r\n[[[[[",
    b'POST /v2/models/rows/infer HTTP/1.1\r\nContent-Length: 24\r\n\r\n{"inputs":[{"name":"a"}]}',
    b"POST /v2/models/tales/generate HTTP/1.1\r\nContent-Length: 26\r\n\r\n"
    + b'{"text_input":"\xff\xfe\x80abcd"} ',
    b"POST /v2/models/tales/generate_stream HTTP/1.1\r\nContent-Length: 40\r\n\r\n"
    + b'{"text_input":1e999,"stream":"no"}      ',
    b"POST /v2/models/%2e%2e%2f/versions/-1/infer HTTP/1.1\r\nInference-Header-Content-Length: -1\r\n\r\n",
)


@contextmanager
def client_sends_garbage(scene: Scene) -> Iterator[None]:
    for port in scene.world.ports:
        for garbage in scene.chance.sample(_GARBAGE, 4):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.3) as one:
                one.sendall(garbage)
                one.settimeout(0.1)
                one.recv(100)
    yield
