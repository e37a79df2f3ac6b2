"""Triton over gRPC with asyncio, in the vocabulary of the blocking clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any, TypeVar

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray

from clients.answers import Call
from clients.asynchronous import AsyncClient
from clients.balancing import target_of
from clients.errors import translated
from clients.generation import Part, microseconds
from clients.grpc_client import DEFAULT_URL, read_part
from clients.vocabulary import Arrays, Tls, to_arrays, to_inputs
from shoal.admin import GRPC_HEADER

T = TypeVar("T")
CONCURRENT_BATCHES = 8


class AsyncGrpcClient(AsyncClient):
    """The asyncio twin of `GrpcClient`. Cancelling a call cancels the request on the server; a call of many
    texts or rows has up to 8 requests under way at once.

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
        self.url, options = target_of(url, tls)
        self._admin = {GRPC_HEADER: admin_key} if admin_key else None
        with translated(self.url):
            self._client = triton_aio.InferenceServerClient(self.url, **options)

    async def _infer(
        self, model: str, inputs: Arrays, version: str, timeout: float, request_id: str
    ) -> dict[str, NDArray]:
        tensors = to_inputs(triton.InferInput, inputs)
        with translated(self.url):
            result = await self._client.infer(
                model,
                tensors,
                model_version=version,
                request_id=request_id,
                client_timeout=timeout,
            )
        return to_arrays(result, [output.name for output in result.get_response().outputs])

    async def _stream(
        self, model: str, inputs: Arrays, timeout: float, request_id: str
    ) -> AsyncGenerator[Part, None]:
        """See `AsyncClient`."""
        # Made here: what fails inside of the iterator would cancel the call without a word.
        request = {
            "model_name": model,
            "inputs": to_inputs(triton.InferInput, inputs),
            "request_id": request_id,
            "enable_empty_final_response": True,
            "timeout": microseconds(timeout),
        }

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield request

        with translated(self.url):
            responses = self._client.stream_infer(requests(), stream_timeout=timeout)
            ended = False
            try:
                async for result, error in responses:
                    ended |= error is not None
                    if error is not None:
                        raise error
                    part, final = read_part(result)
                    ended |= final or bool(part and part.finish_reason)
                    if part is not None:
                        yield part
            except asyncio.CancelledError:  # `close` cancels what runs on the channel
                self._check_open()
                raise
            finally:
                if ended:  # see `GrpcClient._stream`; the call must be read to its end, or gRPC cancels it
                    async for _ in responses:
                        pass
                else:
                    responses.cancel()

    async def _ask(self, model: str, calls: Iterable[Call[T]], timeout: float | None) -> list[T]:
        """Send the requests, up to 8 at once, and join what they give, in order."""
        limit = asyncio.Semaphore(CONCURRENT_BATCHES)

        async def part(call: Call[T]) -> list[T]:
            async with limit:
                return call.read(await self.infer(model, call.inputs, timeout=timeout))

        tasks = [asyncio.create_task(part(call)) for call in calls]
        try:
            return [value for values in await asyncio.gather(*tasks) for value in values]
        finally:
            for task in tasks:  # after a failure or a cancellation the others are not wanted any more
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ready(self, model: str) -> bool:
        with translated(self.url):
            if model:
                return bool(await self._client.is_model_ready(model, client_timeout=self.timeout))
            return bool(await self._client.is_server_ready(client_timeout=self.timeout))

    async def _metadata(self, model: str) -> dict[str, Any]:
        with translated(self.url):
            return dict(
                await self._client.get_model_metadata(model, as_json=True, client_timeout=self.timeout)
            )

    async def _config(self, model: str) -> dict[str, Any]:
        with translated(self.url):
            answer = await self._client.get_model_config(
                model, headers=self._admin, as_json=True, client_timeout=self.timeout
            )
            return dict(answer["config"])

    async def _close(self) -> None:
        await self._client.close()
