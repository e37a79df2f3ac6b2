"""Triton over gRPC with asyncio, in the vocabulary of the blocking clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray

from clients import answers
from clients.answers import Call, Entity, Found, Generated, Label, ZeroShotLabel
from clients.errors import BadInput, ClientError, translated
from clients.generation import Answer, Part, flags_of, joined, microseconds, request_arrays
from clients.grpc_client import DEFAULT_URL, read_part
from clients.vocabulary import (
    BATCH_SIZE,
    TABLE_BATCH_SIZE,
    Arrays,
    Table,
    Tls,
    batches,
    check_prompts,
    embedding_of,
    host_and_port,
    prompted,
    to_arrays,
    to_inputs,
)
from shoal.admin import GRPC_HEADER

T = TypeVar("T")
CONCURRENT_BATCHES = 8


class AsyncGrpcClient:
    """The asyncio twin of `GrpcClient`. Cancelling a call cancels the request on the server.

    Args:
        url: host:port of Triton's gRPC endpoint.
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
        self.url = url = host_and_port(url)
        self.timeout = timeout
        self._admin = {GRPC_HEADER: admin_key} if admin_key else None
        with translated(url):
            self._client = triton_aio.InferenceServerClient(url, **(tls.grpc_options() if tls else {}))
        self._flags: dict[str, dict[str, NDArray]] = {}
        self._kinds: dict[str, dict[str, str]] = {}

    async def infer(
        self,
        model: str,
        inputs: Arrays,
        *,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray]:
        """See `GrpcClient.infer`."""
        tensors = to_inputs(triton.InferInput, inputs)
        with translated(self.url):
            result = await self._client.infer(
                model,
                tensors,
                model_version=version,
                request_id=request_id,
                client_timeout=self.timeout if timeout is None else timeout,
            )
        return to_arrays(result, [output.name for output in result.get_response().outputs])

    async def generate(
        self,
        prompt: str,
        *,
        model: str = "smollm2",
        timeout: float | None = None,
        request_id: str = "",
        **sampling: Any,
    ) -> AsyncIterator[Part]:
        """See `BlockingClient.generate`; `aclose()` of the iterator, or its task's cancellation, cancels."""
        timeout = self.timeout if timeout is None else timeout
        arrays = request_arrays(prompt, sampling)
        if model not in self._flags:
            self._flags[model] = flags_of(await self.metadata(model))
        inputs = to_inputs(triton.InferInput, arrays | self._flags[model])

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {
                "model_name": model,
                "inputs": inputs,
                "request_id": request_id,
                "enable_empty_final_response": True,
                "timeout": microseconds(timeout),
            }

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
            finally:
                if ended:  # see `GrpcClient._stream`; the call must be read to its end, or gRPC cancels it
                    async for _ in responses:
                        pass
                else:
                    responses.cancel()

    async def complete(self, prompt: str, **options: Any) -> Answer:
        """See `BlockingClient.complete`."""
        return joined([part async for part in self.generate(prompt, **options)])

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = "minilm",
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
        prompt: str | None = None,
    ) -> NDArray[np.float32]:
        """See `GrpcClient.embed`; up to 8 requests are under way at once."""
        if prompt is not None:
            check_prompts(await self.metadata(model), model)
        calls = [
            Call(prompted(batch, prompt), lambda arrays: list(embedding_of(arrays, model)))
            for batch in batches(texts, batch_size)
        ]
        return np.stack(await self._ask(model, calls, timeout))

    async def classify(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Label]]:
        """See `BlockingClient.classify`."""
        return await self._ask(model, answers.classify(texts, batch_size), timeout)

    async def classify_images(
        self,
        files: Sequence[bytes],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Label]]:
        """See `BlockingClient.classify_images`."""
        return await self._ask(model, answers.images(files, batch_size), timeout)

    async def fill_mask(
        self,
        texts: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Label]]:
        """See `BlockingClient.fill_mask`."""
        return await self._ask(model, answers.classify(texts, batch_size), timeout)

    async def entities(
        self,
        texts: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Entity]]:
        """See `BlockingClient.entities`."""
        return await self._ask(model, answers.entities(texts, batch_size), timeout)

    async def answer(self, question: str, context: str, *, model: str, timeout: float | None = None) -> Found:
        """See `BlockingClient.answer`."""
        return (await self._ask(model, [answers.answer(question, context)], timeout))[0]

    async def zero_shot(
        self,
        texts: Sequence[str],
        candidates: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = 8,
    ) -> list[list[ZeroShotLabel]]:
        """See `BlockingClient.zero_shot`."""
        return await self._ask(model, answers.zero_shot(texts, candidates, batch_size), timeout)

    async def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[float]:
        """See `BlockingClient.rank`."""
        return await self._ask(model, answers.rank(query, texts, batch_size), timeout)

    async def classify_rows(
        self,
        table: Table,
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = TABLE_BATCH_SIZE,
    ) -> list[list[Label]]:
        """See `BlockingClient.classify_rows`."""
        async with self._inputs_of(model) as kinds:
            return await self._ask(model, answers.classify_rows(table, kinds, batch_size), timeout)

    async def predict(
        self,
        table: Table,
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = TABLE_BATCH_SIZE,
    ) -> NDArray[np.float32]:
        """See `BlockingClient.predict`."""
        async with self._inputs_of(model) as kinds:
            rows = await self._ask(model, answers.predict(table, kinds, batch_size), timeout)
        return np.stack(rows)

    async def text_to_text(
        self,
        texts: Sequence[str],
        *,
        model: str,
        max_new_tokens: int | None = None,
        timeout: float | None = None,
        batch_size: int = 8,
    ) -> list[Generated]:
        """See `BlockingClient.text_to_text`."""
        return await self._ask(model, answers.text_to_text(texts, max_new_tokens, batch_size), timeout)

    @asynccontextmanager
    async def _inputs_of(self, model: str) -> AsyncIterator[dict[str, str]]:
        """See `BlockingClient`."""
        if model not in self._kinds:
            self._kinds[model] = answers.kinds_of(await self.metadata(model))
        try:
            yield self._kinds[model]
        except BadInput:
            self._kinds.pop(model, None)
            raise

    async def _ask(self, model: str, calls: Sequence[Call[T]], timeout: float | None) -> list[T]:
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

    async def ready(self, model: str = "") -> bool:
        """See `GrpcClient.ready`."""
        try:
            with translated(self.url):
                if model:
                    return bool(await self._client.is_model_ready(model, client_timeout=self.timeout))
                return bool(await self._client.is_server_ready(client_timeout=self.timeout))
        except ClientError:
            return False

    async def metadata(self, model: str) -> dict[str, Any]:
        """See `GrpcClient.metadata`."""
        with translated(self.url):
            return dict(
                await self._client.get_model_metadata(model, as_json=True, client_timeout=self.timeout)
            )

    async def config(self, model: str) -> dict[str, Any]:
        """See `BlockingClient.config`."""
        with translated(self.url):
            answer = await self._client.get_model_config(
                model, headers=self._admin, as_json=True, client_timeout=self.timeout
            )
            return dict(answer["config"])

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def __aenter__(self) -> AsyncGrpcClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
