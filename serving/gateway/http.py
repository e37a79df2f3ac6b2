"""HTTP as ASGI has it: bodies with limits, replies, streams of events, callers who leave.

Plain ASGI: a middleware of Starlette's BaseHTTPMiddleware costs six times as much for each request, and 15 us
for each event of a stream.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import orjson

from serving.gateway.errors import INTERNAL, ApiError
from serving.gateway.keys import Key
from serving.gateway.record import Record

T = TypeVar("T")
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
JSON = "application/json"


class Left(Exception):
    """The caller has left; there is nobody to answer."""


class Stopping:
    """Ends the requests that still run when the gateway stops, so that each hears of it.

    Attributes:
        now: they are ended.
    """

    def __init__(self) -> None:
        self.now = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A request runs in the present task."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - each request has one
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        """End them all: what they wait for is cancelled."""
        self.now = True
        for task in self._tasks:
            task.cancel()

    def error(self) -> ApiError:
        """What the caller of one that was ended is told, in the task that was cancelled."""
        _uncancel(asyncio.current_task())
        headers = {"retry-after": "1"}
        return ApiError(503, "the gateway stops", kind=INTERNAL, code="unavailable", headers=headers)


class Meter:
    """Counts the tokens that a request uses, as they are used."""

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, tokens: int) -> None:
        """Count some."""
        self.tokens += tokens


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        id: of the request, sent back in `x-request-id` and handed on to Triton.
        headers: names in small letters.
        body: whole.
        path: parts of the path by their names in the route.
        caller: whose key it is; None: no keys are set up.
        deadline: on the clock of `time.monotonic`, in seconds.
        meter: of its tokens.
        record: what is known of it, for metrics, spans and the audit log.
    """

    id: str
    headers: Mapping[str, str]
    body: bytes
    path: Mapping[str, str]
    caller: Key | None
    deadline: float
    meter: Meter = field(default_factory=Meter)
    record: Record = field(default_factory=Record)

    @property
    def seconds_left(self) -> float:
        """Until the deadline; at least a millisecond."""
        return max(0.001, self.deadline - time.monotonic())


@dataclass(frozen=True)
class Reply:
    """A whole response."""

    content: bytes
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """A response of server-sent events, each part one whole `data: ...` block or several.

    Attributes:
        parts: what is sent. When the caller leaves it is closed.
    """

    parts: AsyncGenerator[bytes, None]
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Reply | Events


def json_reply(value: Any, **more: Any) -> Reply:
    """A value as JSON; it may hold arrays of numpy and msgspec's structs."""
    content = orjson.dumps(value, default=msgspec.to_builtins, option=orjson.OPT_SERIALIZE_NUMPY)
    return Reply(content, **more)


def event(value: Any) -> bytes:
    """One event with a value as JSON."""
    return b"data: %b\n\n" % orjson.dumps(value)


def named_event(name: str, value: Any) -> bytes:
    """One event that has a name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(value))


DONE = b"data: [DONE]\n\n"


async def read_body(receive: Receive, headers: Mapping[str, str], most: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
        ApiError: it is too large, compressed, or does not come in time.
        Left: the caller has left.
    """
    if (coding := headers.get("content-encoding", "identity")) != "identity":
        raise ApiError(415, f"bodies in {coding[:50]} are not read: send it as it is", code="unsupported")
    length = headers.get("content-length", "")
    if length.isdigit() and (len(length) > 15 or int(length) > most):
        raise _too_large(most)
    here, late = asyncio.current_task(), False

    def end() -> None:
        nonlocal late
        late = True
        if here is not None:
            here.cancel()

    # `asyncio.wait_for` would read it in a task of its own (Python 3.10 and 3.11), which costs 20 us.
    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await _whole_body(receive, most)
    except asyncio.CancelledError:
        if not late:  # somebody else has cancelled it
            raise
        _uncancel(here)
        raise ApiError(408, f"the body did not come within {seconds:g} s", code="timeout") from None
    finally:
        timer.cancel()


async def _whole_body(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes", code="too_large")


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What some work gives; where the caller leaves before, the work is cancelled.

    Raises:
        Left: the caller has left.
    """
    here, left = asyncio.current_task(), False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        if here is not None:
            here.cancel()

    # The work runs in the present task: another one for each request costs as much as reading its body.
    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not left:  # somebody else has cancelled it
            raise
        _uncancel(here)
        raise Left from None
    finally:
        watcher.cancel()


def _uncancel(task: asyncio.Task[Any] | None) -> None:
    """A cancellation is dealt with: a timeout outside must not take it for its own."""
    if sys.version_info >= (3, 11) and task is not None:
        task.uncancel()


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a request, names in small letters; of one that comes twice, the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def send_reply(send: Send, reply: Reply, headers: Mapping[str, str]) -> None:
    """Answer with a whole response."""
    told = {
        **headers,
        **reply.headers,
        "content-type": reply.media_type,
        "content-length": str(len(reply.content)),
    }
    await send({"type": "http.response.start", "status": reply.status, "headers": _encoded(told)})
    await send({"type": "http.response.body", "body": reply.content})


async def send_events(receive: Receive, send: Send, events: Events, headers: Mapping[str, str]) -> None:
    """Answer with events, until they end or the caller leaves.

    Raises:
        Left: the caller has left.
    """
    told = {
        **headers,
        **events.headers,
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store",
        "x-accel-buffering": "no",  # nginx would collect the events
    }
    await send({"type": "http.response.start", "status": 200, "headers": _encoded(told)})

    async def pass_on() -> None:
        async with aclosing(events.parts) as parts:
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})

    await unless_left(receive, pass_on())
    await send({"type": "http.response.body", "body": b""})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [
        (name.encode("latin-1"), value.encode("latin-1", errors="replace")) for name, value in headers.items()
    ]
