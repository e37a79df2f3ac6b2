"""Triton over HTTP, with the vocabulary of the gRPC clients."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead, RemoteDisconnected
from typing import Any
from urllib.parse import quote

import gevent.monkey
import tritonclient.http as triton
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from clients.blocking import BlockingClient
from clients.errors import ServerFault, Unavailable, translated
from clients.generation import Part, as_json, microseconds, part_of
from clients.vocabulary import (
    Arrays,
    Tls,
    host_and_port,
    to_arrays,
    to_inputs,
)
from shoal.admin import HEADER

DEFAULT_URL = "127.0.0.1:8000"
# Where gevent has patched Python, as in Locust, `threading` tells greenlets apart, which share the loop of
# their thread.
_thread_id = gevent.monkey.get_original("threading", "get_ident")


class HttpClient(BlockingClient):
    """A blocking client over one kept-alive connection, for the thread that makes it.

    Its transport belongs to the event loop of a thread: in another one it would wait forever.

    Args:
        url: host:port of Triton's HTTP endpoint, or of a proxy before it.
        timeout: deadline of each call in seconds.
        tls: certificates; None: plain text. Triton itself speaks HTTP only, a proxy adds TLS.
        admin_key: opens a server's closed endpoints, of which `config` is one; "": none.

    Raises:
        RuntimeError: by every call from another thread.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        tls: Tls | None = None,
        admin_key: str = "",
    ) -> None:
        super().__init__(timeout)
        self.url = url = host_and_port(url)
        self._tls = tls
        self._admin = {HEADER: admin_key} if admin_key else None
        self._thread = _thread_id()
        options: dict[str, Any] = {"ssl": True, "ssl_context_factory": tls.context} if tls else {}
        self._client = triton.InferenceServerClient(
            url, connection_timeout=None, network_timeout=None, **options
        )

    def _infer(
        self, model: str, inputs: Arrays, version: str, timeout: float, request_id: str
    ) -> dict[str, NDArray]:
        tensors = to_inputs(triton.InferInput, inputs)
        with self._call(timeout):
            result = self._client.infer(model, tensors, model_version=version, request_id=request_id)
        return to_arrays(result, [output["name"] for output in result.get_response()["outputs"]])

    def _stream(
        self, model: str, inputs: Arrays, timeout: float, request_id: str
    ) -> Generator[Part, None, None]:
        """See `BlockingClient`; through Triton's `generate_stream`, on a connection of its own."""
        body = as_json(inputs) | {"id": request_id, "timeout": microseconds(timeout)}
        deadline = time.monotonic() + timeout
        connection = self._connection(timeout)
        with translated(self.url), _transport_errors(self.url), closing(connection):
            path = f"/v2/models/{quote(model, safe='')}/generate_stream"
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                if response.status != 200:
                    raise InferenceServerException(_error_of(response.read()), status=str(response.status))
                while (line := response.readline()).endswith(b"\n"):  # else it was cut off
                    if connection.sock is not None:
                        connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
                    if line.startswith(b"data: "):
                        event = json.loads(line[len(b"data: ") :])
                        if "error" in event:
                            raise InferenceServerException(str(event["error"]))
                        part = part_of(event)
                        yield part
                        if part.finish_reason:
                            return
        raise Unavailable(f"{self.url}: the stream ended before the answer did")

    def _config(self, model: str) -> dict[str, Any]:
        with self._call(self.timeout):
            return dict(self._client.get_model_config(model, headers=self._admin))

    def _connection(self, timeout: float) -> HTTPConnection:
        if self._tls:
            return HTTPSConnection(self.url, timeout=timeout, context=self._tls.context())
        return HTTPConnection(self.url, timeout=timeout)

    def _ready(self, model: str) -> bool:
        with self._call(self.timeout):
            return bool(self._client.is_model_ready(model) if model else self._client.is_server_ready())

    def _metadata(self, model: str) -> dict[str, Any]:
        with self._call(self.timeout):
            return dict(self._client.get_model_metadata(model))

    def _close(self) -> None:
        self._client.close()

    @contextmanager
    def _call(self, timeout: float) -> Iterator[None]:
        """Typed errors and a deadline over the whole call: the transport's own is for each read alone."""
        if _thread_id() != self._thread:
            raise RuntimeError("an HttpClient is for the thread that made it: make one in each")
        with (
            _transport_errors(self.url),
            translated(self.url),
            gevent.Timeout(timeout, TimeoutError()),
        ):
            yield


@contextmanager
def _transport_errors(url: str) -> Iterator[None]:
    """What HTTP itself raises, typed."""
    try:
        yield
    except (HTTPConnectionClosed, RemoteDisconnected, IncompleteRead) as error:
        raise Unavailable(f"{url}: the connection was closed before an answer came") from error
    except (HTTPParseError, HTTPException, ValueError) as error:
        if str(error).startswith("Incomplete response"):  # geventhttpclient has no type for it
            raise Unavailable(f"{url}: the connection was closed before the answer ended") from error
        raise ServerFault(f"{url}: the answer is not Triton's: {error}") from error


def _error_of(body: bytes) -> str:
    try:
        return str(json.loads(body.removeprefix(b"data: "))["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:400] or "no reason given"
