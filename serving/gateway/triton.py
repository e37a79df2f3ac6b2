"""The way to Triton: gRPC's own asyncio stub, one call a request, so that a request that is cancelled is
cancelled there at once.

Why gRPC and its bare stub: over HTTP Triton notices that a caller has left only when it writes the next part
(server issue 7077), and tritonclient's asyncio class takes about twice as much CPU time for a part
(docs/gateway.md has the figures).
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from clients.errors import Timeout, Unavailable, from_triton
from clients.generation import microseconds
from shoal import dialect

# Text of one request and one response, embeddings of a whole batch among them.
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.use_local_subchannel_pool", 1),
    # A server that starts again is noticed within a second; gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_PROBE_SECONDS = 1.0
_CLOCK_SECONDS = 0.02
_FINAL = "triton_final_response"
_CORE = "Internal error from Core"  # what gRPC says of a call that begins when its time is over


@dataclass(frozen=True)
class Part:
    """One response of a decoder.

    Attributes:
        text: what is new.
        tokens: how many tokens are new.
        finish_reason: `stop` or `length` in the last part, "" before.
        input_tokens, cached_tokens: of the prompt; of them, those that were computed before.
        logprobs: of the new tokens, JSON as the vLLM backend writes it; "": none.
        prompt_logprobs: of the prompt's tokens, in the first part; "": none.
        stop_reason: JSON: null, a stop string, or the id of a stop token.
    """

    text: str
    tokens: int
    finish_reason: str
    input_tokens: int
    cached_tokens: int
    logprobs: str
    prompt_logprobs: str
    stop_reason: str


class Triton:
    """One server. Used inside of one event loop.

    Args:
        address: host:port of its gRPC endpoint.
        authority: certificates in PEM, by one of which the server's must be signed; None: no TLS.
    """

    def __init__(self, address: str, authority: bytes | None = None) -> None:
        self.address = address
        if authority is None:
            self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            trusted = grpc.ssl_channel_credentials(root_certificates=authority)
            self._channel = grpc.aio.secure_channel(address, trusted, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """End all calls."""
        await self._channel.close(grace=0)

    async def serves(self, model: str) -> bool:
        """Whether it answers, and serves a model."""
        request = pb.ModelReadyRequest(name=model)
        try:
            response = await self._stub.ModelReady(request, timeout=_PROBE_SECONDS, wait_for_ready=True)
        except grpc.RpcError:
            return False
        return bool(response.ready)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray],
        *,
        timeout: float,
        request_id: str = "",
        traceparent: str = "",
    ) -> dict[str, NDArray]:
        """One request and its response: arrays by name in and out; texts are arrays of bytes.

        Args:
            traceparent: the span that the server's spans go on with, by W3C Trace Context; "": none.

        Raises:
            ClientError: see `clients.errors`.
        """
        end = time.monotonic() + timeout
        try:
            response = await self._stub.ModelInfer(
                _request(model, inputs, request_id), timeout=timeout, metadata=_metadata(traceparent)
            )
        except grpc.RpcError as error:
            raise self._translated(error, end) from error
        return {
            output.name: _array(output, content)
            for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    async def generate(
        self,
        model: str,
        inputs: Mapping[str, NDArray],
        *,
        timeout: float,
        request_id: str = "",
        traceparent: str = "",
    ) -> AsyncGenerator[Part, None]:
        """The parts of an answer as they come. An iterator that is closed cancels the request.

        Args:
            traceparent: see `infer`.

        Raises:
            ClientError: see `clients.errors`.
        """
        request = _request(model, inputs, request_id)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        request.parameters["timeout"].int64_param = microseconds(timeout)
        end = time.monotonic() + timeout
        call = self._stub.ModelStreamInfer(_once(request), timeout=timeout, metadata=_metadata(traceparent))
        ended = False
        try:
            async for message in call:
                if message.error_message:
                    ended = True
                    raise from_triton(InferenceServerException(message.error_message), self.address)
                response = message.infer_response
                ended = response.parameters[_FINAL].bool_param if _FINAL in response.parameters else False
                if response.outputs:
                    part = _part(response)
                    ended |= bool(part.finish_reason)
                    yield part
            if not ended:
                raise Unavailable(f"{self.address}: the server ended before its answer did")
        except grpc.RpcError as error:
            ended = True
            raise self._translated(error, end) from error
        finally:
            if not ended:
                call.cancel()

    def _translated(self, error: grpc.RpcError, end: float) -> Exception:
        if error.details() == _CORE and time.monotonic() > end - _CLOCK_SECONDS:
            # Else its connection broke as it began: see `clients.errors`.
            return Timeout(f"{self.address}: no answer before the deadline")
        raised = InferenceServerException(str(error.details()), status=str(error.code()))
        return from_triton(raised, self.address)


def _metadata(traceparent: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", traceparent),) if traceparent else ()


async def _once(request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    yield request


def text(*values: str) -> NDArray:
    """Texts as Triton takes them, [n]."""
    return np.array([value.encode() for value in values], dtype=object)


def _request(model: str, inputs: Mapping[str, NDArray], request_id: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    for name, array in inputs.items():
        datatype = "BYTES" if array.dtype == object else _DATATYPES[array.dtype.str[1:]]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(_raw(array))
    return request


_DATATYPES = {"b1": "BOOL", "i4": "INT32", "i8": "INT64", "f4": "FP32", "f8": "FP64", "u4": "UINT32"}


def _raw(array: NDArray) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(value)) + value for value in array.reshape(-1))
    return array.tobytes()


def _array(output: Any, content: bytes) -> NDArray:
    if output.datatype == "BYTES":
        return np.array(_texts(content), dtype=object).reshape(tuple(output.shape))
    return np.frombuffer(content, triton_to_np_dtype(output.datatype)).reshape(tuple(output.shape))


def _texts(content: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(content):
        (size,) = struct.unpack_from("<I", content, place)
        place += 4 + size
        found.append(content[place - size : place])
    return found


def _part(response: Any) -> Part:
    """Read without numpy: a part of one token is made thousands of times a second."""
    found = {
        output.name: content
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }

    def word(name: str) -> str:
        return found[name][4:].decode("utf-8", errors="replace") if name in found else ""

    def number(name: str) -> int:
        return int.from_bytes(found[name][:4], "little") if name in found else 0

    reason = word(dialect.FINISH_REASON)
    return Part(
        text=word(dialect.TEXT_OUTPUT),
        tokens=number(dialect.OUTPUT_TOKENS),
        finish_reason="" if reason == "None" else reason,  # as the vLLM backend writes it
        input_tokens=number(dialect.INPUT_TOKENS),
        cached_tokens=number(dialect.CACHED_TOKENS),
        logprobs=word(dialect.LOGPROBS),
        prompt_logprobs=word(dialect.PROMPT_LOGPROBS),
        stop_reason=word(dialect.STOP_REASON),
    )


def generation_inputs(
    known: Sequence[str],
    *,
    sampling: Mapping[str, Any],
    prompt: str | None = None,
    messages: str | None = None,
    token_ids: Sequence[int] | None = None,
    stream: bool = True,
) -> dict[str, NDArray]:
    """Inputs of a request to a decoder.

    Args:
        known: names of the model's inputs; what it does not know is not asked for.
        sampling: vLLM's sampling parameters.
        prompt, messages, token_ids: one of them; messages are JSON, see `serving.generation.conversation`.
        stream: whether the answer comes in parts, or in one.
    """
    made: dict[str, NDArray] = {
        dialect.SAMPLING: text(json.dumps(sampling, allow_nan=False)),
        dialect.STREAM: np.array([stream]),
        dialect.EXCLUDE_INPUT: np.array([True]),
    }
    if prompt is not None:
        made[dialect.TEXT_INPUT] = text(prompt)
    if messages is not None:
        made[dialect.MESSAGES] = text(messages)
    if token_ids is not None:
        made[dialect.PROMPT_TOKENS] = np.array(token_ids, np.int32)
    wanted = [dialect.FINISH_REASON, dialect.INPUT_TOKENS, dialect.OUTPUT_TOKENS]
    wanted += [dialect.CACHED_TOKENS, dialect.STOP_REASON]
    wanted += [dialect.LOGPROBS] if sampling.get("logprobs") is not None else []
    wanted += [dialect.PROMPT_LOGPROBS] if sampling.get("prompt_logprobs") is not None else []
    for name in wanted:
        if f"{dialect.RETURN}{name}" in known:
            made[f"{dialect.RETURN}{name}"] = np.array([True])
    return made
