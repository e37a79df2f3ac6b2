"""Triton over gRPC: the client that blocks; `clients.async_grpc` has its asyncio twin."""

from __future__ import annotations

import time
from collections.abc import Generator
from queue import Empty, SimpleQueue
from typing import Any

import tritonclient.grpc as triton
from numpy.typing import NDArray

from clients.balancing import target_of
from clients.blocking import BlockingClient
from clients.errors import translated
from clients.generation import (
    Part,
    microseconds,
    part_of,
)
from clients.vocabulary import (
    Arrays,
    Tls,
    to_arrays,
    to_inputs,
)
from shoal.admin import GRPC_HEADER

DEFAULT_URL = "127.0.0.1:8001"


class _Connection(triton.InferenceServerClient):
    """Closes its channel once. NVIDIA's class closes it again when it is collected.

    Under gevent gRPC counts each close. A second one makes it stop while other channels are open, or wait for
    ever for a lock as Python ends.
    """

    _closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            super().close()


class GrpcClient(BlockingClient):
    """A blocking client; safe to share between threads.

    Args:
        url: host:port of Triton's gRPC endpoint; for several servers see `clients.balancing.target_of`.
        timeout: deadline of each call in seconds.
        tls: certificates; None: plain text.
        admin_key: opens a server's closed endpoints, of which `config` is one; "": none.
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
        self.url, self._options = target_of(url, tls)
        self._admin = {GRPC_HEADER: admin_key} if admin_key else None
        with translated(self.url):
            self._client = _Connection(self.url, **self._options)

    def _infer(
        self, model: str, inputs: Arrays, version: str, timeout: float, request_id: str
    ) -> dict[str, NDArray]:
        tensors = to_inputs(triton.InferInput, inputs)
        with translated(self.url):
            result = self._client.infer(
                model,
                tensors,
                model_version=version,
                request_id=request_id,
                client_timeout=timeout,
            )
        return to_arrays(result, [output.name for output in result.get_response().outputs])

    def _stream(
        self, model: str, inputs: Arrays, timeout: float, request_id: str
    ) -> Generator[Part, None, None]:
        """See `BlockingClient`; many may run at once."""
        arrived: SimpleQueue[Any] = SimpleQueue()
        deadline = time.monotonic() + timeout
        with translated(self.url):
            # A client has one stream at most; those of one address share their connections.
            stream = _Connection(self.url, **self._options)
            final = ended = False
            try:
                # Without `triton_grpc_error`, which gives errors a status and makes Triton 2.51 crash where
                # several come at once: `clients.errors` tells them by their text.
                stream.start_stream(lambda result, error: arrived.put((result, error)))
                stream.async_stream_infer(
                    model,
                    to_inputs(triton.InferInput, inputs),
                    request_id=request_id,
                    enable_empty_final_response=True,
                    timeout=microseconds(timeout),
                )
                while not final:
                    try:
                        result, error = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
                    except Empty:
                        raise TimeoutError from None
                    ended = error is not None
                    if error is not None:
                        raise error
                    part, final = read_part(result)
                    if part is not None:
                        ended = final or bool(part.finish_reason)
                        yield part
            finally:
                # An answer that has ended is not cancelled: a cancellation that meets the end of its request
                # makes Triton 2.51 crash, or keep the model for ever.
                stream.stop_stream(cancel_requests=not (final or ended))
                stream.close()

    def _config(self, model: str) -> dict[str, Any]:
        with translated(self.url):
            answer = self._client.get_model_config(
                model, headers=self._admin, as_json=True, client_timeout=self.timeout
            )
            return dict(answer["config"])

    def _ready(self, model: str) -> bool:
        with translated(self.url):
            if model:
                return bool(self._client.is_model_ready(model, client_timeout=self.timeout))
            return bool(self._client.is_server_ready(client_timeout=self.timeout))

    def _metadata(self, model: str) -> dict[str, Any]:
        with translated(self.url):
            return dict(self._client.get_model_metadata(model, as_json=True, client_timeout=self.timeout))

    def _close(self) -> None:
        self._client.close()


def read_part(result: Any) -> tuple[Part | None, bool]:
    """A response of a stream: its part, None where it only ends the stream, and whether it is the last."""
    response = result.get_response()
    names = [output.name for output in response.outputs]
    part = part_of(to_arrays(result, names)) if names else None
    return part, bool(response.parameters["triton_final_response"].bool_param)
