"""The gateway as an ASGI application: one table of routes, each closed unless it says otherwise."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clients.errors import ClientError
from serving.gateway.errors import (
    INTERNAL,
    ApiError,
    Shape,
    cohere_shape,
    from_client,
    openai_shape,
    tei_shape,
)
from serving.gateway.http import (
    Answer,
    Call,
    Events,
    Left,
    Receive,
    Send,
    event,
    headers_of,
    json_reply,
    read_body,
    send_events,
    send_reply,
    unless_left,
)
from serving.gateway.protocols import chat, completions, embeddings, models, ranking, tasks, tei
from serving.gateway.service import Gateway
from serving.gateway.settings import GatewaySettings

_log = logging.getLogger(__name__)
Handler = Callable[[Gateway, Call], Coroutine[Any, Any, Answer]]
# What OpenAI's SDK says of how long it waits for an answer, in seconds.
_DEADLINES = ("x-stainless-read-timeout", "x-stainless-timeout", "x-request-timeout")


@dataclass(frozen=True)
class Endpoint:
    """One path.

    Attributes:
        methods: of HTTP.
        handler: answers a request.
        shape: of errors.
        public: whether it takes no key.
    """

    path: str
    methods: tuple[str, ...]
    handler: Handler
    shape: Shape = openai_shape
    public: bool = False


async def _health(gateway: Gateway, call: Call) -> Answer:
    problem = gateway.models.problem
    return json_reply({"status": problem or "serving"}, status=503 if problem else 200)


ENDPOINTS = (
    Endpoint("/health", ("GET",), _health, public=True),
    Endpoint("/v1/models", ("GET",), models.models),
    Endpoint("/v1/models/{name:path}", ("GET",), models.model),
    Endpoint("/v1/chat/completions", ("POST",), chat.chat),
    Endpoint("/v1/completions", ("POST",), completions.completions),
    Endpoint("/v1/embeddings", ("POST",), embeddings.embeddings),
    Endpoint("/v1/rerank", ("POST",), ranking.rerank, cohere_shape),
    Endpoint("/v2/rerank", ("POST",), ranking.rerank, cohere_shape),
    Endpoint("/rerank", ("POST",), ranking.tei_rerank, tei_shape),
    Endpoint("/v1/classify", ("POST",), tasks.classify),
    Endpoint("/embed", ("POST",), tei.embed, tei_shape),
    Endpoint("/similarity", ("POST",), tei.similarity, tei_shape),
    Endpoint("/predict", ("POST",), tei.predict, tei_shape),
    Endpoint("/v1/tasks/{task}", ("POST",), tasks.task),
)


class _Served:
    """An endpoint as ASGI has it."""

    def __init__(self, gateway: Gateway, endpoint: Endpoint) -> None:
        self._gateway, self._endpoint = gateway, endpoint

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        gateway, endpoint = self._gateway, self._endpoint
        began = time.monotonic()
        headers = headers_of(scope)
        number = _id_of(headers)
        told = {"x-request-id": number}
        sent = False

        async def noting(message: dict[str, Any]) -> None:
            nonlocal sent
            sent = True
            await send(message)

        try:
            try:
                caller = None if endpoint.public else gateway.caller(headers)
                body = await read_body(
                    receive, gateway.settings.max_body_bytes, gateway.settings.body_seconds
                )
                deadline = began + _seconds(headers, gateway.settings.timeout)
                call = Call(number, headers, body, scope.get("path_params", {}), caller, deadline)
                async with gateway.counted(call) as rates:
                    told.update(rates)
                    answer = await unless_left(receive, endpoint.handler(gateway, call))
                    if isinstance(answer, Events):
                        events = Events(_ending(answer.parts, endpoint.shape), answer.headers)
                        await send_events(receive, noting, events, told)
                    else:
                        await send_reply(noting, answer, told)
            except ClientError as error:
                raise from_client(error) from error
            except (ApiError, Left):
                raise
            except Exception as error:
                _log.exception("request %s failed", number)
                raise ApiError(500, "the gateway failed", kind=INTERNAL, code="internal") from error
        except Left:
            return
        except ApiError as error:
            if sent:
                raise
            reply = json_reply(endpoint.shape(error), status=error.status, headers=error.headers)
            await send_reply(send, reply, told)


async def _ending(events: AsyncGenerator[bytes, None], shape: Shape) -> AsyncGenerator[bytes, None]:
    """A stream that ends in an error event where it fails: a client takes a silent end for a whole answer."""
    try:
        async with aclosing(events) as parts:
            async for part in parts:
                yield part
    except ClientError as error:
        yield event(shape(from_client(error)))
    except ApiError as error:
        yield event(shape(error))
    except Exception:  # noqa: BLE001 - whatever it is, the caller must hear of it
        _log.exception("a stream failed")
        yield event(shape(ApiError(500, "the gateway failed", kind=INTERNAL, code="internal")))


def _id_of(headers: dict[str, str]) -> str:
    """The caller's own id of a request, if it is one that a log can hold, or a new one."""
    given = headers.get("x-request-id", "")
    if given and len(given) <= 128 and given.isascii() and given.replace("-", "").replace("_", "").isalnum():
        return given
    return uuid.uuid4().hex


def _seconds(headers: dict[str, str], most: float) -> float:
    for name in _DEADLINES:
        try:
            given = float(headers[name])
        except (KeyError, ValueError):
            continue
        if 0 < given < most:
            return given
    return most


async def _no_such_path(request: Request, error: Exception) -> Response:
    """What a path or a method gets that there is not."""
    status = getattr(error, "status_code", 404)
    told = ApiError(status, f"there is no {request.method} {request.url.path[:200]}", code="not_found")
    content = json_reply(openai_shape(told)).content
    return Response(content, status, dict(getattr(error, "headers", None) or {}), "application/json")


def application(settings: GatewaySettings) -> Starlette:
    """The gateway.

    Raises:
        ShoalError: the file of keys cannot be read.
    """
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.close()

    routes = [
        Route(endpoint.path, _Served(gateway, endpoint), methods=list(endpoint.methods))
        for endpoint in ENDPOINTS
    ]
    app = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={404: _no_such_path, 405: _no_such_path}
    )
    app.state.gateway = gateway
    return app
