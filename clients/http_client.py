"""Triton over HTTP, with the vocabulary of the gRPC clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import tritonclient.http as triton
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
from numpy.typing import NDArray

from clients.blocking import BlockingClient
from clients.errors import ClientError, ServerFault, Unavailable, translated
from clients.vocabulary import (
    Arrays,
    Tls,
    host_and_port,
    to_arrays,
    to_inputs,
)

DEFAULT_URL = "127.0.0.1:8000"


class HttpClient(BlockingClient):
    """A blocking client over one kept-alive connection; one per thread.

    Args:
        url: host:port of Triton's HTTP endpoint, or of a proxy before it.
        timeout: deadline of each call in seconds.
        tls: certificates; None: plain text. Triton itself speaks HTTP only, a proxy adds TLS.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout: float = 30.0, tls: Tls | None = None) -> None:
        self.url = url = host_and_port(url)
        self.timeout = timeout
        options: dict[str, Any] = {"ssl": True, "ssl_context_factory": tls.context} if tls else {}
        self._client = triton.InferenceServerClient(
            url, connection_timeout=None, network_timeout=None, **options
        )

    def infer(
        self,
        model: str,
        inputs: Arrays,
        *,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray]:
        """One request; see `clients.GrpcClient.infer`."""
        tensors = to_inputs(triton.InferInput, inputs)
        with self._call(timeout):
            result = self._client.infer(model, tensors, model_version=version, request_id=request_id)
        return to_arrays(result, [output["name"] for output in result.get_response()["outputs"]])

    def ready(self, model: str = "") -> bool:
        """Whether the server, or one model, says it is ready; False too where nobody answers."""
        try:
            with self._call(None):
                return bool(self._client.is_model_ready(model) if model else self._client.is_server_ready())
        except ClientError:
            return False

    def metadata(self, model: str) -> dict[str, Any]:
        """Name, versions, inputs and outputs of a model.

        Raises:
            ClientError: see `clients.errors`.
        """
        with self._call(None):
            return dict(self._client.get_model_metadata(model))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def _call(self, timeout: float | None) -> Iterator[None]:
        """Typed errors and a deadline over the whole call: the transport's own is for each read alone."""
        try:
            with (
                translated(self.url),
                gevent.Timeout(self.timeout if timeout is None else timeout, TimeoutError()),
            ):
                yield
        except HTTPConnectionClosed as error:
            raise Unavailable(f"{self.url}: the connection was closed before an answer came") from error
        except (HTTPParseError, ValueError) as error:
            raise ServerFault(f"{self.url}: the answer is not Triton's: {error}") from error
