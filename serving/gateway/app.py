"""The gateway as an ASGI application: one table of routes, each closed unless it says otherwise."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clients.errors import ClientError
from serving.gateway.endpoints import ENDPOINTS, Endpoint
from serving.gateway.errors import (
    INTERNAL,
    ApiError,
    Shape,
    from_client,
    openai_shape,
)
from serving.gateway.http import (
    Call,
    Events,
    Left,
    Receive,
    Send,
    Stopping,
    event,
    headers_of,
    json_reply,
    read_body,
    send_events,
    send_reply,
    unless_left,
)
from serving.gateway.record import Record
from serving.gateway.service import Gateway
from serving.gateway.settings import GatewaySettings

_log = logging.getLogger(__name__)
# What OpenAI's SDK says of how long it waits for an answer, in seconds.
_DEADLINES = ("x-stainless-read-timeout", "x-stainless-timeout", "x-request-timeout")


class _Served:
    """An endpoint as ASGI has it."""

    def __init__(self, gateway: Gateway, endpoint: Endpoint) -> None:
        self._gateway, self._endpoint = gateway, endpoint

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        observed, endpoint, headers = self._gateway.observed, self._endpoint, headers_of(scope)
        record = observed.begin(
            _id_of(headers), scope["method"], endpoint.path, headers, public=endpoint.public
        )
        try:
            with self._gateway.stopping.running():
                await self._serve(scope, receive, send, headers, record)
        except asyncio.CancelledError:
            record.stopped()
            raise
        finally:
            observed.end(record)

    async def _serve(
        self, scope: dict[str, Any], receive: Receive, send: Send, headers: dict[str, str], record: Record
    ) -> None:
        gateway, endpoint, number = self._gateway, self._endpoint, record.id
        told = {"x-request-id": number}
        sent = False

        async def noting(message: dict[str, Any]) -> None:
            nonlocal sent
            sent = True
            record.sent(message)
            await send(message)

        try:
            try:
                gateway.check_origin(scope["headers"], public=endpoint.public)
                caller = None if endpoint.public else gateway.caller(headers)
                record.key = caller.name if caller is not None else ""
                body = await read_body(
                    receive, headers, gateway.settings.max_body_bytes, gateway.settings.body_seconds
                )
                record.took(body)
                deadline = record.began + _seconds(headers, gateway.settings.timeout)
                path = scope.get("path_params", {})
                call = Call(number, headers, body, path, caller, deadline, record=record)
                async with gateway.counted(call) as rates:
                    told.update(rates)
                    work = partial(endpoint.handler, gateway, call)
                    answer = await unless_left(
                        receive, gateway.kept(call, endpoint.path, endpoint.keeps, work)
                    )
                    if isinstance(answer, Events):
                        parts = _ending(answer.parts, endpoint.shape, record, gateway.stopping)
                        events = Events(parts, answer.headers)
                        await send_events(receive, noting, events, told)
                    else:
                        await send_reply(noting, answer, told)
            except ClientError as error:
                raise from_client(error) from error
            except asyncio.CancelledError:
                if sent or not gateway.stopping.now:
                    raise
                raise gateway.stopping.error() from None
            except (ApiError, Left):
                raise
            except Exception as error:
                _log.exception("request %s failed", number)
                raise ApiError(500, "the gateway failed", kind=INTERNAL, code="internal") from error
        except Left:
            record.left()
        except ApiError as error:
            record.failed(error)
            if sent:
                raise
            reply = json_reply(endpoint.shape(error), status=error.status, headers=error.headers)
            await send_reply(noting, reply, told)


async def _ending(
    events: AsyncGenerator[bytes, None], shape: Shape, record: Record, stopping: Stopping
) -> AsyncGenerator[bytes, None]:
    """A stream that ends in an error event where it fails: a client takes a silent end for a whole answer."""
    try:
        async with aclosing(events) as parts:
            async for part in parts:
                yield part
        return
    except ClientError as error:
        failed = from_client(error)
    except ApiError as error:
        failed = error
    except asyncio.CancelledError:
        if not stopping.now:
            raise
        failed = stopping.error()
    except Exception:  # noqa: BLE001 - whatever it is, the caller must hear of it
        _log.exception("a stream failed")
        failed = ApiError(500, "the gateway failed", kind=INTERNAL, code="internal")
    record.failed(failed)
    yield event(shape(failed))


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
    path = request.url.path
    said = f"there is no {request.method} {path[:200]}"
    if allowed := (getattr(error, "headers", None) or {}).get("Allow"):
        said += f": it takes {allowed}"
    elif any(endpoint.path == f"/v1{path}" for endpoint in ENDPOINTS):
        said += ": the base URL of OpenAI's clients ends in /v1"
    told = ApiError(status, said, code="not_found")
    request.app.state.gateway.observed.metrics.no_such_path(status)
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
    app.router.redirect_slashes = False  # the place would be made of what the caller says that it has called
    app.state.gateway = gateway
    return app
